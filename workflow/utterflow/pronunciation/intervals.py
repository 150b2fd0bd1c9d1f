"""Bootstrap intervals of metrics that are functions of sums over utterances."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from utterflow.evaluate.bootstrap import DRAWS_AT_ONCE

Array = npt.NDArray[np.float64]
Sums = Mapping[str, Array]
# A sum of squares that is smaller, in relation to its terms, is rounding: the values are all alike.
ALIKE = 1e-12


def bootstrap(
    columns: Mapping[str, Array],
    metrics: Callable[[Sums], dict[str, Array]],
    *,
    samples: int,
    confidence: float,
    seed: int,
    clusters: npt.NDArray[np.int64] | None = None,
) -> dict[str, tuple[float, float] | None]:
    """Percentile intervals; whole utterances (or speakers) are drawn with replacement, as many as there are.

    Bisani & Ney 2004, as `evaluate.bootstrap`. All metrics share their draws; draws in which a metric is undefined
    are left out of its interval.

    Args:
        columns: name -> [utterances], what is summed.
        metrics: from sums, each [draws], the metrics, each [draws]; NaN where undefined.
        clusters: [utterances], number of each one's speaker.

    Returns:
        Metric -> (lower, upper); None with no draw in which it is defined, fewer than two units or no samples.
    """
    table = np.column_stack(list(columns.values()))
    names = list(metrics({name: np.zeros(1) for name in columns}))
    if clusters is not None:
        groups, index = np.unique(clusters, return_inverse=True)
        table = np.array([table[index == group].sum(0) for group in range(len(groups))])
    units = len(table)
    if samples == 0 or units < 2:
        return dict.fromkeys(names)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[Array]] = {name: [] for name in names}
    block = max(1, DRAWS_AT_ONCE // units)
    for start in range(0, samples, block):
        weights = generator.multinomial(units, np.full(units, 1 / units), size=min(block, samples - start))
        sums = weights.astype(np.float64) @ table
        for name, values in metrics(dict(zip(columns, sums.T, strict=True))).items():
            drawn[name].append(values)
    return {name: _interval(np.concatenate(values), confidence) for name, values in drawn.items()}


def _interval(values: Array, confidence: float) -> tuple[float, float] | None:
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def divide(part: Array, whole: Array) -> Array:
    """`part / whole`, NaN where `whole` is 0."""
    result = np.full(np.shape(whole), np.nan)
    np.divide(part, whole, out=result, where=np.asarray(whole) > 0)
    return result


def correlation(sums: Sums, name: str) -> Array:
    """Pearson's correlation from `{name}.n`, `.x`, `.y`, `.xx`, `.yy`, `.xy`; NaN where a side has one value only."""
    n, x, y = (sums[f"{name}.{part}"] for part in ("n", "x", "y"))
    spread = [sums[f"{name}.{part * 2}"] - divide(total**2, n) for part, total in (("x", x), ("y", y))]
    both = sums[f"{name}.xy"] - divide(x * y, n)
    for part, values in zip(("xx", "yy"), spread, strict=True):
        values[values <= ALIKE * sums[f"{name}.{part}"]] = np.nan
    result: Array = np.clip(both / np.sqrt(spread[0] * spread[1]), -1.0, 1.0)
    return result
