"""Percentile bootstrap of corpus-level rates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DRAWS_AT_ONCE = 4_000_000


def bootstrap_intervals(
    edits: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    samples: int,
    confidence: float,
    seed: int,
    clusters: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """Intervals of the rates `edits.sum(0) / lengths.sum()`, from the quantiles of `bootstrap_rates`.

    Args:
        edits: [utterances, rates]
        lengths: [utterances], reference length
        clusters: [utterances], number of each one's speaker; the speakers are then the units

    Returns:
        [rates, 2], lower and upper bound; NaN where no rate could be drawn.
    """
    drawn = bootstrap_rates(edits, lengths, samples=samples, seed=seed, clusters=clusters)
    if not len(drawn):
        return np.full((edits.shape[1], 2), np.nan)
    tail = (1 - confidence) / 2
    bounds: npt.NDArray[np.float64] = np.quantile(drawn, [tail, 1 - tail], axis=0).T
    return bounds


def bootstrap_rates(
    edits: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    *,
    samples: int,
    seed: int,
    clusters: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float64]:
    """The rates `edits.sum(0) / lengths.sum()` of resampled corpora.

    Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation": whole
    units are drawn with replacement, as many as there are, and the rate is taken over each draw. All rates
    share their draws. Units with the same counts are drawn together, by a multinomial over the different
    ones, which is the same distribution at a fraction of the cost.

    Args:
        edits: [utterances, rates]; may be negative, as differences of edits are
        lengths: [utterances], reference length
        clusters: [utterances], number of each one's speaker; the speakers are then the units

    Returns:
        [draws, rates]; draws without any reference word have no rate and are left out. No draws with fewer
        than two units or no samples.
    """
    units = np.column_stack([lengths, edits]).astype(np.int64)
    if clusters is not None:
        units = _sum_by(units, clusters)
    if samples == 0 or len(units) < 2:
        return np.empty((0, edits.shape[1]))
    distinct, counts = np.unique(units, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    block = max(1, DRAWS_AT_ONCE // len(distinct))
    rates = []
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = generator.multinomial(len(units), counts / len(units), size=size).astype(np.float64)
        sums = drawn @ distinct.astype(np.float64)
        sums = sums[sums[:, 0] > 0]
        rates.append(sums[:, 1:] / sums[:, :1])
    return np.concatenate(rates)


def _sum_by(units: npt.NDArray[np.int64], clusters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    names, index = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), units.shape[1]), dtype=np.int64)
    np.add.at(sums, index, units)
    return sums
