"""Section `rationales`: what a language model says about why labels fit what was heard."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required

RATIONALE = "generate_rationale"


class Rationale(Section):
    """Rationales for a corpus's n-best lists, for each list length of `nbest_values`."""

    corpus: Name | None = key(None, "a name under `corpora`; goes with `asr`", RATIONALE)
    asr: Name | None = key(None, "a name under `asr`", RATIONALE)
    lists: str | None = key(
        None, "instead: a .jsonl of SLURP records with `asr_hypotheses` (or `input`), such as another run's", RATIONALE
    )
    labels: tuple[str, ...] = required(
        "SLURP annotations (.jsonl) whose intents and slot types are the inventory; never those of the test set",
        RATIONALE,
        min_length=1,
        examples=[["data/slurp/train.jsonl", "data/slurp/devel.jsonl"]],
    )
    backend: Literal["api", "transformers", "vllm"] = key(
        "api", "`api`: a server; else a local model, `vllm` in its own environment", RATIONALE
    )
    server: Name | None = key(None, "a name under `servers`; goes with backend api", RATIONALE)
    model: Name | None = key(None, "a name under `models`; goes with the local back ends", RATIONALE)
    evidence: Literal["nbest", "audio"] = key("nbest", "what the model judges by", RATIONALE)
    stages: Literal["one", "two"] = key(
        "one", "`two`: candidates of intents and of slots, then their pruning: four questions per row", RATIONALE
    )
    gold: bool = key(
        True, "show the gold labels to the model; such a rationale never reaches a test-time prompt", RATIONALE
    )
    nbest_values: tuple[int, ...] = key((5,), "lengths of the lists, one file each: k = 1..5 is an ablation", "targets")
    few_shot: bool = key(True, "put an example into the prompt", RATIONALE)
    prompts: str = key("workflow/prompts/rationale", "folder of the prompt templates", RATIONALE)
    output_mode: Literal["raw", "full"] = key(
        "raw", "`full` keeps parsed answers, prompts, tries, tokens and cost of each row too", RATIONALE
    )
    limit: int | None = key(None, "only the first rows; 100 make a smoke test", RATIONALE, ge=1)
    max_new_tokens: int = key(2048, "tokens of an answer, those of its reasoning included", RATIONALE, ge=16)
    temperature: float = key(0.0, "0: greedy", RATIONALE, ge=0)
    seed: int = key(42, "of sampling", RATIONALE, ge=0)
    thinking: bool = key(
        False, "local models that reason before they answer: let them, and take what follows `</think>`", RATIONALE
    )
    format_retries: int = key(
        2, "further questions after an answer of the wrong form, with what was wrong", RATIONALE, ge=0
    )
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", RATIONALE)
    batch_size: int = key(16, "questions answered together by a local model", RATIONALE, ge=1)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU where there is one", RATIONALE)
    shards: int = key(1, "jobs per list length", RATIONALE, ge=1, le=100_000)
    gpus: int = key(0, "GPUs per job", "none", ge=0)
    threads: int = key(1, "CPU threads per job", "none", ge=1)
    mem_mb: int = key(4000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(240, "minutes per job; grows with each retry", "none", ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Rationale:
        given = {name for name in ("corpus", "asr", "lists") if getattr(self, name) is not None}
        if given not in ({"corpus", "asr"}, {"lists"}):
            raise ValueError("write `corpus` and `asr`, or `lists`")
        if self.backend == "api" and (self.server is None or self.model is not None):
            raise ValueError("backend api needs `server` (a name under `servers`), and no `model`")
        if self.backend == "api" and (self.thinking or self.gpus):
            raise ValueError("`thinking` and `gpus` are about local models: leave them out with backend api")
        if self.backend != "api" and (self.model is None or self.server is not None):
            raise ValueError(f"backend {self.backend} needs `model` (a name under `models`), and no `server`")
        if self.backend == "vllm" and self.evidence == "audio":
            raise ValueError("backend vllm answers text only: take `transformers`, or a server that accepts audio")
        if not self.nbest_values or len(set(self.nbest_values)) < len(self.nbest_values) or min(self.nbest_values) < 1:
            raise ValueError("`nbest_values` are different list lengths of 1 and more, e.g. [1, 2, 3, 4, 5]")
        if self.evidence == "audio" and len(self.nbest_values) > 1:
            raise ValueError("a recording has no list length: write one of `nbest_values` with evidence audio")
        if self.backend == "transformers" and self.gpus > 1:
            raise ValueError("the back end transformers uses one GPU per job: set gpus 1 and more `shards`")
        return self
