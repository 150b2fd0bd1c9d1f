"""Section `scoring`: how n-best lists are evaluated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from utterflow.config.base import MaxRejected, Section, key

SCORE = "score_asr, score_corrections"

ListLength = Annotated[int, Field(ge=1, le=1000)]
Normalizer = Literal["whisper_english", "basic", "brain2text", "none"]


class Bootstrap(Section):
    """Percentile bootstrap intervals."""

    samples: int = key(1000, "resamples; 0: no intervals", SCORE, ge=0, le=100_000)
    unit: Literal["utterance", "speaker"] = key("utterance", "what is resampled", SCORE)
    confidence: float = key(0.95, "coverage of the interval", SCORE, gt=0, lt=1)
    seed: int = key(42, "seed of the resampling", SCORE, ge=0)


class Scoring(Section):
    """One way to score."""

    normalizer: Normalizer = key(
        "whisper_english",
        "text normalisation before scoring: Whisper's English one, `basic` (lower case, punctuation to "
        "space), `brain2text` (the benchmark's), or `none`",
        SCORE,
    )
    oracle_at: tuple[ListLength, ...] = key((1, 2, 5), "list lengths n of the oracle WER@n", SCORE, min_length=1)
    mbr_weights: Literal["posterior", "uniform"] = key(
        "posterior",
        "votes of the minimum-Bayes-risk choice: `posterior` (softmax of the hypotheses' scores) or all alike",
        SCORE,
    )
    bootstrap: Bootstrap = Field(default_factory=Bootstrap, description="confidence intervals")
    max_rejected: MaxRejected = key(
        0.01, "the stage fails when a larger share of rows has no reference to score against", SCORE
    )
