"""The typed record of each kind of file.

All files are JSON Lines unless said otherwise. `RECORD` names kind and schema version; it stands in the
side file (`*.meta.json`) of every file that the workflow writes. Manifest and n-best rows keep the fields of
their source record (e.g. SLURP's `slurp_id`, `scenario`, `entities`) beside the typed ones, so they allow extra
fields; all other records are closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utterflow.errors import UserError
from utterflow.files import read_jsonl


class Record(BaseModel):
    """Base of all records: closed, immutable."""

    RECORD: ClassVar[str]
    model_config = ConfigDict(extra="forbid", frozen=True)

    def row(self) -> dict[str, Any]:
        """The record as it is written to a file."""
        return self.model_dump(mode="json")


class Noise(Record):
    """Coloured noise that the audio loader adds to a clean recording."""

    RECORD: ClassVar[str] = "noise/1"
    snr_db: float = Field(description="signal-to-noise ratio in dB")
    color: float = Field(ge=0, description="exponent b of the 1/f^b power spectrum; 0 is white")
    seed: int


class ManifestRow(Record):
    """One utterance of a corpus."""

    RECORD: ClassVar[str] = "manifest/1"
    model_config = ConfigDict(extra="allow", frozen=True)
    id: str = Field(min_length=1)
    audio: str = Field(min_length=1, description="path, as the config gives it, or relative to the run folder")
    audio_sha256: str
    audio_bytes: int
    seconds: float = Field(gt=0, description="duration")
    text: str | None = Field(description="reference transcript")
    speaker: str | None = None
    group: str | None = Field(default=None, description="what results are split by: etiology, voice, gender, ...")
    noise: Noise | None = None


class Hypothesis(Record):
    """One hypothesis of an n-best list."""

    RECORD: ClassVar[str] = "hypothesis/1"
    text: str
    score: float = Field(description="total natural log-probability of its tokens, end token included")
    mean_logprob: float = Field(description="score divided by the number of tokens")
    num_tokens: int = Field(ge=0, description="tokens, end token included")
    finished: bool = Field(description="false where max_new_tokens cut it off")
    token_logprobs: list[float] | None = None


class NbestRow(ManifestRow):
    """A manifest row with its n-best list, best first."""

    RECORD: ClassVar[str] = "nbest/1"
    asr_hypotheses: list[Hypothesis] = Field(min_length=1)
    asr_method: str
    asr_fallback: str | None = Field(default=None, description="why another method than the configured one ran")
    asr_language: str | None = None
    asr_windows: int = Field(default=1, ge=1)


class RejectedRow(Record):
    """A row that a stage could not use, and why."""

    RECORD: ClassVar[str] = "rejected/1"
    id: str
    stage: str
    reason: str
    where: str | None = None


class Rate(Record):
    """A corpus-level rate with its bootstrap interval; null where it is undefined (no reference words)."""

    RECORD: ClassVar[str] = "rate/1"
    value: float | None
    low: float | None = None
    high: float | None = None


class AsrScores(Record):
    """What n-best lists score over a corpus or a group; counts are in words unless said otherwise."""

    RECORD: ClassVar[str] = "asr_scores/1"
    utterances: int = Field(ge=1)
    empty_references: int = Field(description="utterances without a reference word after normalisation")
    words: int = Field(description="reference words")
    characters: int = Field(description="reference characters")
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    character_edits: int
    wer: Rate = Field(description="of the first hypotheses")
    clipped_wer: float | None = Field(description="each utterance's edits counted up to its reference length")
    cer: float | None = Field(description="of the first hypotheses")
    sentence_error_rate: float = Field(description="share of utterances with any word edit")
    mbr: Rate = Field(description="WER of the minimum Bayes risk choice from the whole list")
    oracle: dict[int, Rate] = Field(description="WER of the best of the first n hypotheses, by n")
    compositional_oracle: Rate = Field(description="WER that the words of the whole list allow")
    mean_hypotheses: float
    mean_distinct_hypotheses: float = Field(description="different ones after normalisation")
    fallback_share: float = Field(description="share of utterances decoded by the fallback method")


class AsrMetrics(Record):
    """The metrics file of one run: a corpus, an ASR variant, a scoring."""

    RECORD: ClassVar[str] = "asr_metrics/1"
    corpus: str
    asr: str
    scoring: str
    normalizer: str
    confidence: float = Field(description="coverage of the bootstrap intervals")
    bootstrap_unit: str
    rows: dict[str, int] = Field(description="counts `in`, `out`, `rejected`")
    rejected_before: dict[str, int] = Field(default_factory=dict, description="rows that earlier stages rejected")
    total: AsrScores
    groups: dict[str, AsrScores] = Field(description="empty where the corpus has no groups")
    oracle_curve: list[float | None] = Field(description="oracle WER at list lengths 1, 2, ...")
    distinct_curve: list[float] = Field(description="mean number of different hypotheses at these lengths")


class ScoredRow(Record):
    """What one utterance scores; counts are in words unless said otherwise, ranks count from 0."""

    RECORD: ClassVar[str] = "scored/1"
    id: str
    group: str | None
    speaker: str | None
    words: int = Field(description="reference words")
    characters: int = Field(description="reference characters")
    first_edits: int
    first_substitutions: int
    first_deletions: int
    first_insertions: int
    character_edits: int = Field(description="of the first hypothesis")
    mbr_edits: int
    mbr_rank: int
    oracle_edits: int = Field(description="at the largest list length of the scoring")
    oracle_rank: int
    compositional_edits: int
    hypotheses: int
    distinct: int


class TrialRow(Record):
    """One trial of a partition with the place of its CTC logits."""

    RECORD: ClassVar[str] = "trial/1"
    id: str = Field(min_length=1)
    index: int = Field(ge=0, description="position in the partition, from 0")
    npz: str = Field(description="file that holds the logits")
    array: str = Field(description="name of the array [frames, classes] in that file")
    frames: int = Field(ge=0)
    text: str | None = Field(default=None, description="reference transcript")
    session: str | None = None
    group: str | None = None
    logits: str = Field(
        description="`held_out`, `cross_fitted` (from a fold that has not learnt this trial), `learnt` (the model was "
        "trained on it) or `unknown`"
    )


class BeamHypothesis(Record):
    """One word sequence of a beam search; natural logarithms."""

    RECORD: ClassVar[str] = "beam_hypothesis/1"
    text: str
    score: float = Field(description="what the list is ordered by")
    acoustic_score: float = Field(
        description="log-probability before the acoustic scale: of the best alignment (decoder `lexicon`), or of all "
        "that the search kept (`characters`)"
    )
    lm_score: float = Field(description="log-probability of the word n-gram, sentence end included; 0 without one")


class BeamsRow(Record):
    """One trial with its different word sequences, best first."""

    RECORD: ClassVar[str] = "beams/1"
    id: str = Field(min_length=1)
    index: int = Field(ge=0)
    text: str | None = None
    session: str | None = None
    group: str | None = None
    logits: str
    beams: list[BeamHypothesis] = Field(min_length=1)


class CandidatesRow(Record):
    """A corrector's item; the first five keys are the ones that such data sets have elsewhere."""

    RECORD: ClassVar[str] = "candidates/1"
    trial_id: str | int
    input_beams: list[str] = Field(min_length=1, description="candidates in the prompt, best first")
    ground_truth: str | None
    instruction: str = Field(description="the prompt without its candidates")
    formatted_input: str = Field(description="the prompt")
    id: str = Field(min_length=1, description="unique in the data set")
    source: str = Field(description="where the list comes from")
    group: str | None = None
    session: str | None = None
    speaker: str | None = None
    scores: list[float] | None = Field(default=None, description="of the candidates, as the source has them")
    repeats: list[int] | None = Field(
        default=None, description="how often the source has each candidate; null where equal ones were not dropped"
    )
    cut: int = Field(default=0, ge=0, description="candidates that the prompt's limit took away")


