"""Section `trainings`: fine-tuning, one section for text, audio and vision models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required

MIX = "mix_sft"
FINETUNE = "finetune"


class MixPart(Section):
    """A share of a training mixture."""

    dataset: Name = required("a name under `datasets`", MIX, examples=["corrector"])
    split: Literal["train", "validation", "test"] = key("train", "split of the dataset", MIX)
    limit: int | None = key(None, "draw at most this many rows", MIX, ge=1)
    share: float = key(1.0, "draw this share of the rows; above 1 rows come more than once", MIX, gt=0, le=100)


class Adapter(Section):
    """LoRA (Hu et al. 2021, arXiv:2106.09685), or none: full fine-tuning."""

    kind: Literal["lora", "none"] = key("lora", "`none`: full fine-tuning", FINETUNE)
    r: int = key(16, "rank", FINETUNE, ge=1)
    alpha: float = key(32, "updates are scaled by alpha / r", FINETUNE, gt=0)
    dropout: float = key(0.05, "on the adapter's input", FINETUNE, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = key(
        ("q_proj", "k_proj", "v_proj", "o_proj"), "names of the modules, or `all-linear`", FINETUNE
    )
    modules_to_save: tuple[str, ...] = key((), "modules trained in full beside it, e.g. lm_head", FINETUNE)
    rslora: bool = key(False, "scale by alpha / sqrt(r)", FINETUNE)
    audio_encoder: bool = key(
        False, "audio models: train the encoder too (with an adapter: put adapters there)", FINETUNE
    )
    projector: bool = key(False, "audio models: train what joins encoder and language model, in full", FINETUNE)
    quantize: Literal["none", "nf4", "int8"] = key(
        "none", "QLoRA: weights of the base in 4 or 8 bits; needs bitsandbytes and a GPU", FINETUNE
    )

    @model_validator(mode="after")
    def _quantized_needs_adapter(self) -> Adapter:
        if self.kind == "none" and self.quantize != "none":
            raise ValueError("quantized weights cannot be trained in full: set kind lora, or quantize none")
        return self


class DeepSpeed(Section):
    """ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): what is cut over the processes."""

    stage: Literal[1, 2, 3] = required("1: optimizer state, 2: and gradients, 3: and weights", FINETUNE, examples=[2])
    offload_optimizer: bool = key(False, "keep optimizer state in CPU memory", FINETUNE)
    offload_parameters: bool = key(False, "keep weights in CPU memory; stage 3", FINETUNE)


class Training(Section):
    """One fine-tuning."""

    model: Name = required("a name under `models`", FINETUNE, examples=["llama_3b"])
    train: tuple[MixPart, ...] = required("what is mixed into the training set", MIX, min_length=1)
    validation: tuple[MixPart, ...] = key((), "what is mixed into the validation set", MIX)
    validation_share: float = key(0.0, "take this share of the training rows for validation", MIX, ge=0, lt=1)
    split_by: Literal["row", "group"] = key("row", "`group`: all rows of a group on the same side", MIX)
    seed: int = key(42, "seed of draws, order, adapter and dropout", f"{MIX}, {FINETUNE}", ge=0)
    adapter: Adapter = Field(default_factory=Adapter, description="what is trained")
    max_length: int = key(2048, "tokens of prompt and answer; longer rows are rejected, never cut", FINETUNE, ge=16)
    max_rejected: MaxRejected = key(0.01, "training fails when a larger share of rows is rejected", FINETUNE)
    packing: bool = key(False, "several rows in one sequence of max_length, apart in attention; text only", FINETUNE)
    group_by_length: bool = key(True, "rows of like length together, where they are not packed", FINETUNE)
    epochs: float = key(3.0, "passes over the training set", FINETUNE, gt=0)
    max_steps: int | None = key(None, "optimizer steps; ends earlier than `epochs`, or repeats", FINETUNE, ge=1)
    batch_size: int = key(4, "rows per process and forward pass", FINETUNE, ge=1)
    accumulation: int = key(4, "forward passes per optimizer step", FINETUNE, ge=1)
    learning_rate: float = key(2e-4, "peak", FINETUNE, gt=0)
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_min_lr"] = key(
        "cosine", "of the learning rate", FINETUNE
    )
    warmup_ratio: float = key(0.03, "share of the steps with a rising learning rate", FINETUNE, ge=0, le=1)
    weight_decay: float = key(0.0, "of the optimizer", FINETUNE, ge=0)
    max_grad_norm: float = key(1.0, "gradients are clipped to this norm", FINETUNE, gt=0)
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "paged_adamw_8bit"] = key(
        "adamw_torch", "the library's name of it", FINETUNE
    )
    precision: Literal["auto", "bf16", "fp32"] = key(
        "auto", "of the computation; `auto`: bf16 on a GPU that has it, else fp32", FINETUNE
    )
    gradient_checkpointing: bool = key(False, "less memory for a second forward pass", FINETUNE)
    evaluate_every: int | None = key(
        None, "steps between checkpoints, with evaluation where there is a validation set; null: every epoch", FINETUNE,
        ge=1,
    )  # fmt: skip
    keep_best: bool = key(True, "end with the checkpoint of least validation loss, not with the last", FINETUNE)
    patience: int | None = key(None, "stop after this many evaluations without a better loss", FINETUNE, ge=1)
    log_every: int = key(10, "steps between entries of the loss curve", FINETUNE, ge=1)
    report_to: Literal["none", "tensorboard", "wandb"] = key(
        "none", "where losses go beside history.jsonl; tensorboard: below results/.state/tensorboard", FINETUNE
    )
    deepspeed: DeepSpeed | None = Field(default=None, description="ZeRO, for several processes")
    merge: bool = key(False, "target `all` makes the merged model too", "targets")
    processes: int | None = key(None, "processes per node; null: one per GPU, or one", FINETUNE, ge=1)
    nodes: int = key(1, "nodes; more than one only under Slurm", FINETUNE, ge=1)
    gpus: int = key(0, "GPUs per node", FINETUNE, ge=0)
    threads: int = key(1, "CPU threads per process", "none", ge=1)
    mem_mb: int = key(8000, "memory per node in MB; grows with each retry", "none", ge=500)
    runtime: int = key(240, "minutes; grows with each retry", "none", ge=1)

    @property
    def processes_per_node(self) -> int:
        return self.processes or max(1, self.gpus)

    @property
    def world_size(self) -> int:
        return self.processes_per_node * self.nodes

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.validation and self.validation_share:
            raise ValueError("write either `validation` or `validation_share`, not both")
        if self.patience is not None and not (self.validation or self.validation_share):
            raise ValueError("`patience` needs a validation set: `validation` or `validation_share`")
        if self.packing and self.group_by_length and "group_by_length" in self.model_fields_set:
            raise ValueError("packed sequences are of one length: leave `group_by_length` out")
        if self.adapter.quantize != "none" and self.gpus == 0:
            raise ValueError("adapter.quantize needs a GPU: set `gpus`")
        return self
