"""Section `asr`: n-best recognition with Whisper."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from utterflow.config.base import MaxRejected, Section, key, required
from utterflow.config.hub import is_hub_name, revision_problem

TRANSCRIBE = "transcribe"


class AsrVariant(Section):
    """One way to make n-best lists."""

    model: str = required(
        "a folder with a Whisper checkpoint (`./...`, `/...` or with two slashes or more), or a hub name `org/model`",
        TRANSCRIBE,
        min_length=1,
        examples=["openai/whisper-large-v3-turbo"],
    )
    revision: str | None = key(None, "commit of the hub model; required for a hub name", TRANSCRIBE)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU where there is one", TRANSCRIBE)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "`auto`: float32 on the CPU, bfloat16 on a GPU", TRANSCRIBE
    )
    language: str | None = key(
        "en",
        "language of the speech, as Whisper spells it; null: detected per window; the row names the first's",
        TRANSCRIBE,
    )
    task: Literal["transcribe", "translate"] = key("transcribe", "`translate` gives English text", TRANSCRIBE)
    diversity_method: Literal["group_beam", "beam", "sampling_pool"] = key(
        "group_beam",
        "`group_beam`: diverse beam search; `beam`: plain beam search; "
        "`sampling_pool`: draw many, keep the most different",
        TRANSCRIBE,
    )
    num_hypotheses: int = key(5, "hypotheses per utterance", TRANSCRIBE, ge=1, le=1000)
    num_beams: int = key(5, "beams in all", TRANSCRIBE, ge=1, le=1000)
    num_beam_groups: int | None = key(None, "groups of `group_beam`; null: one per beam", TRANSCRIBE, ge=1)
    diversity_penalty: float = key(1.0, "taken off a token's score per earlier group that chose it", TRANSCRIBE, ge=0)
    length_penalty: float = key(1.0, "hypotheses are ranked by log-probability / tokens ** length_penalty", TRANSCRIBE)
    sampling_pool: int | None = key(
        None,
        "samples to draw; with another method: the fallback where that one cannot run",
        TRANSCRIBE,
        ge=1,
        le=10_000,
    )
    temperature: float = key(1.0, "of sampling", TRANSCRIBE, gt=0)
    top_p: float = key(0.95, "of sampling; 1: off", TRANSCRIBE, gt=0, le=1)
    top_k: int = key(50, "of sampling; 0: off", TRANSCRIBE, ge=0)
    max_new_tokens: int = key(128, "tokens per window, end token included", TRANSCRIBE, ge=1)
    no_repeat_ngram_size: int = key(3, "no token n-gram of this size occurs twice; 0: off", TRANSCRIBE, ge=0)
    seed: int = key(42, "seed of sampling; each row has its own, made from this and its id", TRANSCRIBE, ge=0)
    drop_duplicates: bool = key(
        True,
        "keep one of hypotheses that are equal but for case and spaces (a pool is always free of them)",
        TRANSCRIBE,
    )
    token_scores: bool = key(False, "write each token's log-probability too", TRANSCRIBE)
    long_audio: Literal["window", "reject"] = key(
        "window", "recordings longer than the model's window are cut at quiet places, or rejected", TRANSCRIBE
    )
    batch_size: int = key(8, "windows decoded together", TRANSCRIBE, ge=1)
    max_rejected: MaxRejected = key(
        0.01, "the stage fails when a larger share of a shard's rows is rejected", TRANSCRIBE
    )
    gpus: Literal[0, 1] = key(0, "GPUs per job; several are used through several shards", "none")
    threads: int = key(1, "CPU threads per job", "none", ge=1)
    mem_mb: int = key(4000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(60, "minutes per job; grows with each retry", "none", ge=1)

    @property
    def is_hub_model(self) -> bool:
        return is_hub_name(self.model)

    @model_validator(mode="after")
    def _consistent(self) -> AsrVariant:
        if problem := revision_problem(self.model, self.revision):
            raise ValueError(problem)
        if self.diversity_method == "sampling_pool" and self.sampling_pool is None:
            raise ValueError("diversity_method sampling_pool needs `sampling_pool: <samples>`, e.g. 100")
        if self.sampling_pool is not None and self.sampling_pool < self.num_hypotheses:
            raise ValueError(f"sampling_pool {self.sampling_pool} is smaller than num_hypotheses {self.num_hypotheses}")
        if self.sampling_pool is None and (reason := self.search_problem()):
            raise ValueError(f"{reason}; or set `sampling_pool` as a fallback")
        return self

    def search_problem(self) -> str | None:
        """Why the configured beam search cannot run; None where it can."""
        if self.diversity_method == "sampling_pool":
            return None
        if self.num_hypotheses > self.num_beams:
            return f"num_hypotheses {self.num_hypotheses} needs at least as many num_beams, not {self.num_beams}"
        groups = self.num_beam_groups or self.num_beams
        if self.diversity_method == "group_beam" and self.num_beams % groups:
            return f"num_beams {self.num_beams} is not a multiple of num_beam_groups {groups}"
        return None
