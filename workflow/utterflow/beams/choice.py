"""Which trials of a partition are decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from utterflow.records import TrialRow


def choose_trials(
    trials: Iterable[TrialRow], max_samples: int | None, indices: Collection[int] | None
) -> Iterator[TrialRow]:
    """The trials among the partition's first `max_samples` that stand at one of `indices`; None for all."""
    wanted = None if indices is None else frozenset(indices)
    for trial in trials:
        if (max_samples is None or trial.index < max_samples) and (wanted is None or trial.index in wanted):
            yield trial


def missing_positions(
    trials: Iterable[TrialRow], max_samples: int | None, indices: Collection[int] | None, shard: int, shards: int
) -> list[int]:
    """The positions of `indices` that belong to this shard and hold no trial in it."""
    present = {trial.index for trial in trials}
    asked = (index for index in indices or () if max_samples is None or index < max_samples)
    return [index for index in asked if index % shards == shard and index not in present]