class Message(Record):
    """A turn of a conversation: text, or parts of text and media."""

    RECORD: ClassVar[str] = "message/1"
    role: Literal["system", "user", "assistant"]
    content: str | list[dict[str, Any]] = Field(
        description="text, or parts: {type: text, text}, {type: audio, path, noise?}, {type: image, path}"
    )


class Entity(Record):
    """A slot of a spoken command."""

    RECORD: ClassVar[str] = "entity/1"
    type: str = Field(min_length=1)
    filler: str


class SluItem(Record):
    """A spoken command: what was heard, and what it means."""

    RECORD: ClassVar[str] = "slu_item/1"
    id: str = Field(min_length=1, description="unique in the file; of a recording, or of a sentence")
    slurp_id: int | str | None = None
    file: str | None = Field(
        default=None, description="name of the recording, by which SLURP pairs gold and prediction"
    )
    audio: str | None = Field(default=None, description="path of the recording")
    noise: Noise | None = None
    text: str | None = Field(default=None, description="reference transcript")
    hypotheses: list[str] = Field(
        default_factory=list, description="n-best, best first; empty for a sentence as written"
    )
    scenario: str | None = None
    action: str | None = None
    entities: list[Entity] | None = None
    speaker: str | None = None
    group: str | None = None

    @property
    def intent(self) -> str | None:
        """`scenario_action`, as SLURP's metrics have it; None where either is missing."""
        return f"{self.scenario}_{self.action}" if self.scenario and self.action else None


