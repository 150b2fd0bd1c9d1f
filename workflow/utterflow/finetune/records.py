"""What a fine-tuning writes beside weights."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from utterflow.records import Record


class HistoryRow(Record):
    """One entry of the loss curve: of training, or of an evaluation."""

    RECORD: ClassVar[str] = "history/1"
    step: int = Field(ge=0, description="optimizer steps done")
    epoch: float
    loss: float | None = Field(default=None, description="nats per answer token, mean since the entry before")
    learning_rate: float | None = None
    grad_norm: float | None = Field(default=None, description="before clipping, of the last step")
    eval_loss: float | None = Field(default=None, description="nats per answer token over the validation set")


class DataStatistics(Record):
    """How long the rows of a set are; lengths in tokens, prompt and answer with its end together."""

    RECORD: ClassVar[str] = "data_statistics/1"
    rows: int
    rejected: int
    tokens: int
    answer_tokens: int = Field(description="tokens with loss")
    longest: int
    mean_length: float
    sequences: int = Field(description="rows, or what packing made of them")
    padding_share: float = Field(description="share of padding in what the model sees during the first epoch")


class TrainingMetrics(Record):
    """The metrics file of one fine-tuning."""

    RECORD: ClassVar[str] = "training_metrics/1"
    adapter: str = Field(description="`lora` or `none`: full fine-tuning")
    parameters: int = Field(description="of the model, adapter included")
    trainable_parameters: int
    steps: int = Field(description="optimizer steps done")
    planned_steps: int
    epochs: float = Field(description="passes over the training set done")
    effective_batch: int = Field(description="sequences per optimizer step: batch_size * accumulation * processes")
    processes: int
    precision: str
    tokens_seen: int = Field(description="tokens of all passes, without padding")
    final_loss: float | None = Field(description="last entry of training in history.jsonl")
    final_eval_loss: float | None
    best_eval_loss: float | None
    best_step: int | None
    kept_step: int = Field(description="the step whose weights were kept")
    stopped_early: bool = Field(description="patience ended it")
    train: DataStatistics
    validation: DataStatistics | None
    rows: dict[str, int] = Field(description="counts `in`, `out`, `rejected` of both sets")
