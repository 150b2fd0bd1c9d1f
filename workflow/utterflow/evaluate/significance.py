"""Whether one system makes fewer errors than another on the same utterances."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from utterflow.evaluate.bootstrap import bootstrap_rates


class PairedDifference(NamedTuple):
    """Difference of two error rates with interval and two-sided p-value; None where there is none."""

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None


def paired_difference(
    edits: npt.NDArray[np.int64],
    baseline: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    samples: int,
    confidence: float,
    seed: int,
    clusters: npt.NDArray[np.int64] | None = None,
) -> PairedDifference:
    """Error rate of a system less that of a baseline, by a matched-pairs bootstrap.

    Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation", and
    Koehn 2004, "Statistical significance tests for machine translation evaluation": both systems are scored on the
    same draws of utterances. The p-value is twice the share of draws on the rarer side of no difference, draws without
    a difference counted there, with one draw added to both counts so that it is never zero (Davison & Hinkley 1997,
    chapter 4); its smallest value is 2 / (samples + 1).

    Args:
        edits, baseline: [utterances], word edits of the two systems
        lengths: [utterances], reference words
        clusters: [utterances], number of each one's speaker or session; these are then the units
    """
    words = int(lengths.sum())
    if not words:
        return PairedDifference(None, None, None, None)
    value = int((edits - baseline).sum()) / words
    drawn = bootstrap_rates((edits - baseline)[:, None], lengths, samples=samples, seed=seed, clusters=clusters)[:, 0]
    if not len(drawn):
        return PairedDifference(value, None, None, None)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return PairedDifference(value, float(low), float(high), min(1.0, 2 * (rarer + 1) / (len(drawn) + 1)))