class RationaleRow(SluItem):
    """A command with a language model's rationale for its labels; the first eight keys are those of the source."""

    RECORD: ClassVar[str] = "rationale/1"
    nbest_k: int = Field(ge=1)
    input_text: str = Field(description="the evidence as the prompt shows it")
    gold_intent: str | None = Field(description="null where the model did not see the gold labels")
    slot_candidates: list[Entity] = Field(description="gold slots shown to the model")
    raw_output: str = Field(description="the answer as it came; of two stages the last one's")
    topk_valid: bool
    topk_validation_error: str | None
    sees_gold: bool = Field(description="gold labels were in the prompt: never for a test-time prompt")
    final_prediction: str | None = Field(default=None, description="the intent that the rationale ends with")
    rationale_text: str | None = Field(default=None, description="the rationale as one text; null where unusable")
    fallback_used: bool = False
    fallback_reason: str | None = None
    rationale: dict[str, Any] | None = Field(default=None, description="output_mode full: the parsed answers")
    asked: list[dict[str, Any]] | None = Field(
        default=None, description="output_mode full: prompt, answer, tokens and cost of each question"
    )


class SftRow(Record):
    """One training or test item of any task: the conversation up to the answer, and the answer."""

    RECORD: ClassVar[str] = "sft/1"
    id: str = Field(min_length=1, description="unique in the file")
    task: str = Field(min_length=1)
    messages: list[Message] = Field(min_length=1)
    target: str | None = Field(description="the answer; null in a test set without references")
    group: str | None = Field(default=None, description="what must not be torn apart by a split: speaker, session, ...")
    source: str | None = Field(default=None, description="data set that the row was mixed from")
    weight: float = Field(default=1.0, gt=0, description="of the row's loss")


class PredictionRow(Record):
    """A model's answers to one item."""

    RECORD: ClassVar[str] = "prediction/1"
    id: str = Field(min_length=1)
    task: str
    outputs: list[str] = Field(min_length=1, description="answers as decoded, special tokens taken off, stripped")
    raw: list[str] = Field(description="the same with special tokens, as they came")
    finish: list[Literal["stop", "length"]] = Field(description="`length`: cut off by max_new_tokens")
    parsed: list[Any] | None = Field(default=None, description="with a JSON schema: the values; null where invalid")
    prompt_tokens: int = Field(ge=0)
    output_tokens: list[int]
    target: str | None = None


class TextRow(Record):
    """A reference or a hypothesis for `utterflow score wer`."""

    RECORD: ClassVar[str] = "text/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str
    text: str


R = TypeVar("R", bound=BaseModel)


def parse_record(kind: type[R], value: dict[str, Any], where: str) -> R:
    """Validate one row.

    Raises:
        UserError: names the place, the field and its value.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "(row)"
        known = ", ".join(kind.model_fields)
        raise UserError(
            f"field `{field}`: {first['msg']} (value: {short(first['input'])})",
            where=where,
            fix=f"a {getattr(kind, 'RECORD', kind.__name__)} row has the fields {known}",
        ) from None


def read_records(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the validated records of a JSON Lines file, one at a time.

    Raises:
        UserError: file, line and field of the first row that does not fit.
    """
    for number, value in read_jsonl(path):
        yield parse_record(kind, value, f"{path}, line {number}")


def short(value: Any, limit: int = 120) -> str:
    """A value for an error message, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
