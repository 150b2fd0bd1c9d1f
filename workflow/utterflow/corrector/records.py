"""What a correction scores: the records of its files."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from utterflow.records import Rate, Record

Verdict = Literal["true", "false", "not significant", "not tested"]


class Difference(Record):
    """Error rate of the corrected transcripts less that of a baseline, from a matched-pairs bootstrap."""

    RECORD: ClassVar[str] = "difference/1"
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None = Field(description="two-sided")


class SystemScores(Record):
    """Errors of one way to choose a transcript; in words unless said otherwise, null where it is no transcript."""

    RECORD: ClassVar[str] = "system_scores/1"
    wer: Rate
    edits: int
    hits: int | None
    substitutions: int | None
    deletions: int | None
    insertions: int | None
    character_edits: int | None
    cer: float | None
    sentence_error_rate: float = Field(description="share of utterances with any word edit")


class CorrectionScores(Record):
    """Corrections beside what they were made from, over a data set or a group."""

    RECORD: ClassVar[str] = "correction_scores/1"
    utterances: int = Field(ge=1)
    empty_references: int
    words: int = Field(description="reference words")
    characters: int = Field(description="reference characters")
    systems: dict[str, SystemScores] = Field(
        description="`first` candidate, `mbr` choice, `oracle@n` (best of the first n), `oracle` and "
        "`compositional_oracle` (of the whole list), `answer` of the model, "
        "`corrected` (the answer, or the first candidate after an early rejection)"
    )
    corrected_less_first: Difference
    corrected_less_mbr: Difference
    beats_first: Verdict
    beats_mbr: Verdict
    early_rejections: int = Field(description="answers given up for the first candidate, being far from all candidates")
    cut_off: int = Field(description="answers that ended at max_new_tokens")
    in_list: float = Field(description="share of answers that are one of the candidates")
    changed: float = Field(description="share of corrected transcripts that differ from the first candidate")
    improved: float = Field(description="share with fewer word edits than the first candidate")
    worsened: float = Field(description="share with more word edits than the first candidate")
    mean_candidates: float
    mean_distinct_candidates: float = Field(description="different ones after normalisation")
    cut_lists: int = Field(description="lists that lost candidates to the limit of the prompt")


class BinScores(Record):
    """WER of some systems over utterances of a kind; null without reference words."""

    RECORD: ClassVar[str] = "bin_scores/1"
    low: int
    high: int | None = Field(description="null: no limit")
    utterances: int
    words: int
    wer: dict[str, float | None]


class CorrectionMetrics(Record):
    """The metrics file of one correction under one scoring."""

    RECORD: ClassVar[str] = "correction_metrics/1"
    correction: str
    prediction: str
    scoring: str
    normalizer: str
    confidence: float = Field(description="coverage of the bootstrap intervals; verdicts are at 1 - confidence")
    bootstrap_unit: str = Field(description="`speaker`: the session, else the speaker")
    mbr_weights: Literal["posterior", "uniform"] = Field(description="uniform also where a list has no scores")
    reject_beyond: float | None
    answers_per_prompt: int = Field(description="at most; the first is scored")
    rows: dict[str, int] = Field(description="counts `in`, `out`, `rejected`")
    rejected_before: dict[str, int] = Field(description="rows that earlier stages rejected")
    total: CorrectionScores
    groups: dict[str, CorrectionScores] = Field(description="empty where the data set has no groups")
    by_reference_words: list[BinScores]
    by_distinct_candidates: list[BinScores]


class CorrectionRow(Record):
    """What one utterance scores; counts are in words unless said otherwise, ranks count from 0."""

    RECORD: ClassVar[str] = "correction/1"
    id: str
    group: str | None
    unit: str | None = Field(description="session, else speaker")
    reference: str
    first: str
    mbr: str
    answer: str
    corrected: str
    words: int = Field(description="reference words")
    characters: int = Field(description="reference characters")
    first_edits: int
    mbr_edits: int
    mbr_rank: int
    oracle_edits: int = Field(description="of the whole list")
    oracle_rank: int
    compositional_edits: int
    answer_edits: int
    corrected_edits: int
    distance: float | None = Field(
        description="edits from the answer to the nearest candidate by that one's words; null: more than any share"
    )
    early_rejection: bool
    in_list: bool
    cut_off: bool
    candidates: int
    distinct: int
