"""The records of pronunciation scores."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict, Field

from utterflow.records import Record


class PronunciationRow(Record):
    """A model's predictions for an utterance; each field is read alone, and may be unusable alone."""

    RECORD: ClassVar[str] = "pronunciation/1"
    model_config = ConfigDict(extra="ignore", frozen=True)
    id: str = Field(min_length=1)
    accuracy: Any = Field(default=None, description="0 to 10, as fluency, prosodic and total")
    fluency: Any = None
    prosodic: Any = None
    total: Any = None
    word_transcript: Any = Field(default=None, description="text")
    phoneme_transcript: Any = Field(default=None, description="phones, as text with spaces or as a list")


class Answered(Record):
    """How many utterances have a usable value of a field."""

    RECORD: ClassVar[str] = "pronunciation_answered/1"
    usable: int
    unusable: dict[str, int] = Field(description="the others, by kind of problem; `missing`: no row, no field, or null")


class AspectScores(Record):
    """Agreement of predicted and gold scores of one aspect, over the utterances with a usable prediction."""

    RECORD: ClassVar[str] = "pronunciation_aspect/1"
    n: int
    pcc: float | None = Field(description="Pearson's correlation")
    p_value: float | None = Field(description="two-sided")
    mae: float | None = Field(description="mean absolute error, in points of 0 to 10")
    reason: str | None = Field(description="why there is no correlation")


class EditCounts(Record):
    """Edits that make the reference the prediction, summed over utterances."""

    RECORD: ClassVar[str] = "pronunciation_edits/1"
    length: int = Field(description="reference words or phones")
    substitutions: int
    deletions: int
    insertions: int


class OverlapCounts(Record):
    """Phones of all utterances, and those that prediction and reference share whatever their order."""

    RECORD: ClassVar[str] = "pronunciation_overlap/1"
    shared: int
    predicted: int
    reference: int


class OutcomeCounts(Record):
    """Positions by outcome; TR is CD + DE."""

    RECORD: ClassVar[str] = "pronunciation_outcomes/1"
    TA: int = Field(description="correct, accepted")
    FR: int = Field(description="correct, rejected")
    FA: int = Field(description="mispronounced, accepted")
    TR: int = Field(description="mispronounced, rejected")
    CD: int = Field(description="rejected with the phone that was pronounced")
    DE: int = Field(description="rejected with another phone")


class MddScores(OutcomeCounts):
    """Mispronunciation detection and diagnosis, by alignment; unusable transcripts are empty ones."""

    RECORD: ClassVar[str] = "pronunciation_mdd/1"
    positions: int = Field(description="TA + FR + FA + TR")
    precision: float | None
    recall: float | None
    f1: float | None
    far: float | None = Field(description="false acceptance rate FA/(FA+TR)")
    frr: float | None = Field(description="false rejection rate FR/(TA+FR)")
    der: float | None = Field(description="diagnosis error rate DE/(CD+DE)")
    kinds: dict[str, dict[str, int]] = Field(
        description="outcomes by kind of error: the speaker's; of false rejections the model's"
    )


class PhoneScores(OutcomeCounts):
    """Outcomes at a canonical phone."""

    RECORD: ClassVar[str] = "pronunciation_phone/1"
    phone: str
    spoken: dict[str, int] = Field(description="what speakers said for it, most frequent first; `-`: nothing")
    heard: dict[str, int] = Field(description="what the model wrote for it")


class Confusion(Record):
    """Positions at which speaker or model differ from the canonical phone; null where there is no phone."""

    RECORD: ClassVar[str] = "pronunciation_confusion/1"
    canonical: str | None
    spoken: str | None
    heard: str | None
    count: int


class PublishedDifference(Record):
    """A metric beside a published one."""

    RECORD: ClassVar[str] = "pronunciation_difference/1"
    published: float
    value: float | None
    difference: float | None = Field(description="value - published")
    within: bool | None = Field(description="by no more than 0.05")


class PronunciationScores(Record):
    """All metrics of a file of predictions."""

    RECORD: ClassVar[str] = "pronunciation_scores/1"
    utterances: int = Field(description="gold utterances, all of which count")
    predicted: int = Field(description="those with a row of predictions")
    missing: int = Field(description="those without")
    coverage: float = Field(description="predicted / utterances")
    answered: dict[str, Answered] = Field(description="by field")
    apa: dict[str, AspectScores] = Field(description="by aspect")
    wer: float | None = Field(description="word error rate; null where no row has a usable word_transcript")
    per: float | None = Field(
        description="phone error rate against the phones as pronounced; null where no row has a usable "
        "phoneme_transcript, as what follows"
    )
    mdd: MddScores | None
    paper_f1: float | None = Field(description="of shared phones whatever their order: no measure of detection")
    paper_precision: float | None
    paper_recall: float | None
    word_edits: EditCounts | None
    phone_edits: EditCounts | None
    overlap: OverlapCounts | None
    normalizer: str = Field(description="of the word transcripts")
    confidence: float
    bootstrap_unit: str
    bootstrap_samples: int
    intervals: dict[str, tuple[float, float] | None] = Field(description="by metric; null where it is undefined")
    comparison: dict[str, dict[str, PublishedDifference]] = Field(description="published system -> metric")
    comparison_source: str
    phones: list[PhoneScores] | None = Field(description="by canonical phone; null unless asked for, as the confusions")
    confusions: list[Confusion] | None = Field(description="most frequent first")
