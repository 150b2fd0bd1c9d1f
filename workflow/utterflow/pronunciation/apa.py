"""Automatic pronunciation assessment: predicted scores against the annotators'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ASPECTS = ("accuracy", "fluency", "prosodic", "total")
LOWEST, HIGHEST = 0.0, 10.0


class Agreement(NamedTuple):
    """Pearson's correlation, its p-value and the mean absolute error; None where undefined, `reason` says why."""

    pcc: float | None
    p_value: float | None
    mae: float | None
    reason: str | None


def agreement(gold: Sequence[float], predicted: Sequence[float]) -> Agreement:
    """How predicted scores of one aspect agree with gold ones, utterance by utterance.

    The p-value is two-sided, for no correlation (scipy's `pearsonr`).
    """
    if not len(gold):
        return Agreement(None, None, None, "no utterance has a usable score")
    mae = float(np.mean(np.abs(np.subtract(gold, predicted))))
    if len(gold) < 2:
        return Agreement(None, None, mae, "only one utterance has a usable score")
    for name, values in {"predicted": predicted, "gold": gold}.items():
        if min(values) == max(values):
            return Agreement(None, None, mae, f"all {name} scores are {values[0]:g}")
    from scipy.stats import pearsonr

    found = pearsonr(gold, predicted)
    return Agreement(float(found.statistic), float(found.pvalue), mae, None)
