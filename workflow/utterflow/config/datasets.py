"""Section `datasets`: what a pipeline's builder makes into training and test records."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required
from utterflow.config.signals import Partition

BUILD_CORRECTOR = "build_corrector_data"
BUILD_SLU = "build_slu_data"


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


class SluSource(Section):
    """Where labelled utterances come from: rationales, a corpus's ASR, a file of lists, or sentences as written."""

    rationale: Name | None = key(None, "a name under `rationales`; goes with `k`", BUILD_SLU)
    k: int | None = key(None, "one of its `nbest_values`", BUILD_SLU, ge=1)
    corpus: Name | None = key(None, "a name under `corpora`; goes with `asr`", BUILD_SLU)
    asr: Name | None = key(None, "a name under `asr`", BUILD_SLU)
    lists: str | None = key(None, "a .jsonl of SLURP records with `asr_hypotheses` (or `input`)", BUILD_SLU)
    gold_text: str | None = key(
        None, "SLURP annotations (.jsonl): the sentences as written stand where others have what was heard", BUILD_SLU
    )
    agreeing: bool = key(False, "only rationales without any fallback that end with the gold intent", BUILD_SLU)
    limit: int | None = key(None, "keep only the first rows", BUILD_SLU, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> SluSource:
        names = ("rationale", "k", "corpus", "asr", "lists", "gold_text")
        given = {name for name in names if getattr(self, name) is not None}
        if given not in ({"rationale", "k"}, {"corpus", "asr"}, {"lists"}, {"gold_text"}):
            raise ValueError(
                "a source is one of {rationale: NAME, k: 5}, {corpus: NAME, asr: NAME}, {lists: FILE.jsonl}, "
                "{gold_text: FILE.jsonl}"
            )
        if self.agreeing and self.rationale is None:
            raise ValueError("`agreeing` is about rationales: it goes with `rationale`")
        return self


class SluDataset(Section):
    """Spoken commands in; scenario, action and entities out (`<slu>`), or the rationale (`<ras>`)."""

    builder: Literal["slu"] = required("what was heard in, labels or rationale out", BUILD_SLU)
    train: tuple[SluSource, ...] = key((), "sources of the split, joined", BUILD_SLU)
    validation: tuple[SluSource, ...] = key((), "sources of the split, joined", BUILD_SLU)
    test: tuple[SluSource, ...] = key((), "sources of the split, joined; only `<slu>` rows", BUILD_SLU)
    labels: tuple[str, ...] = key(
        (),
        "SLURP annotations (.jsonl) whose intents and slot types a template's {intents}, {slot_types} list",
        BUILD_SLU,
    )
    ras: bool = key(False, "`<ras>` rows, whose answer is the rationale, from sources with rationales", BUILD_SLU)
    ras_weight: float = key(1.0, "loss weight of `<ras>` rows; `<slu>` rows have 1", BUILD_SLU, gt=0)
    rationale_slu: bool = key(True, "`<slu>` rows from sources with rationales", BUILD_SLU)
    rationale_in_prompt: bool = key(
        False, "show rationales in `<slu>` prompts; at test time only those made without gold labels are allowed",
        BUILD_SLU,
    )  # fmt: skip
    audio: bool = key(False, "put the recording into the prompt; needs a model of kind audio", BUILD_SLU)
    candidates: int = key(5, "hypotheses in the prompt, at most; 0: none, the model only listens", BUILD_SLU, ge=0)
    input_format: Literal["asr", "ipa", "arp"] = key(
        "asr", "candidates as words, in IPA, or as ARPABET phones; the last two need `lexicon`", BUILD_SLU
    )
    lexicon: str | None = key(
        None, "pronunciations for ipa and arp, one `word  PH0 PH1` per line, such as CMUdict", BUILD_SLU
    )
    slu_prompt: str = key("workflow/prompts/slu.txt", "template of `<slu>` prompts", BUILD_SLU)
    ras_prompt: str = key("workflow/prompts/ras.txt", "template of `<ras>` prompts", BUILD_SLU)
    system: str | None = key(None, "a file with the system message", BUILD_SLU)
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", BUILD_SLU)

    @model_validator(mode="after")
    def _consistent(self) -> SluDataset:
        if not (self.train or self.validation or self.test):
            raise ValueError("write at least one split: train, validation or test")
        if (self.input_format == "asr") != (self.lexicon is None):
            raise ValueError("`lexicon` goes with input_format ipa or arp")
        if any(source.agreeing for source in self.test):
            raise ValueError("`agreeing` in `test` would choose the test set by its gold labels: leave it out there")
        reasoned = [source for source in (*self.train, *self.validation) if source.rationale]
        if reasoned and not (self.ras or self.rationale_slu):
            raise ValueError("with `ras` and `rationale_slu` both false, sources with rationales give no row")
        if not self.audio and self.candidates == 0:
            raise ValueError("a prompt needs `audio`, `candidates`, or both")
        return self


AnyDataset = Annotated[CorrectorDataset | SluDataset, Field(discriminator="builder")]
