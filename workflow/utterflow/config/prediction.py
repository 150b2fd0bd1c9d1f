"""Sections `predictions`, `corrections` and `understandings`: what models answer, and how answers are scored."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required

GENERATE = "generate"
SCORE_CORRECTIONS = "score_corrections"
SCORE_SLU = "score_slu"


class Prediction(Section):
    """A model's answers to a dataset's prompts."""

    dataset: Name = required("a name under `datasets`", GENERATE, examples=["corrector"])
    split: Literal["train", "validation", "test"] = key("test", "split of the dataset", GENERATE)
    model: Name | None = key(None, "a name under `models`: the model as it is", GENERATE)
    training: Name | None = key(None, "a name under `trainings`: its model as trained", GENERATE)
    merged: bool = key(False, "with `training`: the merged model instead of base and adapter", GENERATE)
    backend: Literal["transformers", "vllm"] = key(
        "transformers", "`vllm` runs in its own environment, see `tools.vllm_python`", GENERATE
    )
    max_new_tokens: int = key(128, "tokens of an answer, end token included", GENERATE, ge=1)
    temperature: float = key(0.0, "0: greedy; above: sampled", GENERATE, ge=0)
    top_p: float = key(1.0, "of sampling; 1: off", GENERATE, gt=0, le=1)
    top_k: int = key(0, "of sampling; 0: off", GENERATE, ge=0)
    num_outputs: int = key(1, "answers per prompt", GENERATE, ge=1, le=1000)
    seed: int = key(42, "seed of sampling; each row has its own, made from this and its id", GENERATE, ge=0)
    json_schema: str | None = key(None, "a JSON schema file that answers must follow", GENERATE)
    batch_size: int = key(16, "prompts answered together", GENERATE, ge=1)
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", GENERATE)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU where there is one", GENERATE)
    shards: int = key(1, "jobs", GENERATE, ge=1, le=100_000)
    gpus: int = key(0, "GPUs per job; more than one only with vllm (tensor parallel)", "none", ge=0)
    threads: int = key(1, "CPU threads per job", "none", ge=1)
    mem_mb: int = key(8000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(60, "minutes per job; grows with each retry", "none", ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Prediction:
        if (self.model is None) == (self.training is None):
            raise ValueError("write either `model` (as it is) or `training` (as trained)")
        if self.merged and self.training is None:
            raise ValueError("`merged` goes with `training`")
        if self.num_outputs > 1 and self.temperature == 0:
            raise ValueError("several greedy answers are all the same: set `temperature`, or num_outputs 1")
        if self.temperature == 0 and (self.top_p < 1 or self.top_k > 0):
            raise ValueError("`top_p` and `top_k` do nothing without sampling: set `temperature`, or leave them out")
        if self.backend == "transformers" and self.gpus > 1:
            raise ValueError("the back end transformers uses one GPU per job: set gpus 1 and more `shards`")
        return self


class Correction(Section):
    """Corrected transcripts beside what they were made from."""

    prediction: Name = required(
        "a name under `predictions`, of a corrector dataset", SCORE_CORRECTIONS, examples=["corrected"]
    )
    reject_beyond: float | None = key(
        None,
        "early rejection: keep the first candidate where the answer's edit distance to the nearest candidate, as a "
        "share of that one's words, is above this; null: never",
        SCORE_CORRECTIONS,
        ge=0,
    )


class Understanding(Section):
    """Scenario, action and entities that a model has understood, under SLURP's metrics."""

    prediction: Name = required("a name under `predictions`, of an slu dataset", SCORE_SLU, examples=["slu"])
    by: Literal["file", "slurp_id"] = key(
        "file", "what gold and predictions are paired by: the recording, or the sentence (text input)", SCORE_SLU
    )
    average: Literal["micro", "macro"] = key("micro", "of the report's F1s; the metrics file has both", SCORE_SLU)
    bootstrap_samples: int = key(
        1000, "resamples for confidence intervals; 0: no intervals", SCORE_SLU, ge=0, le=100_000
    )
    bootstrap_unit: Literal["utterance", "speaker"] = key("utterance", "what is resampled", SCORE_SLU)
    confidence: float = key(0.95, "coverage of the intervals", SCORE_SLU, gt=0, lt=1)
    bootstrap_seed: int = key(42, "seed of the resampling", SCORE_SLU, ge=0)
