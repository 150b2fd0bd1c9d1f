"""What understood commands score: the records of its files."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from utterflow.records import Rate, Record


class SluScores(Record):
    """SLURP's metrics, as fractions; the names are those that the command line prints."""

    RECORD: ClassVar[str] = "slu_scores/1"
    scenario_f1: float
    action_f1: float
    intent_f1: float = Field(description="of `scenario_action`; its micro average is the intent accuracy")
    entity_f1: float = Field(description="exact (type, filler)")
    word_f1: float = Field(description="entities by type, softened by the word error rate of their fillers")
    char_f1: float = Field(description="the same with the character distance")
    slu_f1: float = Field(description="of the summed counts of both")


class AveragedScores(Record):
    """The metrics under both averages."""

    RECORD: ClassVar[str] = "averaged_scores/1"
    micro: SluScores
    macro: SluScores


class EntityScores(Record):
    """Exact (type, filler) matches."""

    RECORD: ClassVar[str] = "entity_scores/1"
    precision: float
    recall: float
    f1: float
    true_positives: int
    false_positives: int
    false_negatives: int


class SlotScores(EntityScores):
    """Entities of one type."""

    RECORD: ClassVar[str] = "slot_scores/1"
    slu_f1: float


class ScenarioScores(Record):
    """Commands of one gold scenario."""

    RECORD: ClassVar[str] = "scenario_scores/1"
    rows: int
    scenario_accuracy: float
    intent_accuracy: float
    entity_f1: float
    slu_f1: float


class Intervals(Record):
    """Micro averages with their bootstrap intervals."""

    RECORD: ClassVar[str] = "slu_intervals/1"
    intent_accuracy: Rate
    entity_f1: Rate
    slu_f1: Rate


class Baseline(AveragedScores):
    """What the most frequent intent and no entities score on the same rows."""

    RECORD: ClassVar[str] = "slu_baseline/1"
    scenario: str
    action: str


class SluMetrics(AveragedScores):
    """The metrics file of one understanding. `micro` and `macro` are the official numbers, over the scored rows."""

    RECORD: ClassVar[str] = "slu_metrics/1"
    understanding: str
    prediction: str
    by: Literal["file", "slurp_id"]
    average: Literal["micro", "macro"] = Field(description="which of both the report shows for the intent")
    confidence: float = Field(description="coverage of the bootstrap intervals")
    bootstrap_unit: str
    answers_per_prompt: int = Field(description="the first one is scored")
    rows: dict[str, int] = Field(description="counts `in` (of the data set), `out` (scored), `rejected`")
    rejected_before: dict[str, int] = Field(description="rows that earlier stages rejected")
    gold: int = Field(description="recordings (or sentences) with gold labels")
    scored: int = Field(description="those of them with a prediction")
    coverage: float = Field(description="`scored` by `gold`")
    without_gold: int = Field(description="rows without gold labels; left out")
    without_prediction: int = Field(description="rows with gold labels and no prediction")
    without_key: int = Field(description="rows with gold labels that name no recording (or sentence); left out")
    repeated: int = Field(description="rows whose recording (or sentence) a later row has too: that one is scored")
    unparsable: int = Field(description="scored answers without labels: wrong in everything")
    cut_off: int = Field(description="scored answers that ended at max_new_tokens")
    strict: AveragedScores = Field(description="with a missing prediction taken as wrong")
    entities: EntityScores = Field(description="exact matches, micro")
    intervals: Intervals
    majority: Baseline | None = Field(description="null where the data set names no `labels`")
    scenarios: dict[str, ScenarioScores]
    slots: dict[str, SlotScores] = Field(description="by type, of gold and predicted entities")


class Labels(Record):
    """Parsed labels of an answer."""

    RECORD: ClassVar[str] = "slu_labels/1"
    scenario: str
    action: str
    entities: list[dict[str, str]]


class UnderstoodRow(Record):
    """One answer beside what it was made from."""

    RECORD: ClassVar[str] = "understood/1"
    id: str
    slurp_id: int | str | None
    file: str | None
    hypotheses: list[str] = Field(description="n-best list, best first")
    rationale: str | None
    raw_output: str = Field(description="the answer as it came")
    labels: Labels | None
    problem: str | None = Field(description="why the answer holds no labels")
    cut_off: bool


class SluScoredRow(Record):
    """What one answer scores."""

    RECORD: ClassVar[str] = "slu_scored/1"
    id: str
    key: str = Field(description="recording or sentence")
    speaker: str | None
    group: str | None
    gold_intent: str
    predicted_intent: str | None = Field(description="null where the answer holds no labels")
    scenario_correct: bool
    action_correct: bool
    intent_correct: bool
    entity_true_positives: int
    entity_false_positives: int
    entity_false_negatives: int
    slu_true_positives: float
    slu_false_positives: float
    slu_false_negatives: float


class GoldToken(Record):
    """A token of a SLURP annotation."""

    RECORD: ClassVar[str] = "slurp_token/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    surface: str


class GoldSlot(Record):
    """An entity of a SLURP annotation."""

    RECORD: ClassVar[str] = "slurp_slot/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    type: str
    span: list[int] = Field(description="places of its tokens, from 0")


class GoldRecording(Record):
    """A recording of a SLURP annotation."""

    RECORD: ClassVar[str] = "slurp_recording/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    file: str


class GoldRow(Record):
    """A SLURP annotation, as far as the metrics use it."""

    RECORD: ClassVar[str] = "slurp/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    slurp_id: int | str | None = None
    scenario: str
    action: str
    tokens: list[GoldToken]
    entities: list[GoldSlot]
    recordings: list[GoldRecording] = Field(default_factory=list)


class PredictedEntity(Record):
    """An entity of a row in SLURP's prediction format."""

    RECORD: ClassVar[str] = "slurp_entity/1"
    model_config = ConfigDict(extra="allow", frozen=True)
    type: str
    filler: str


class PredictedRow(Record):
    """A row in SLURP's prediction format."""

    RECORD: ClassVar[str] = "slurp_prediction/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    file: str | None = None
    slurp_id: int | str | None = None
    scenario: str
    action: str
    entities: list[PredictedEntity]
