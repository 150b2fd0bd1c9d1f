"""What is counted of rationales: the records of their metrics."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from utterflow.records import Record


class QuestionCounts(Record):
    """One of the questions that are asked per row."""

    RECORD: ClassVar[str] = "rationale_question/1"
    asked: int = Field(description="rows")
    tries: int = Field(description="answers, those to repair questions among them")
    valid: int = Field(description="rows whose answer passed its checks, at the first or a further try")
    unanswered: int = Field(description="rows without any answer")
    fallbacks: int = Field(description="rows whose answer a rule made; none in a single stage")
    fallback_share: float | None = Field(description="of the rows asked")
    input_tokens: int
    cached_tokens: int = Field(description="of the input, those that the server had cached")
    output_tokens: int
    reasoning_tokens: int = Field(description="of the output")
    cost: float | None


class SlotCounts(Record):
    """How slots show in the evidence."""

    RECORD: ClassVar[str] = "rationale_slots/1"
    gold: int = Field(description="gold slots of all rows that have labels")
    heard: int | None = Field(description="of these, fillers that a shown hypothesis holds; null with recordings")
    heard_share: float | None
    grounded: int = Field(description="gold slots that the model itself supports with just these words")
    grounded_share: float | None
    spans: int = Field(description="slots that the model itself supports")
    spans_heard: int | None = Field(description="of these, spans that the named hypothesis (or any) really holds")
    spans_heard_share: float | None


class RationaleMetrics(Record):
    """The metrics file of one rationale with one list length."""

    RECORD: ClassVar[str] = "rationale_metrics/1"
    rationale: str
    k: int
    backend: str
    model: str = Field(description="as the server has it, or the checkpoint's folder or hub name")
    evidence: str
    stages: str
    gold: bool
    intents: int = Field(description="of the inventory")
    slot_types: int
    rows: dict[str, int] = Field(description="counts `in`, `out`, `rejected`")
    valid: int = Field(description="rows whose answer (of two stages: the list of intents) passed its checks")
    valid_share: float | None
    labelled: int = Field(description="rows with a gold intent")
    agreeing: int = Field(description="of these, rationales that end with it")
    agreeing_share: float | None
    fallback: int = Field(description="rows with any answer made by rule")
    fallback_share: float | None
    slots: SlotCounts
    questions: dict[str, QuestionCounts]
    tries: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: float | None = Field(description="of all answers, at the configured prices; null without prices")
    currency: str | None
    seconds: float = Field(description="of all jobs together, in the run that wrote this")
