"""Section `datasets`: what a pipeline's builder makes into training and test records."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required
from utterflow.config.signals import Partition

BUILD_CORRECTOR = "build_corrector_data"


class CandidateSource(Section):
    """Where n-best lists come from: dumped beams, a corpus's ASR, or a file."""

    beams: Name | None = key(None, "a name under `beams`; goes with `partition`", BUILD_CORRECTOR)
    partition: Partition | None = key(None, "which partition of the beams", BUILD_CORRECTOR)
    corpus: Name | None = key(None, "a name under `corpora`; goes with `asr`", BUILD_CORRECTOR)
    asr: Name | None = key(None, "a name under `asr`", BUILD_CORRECTOR)
    lists: str | None = key(
        None, "a .jsonl of lists: `{input, output}` or `{input_beams, ground_truth}`", BUILD_CORRECTOR
    )
    limit: int | None = key(None, "keep only the first lists", BUILD_CORRECTOR, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> CandidateSource:
        given = {name for name in ("beams", "partition", "corpus", "asr", "lists") if getattr(self, name) is not None}
        if given not in ({"beams", "partition"}, {"corpus", "asr"}, {"lists"}):
            raise ValueError(
                "a source is one of {beams: NAME, partition: train}, {corpus: NAME, asr: NAME}, {lists: FILE.jsonl}"
            )
        return self


class CorrectorDataset(Section):
    """n-best lists as instructions, with the reference as the answer."""

    builder: Literal["corrector"] = required("n-best lists in, the reference out", BUILD_CORRECTOR)
    train: tuple[CandidateSource, ...] = key((), "sources of the split, joined", BUILD_CORRECTOR)
    validation: tuple[CandidateSource, ...] = key((), "sources of the split, joined", BUILD_CORRECTOR)
    test: tuple[CandidateSource, ...] = key((), "sources of the split, joined", BUILD_CORRECTOR)
    instruction: str = key(
        "workflow/prompts/corrector.txt",
        "template of the prompt: `{n}` candidates, then `{candidates}`, numbered, one per line",
        BUILD_CORRECTOR,
    )
    system: str | None = key(None, "a file with the system message", BUILD_CORRECTOR)
    candidates: int = key(100, "candidates in the prompt, at most", BUILD_CORRECTOR, ge=1, le=10_000)
    drop_duplicates: bool = key(True, "keep one of equal candidates", BUILD_CORRECTOR)
    tokenizer: Name | None = key(None, "a name under `models`: counts tokens for `max_prompt_tokens`", BUILD_CORRECTOR)
    max_prompt_tokens: int | None = key(
        None, "longer prompts lose candidates from the end; how many were cut is counted", BUILD_CORRECTOR, ge=16
    )
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", BUILD_CORRECTOR)

    @model_validator(mode="after")
    def _counts_tokens(self) -> CorrectorDataset:
        if (self.tokenizer is None) != (self.max_prompt_tokens is None):
            raise ValueError("`tokenizer` and `max_prompt_tokens` go together")
        if not (self.train or self.validation or self.test):
            raise ValueError("write at least one split: train, validation or test")
        return self
