"""Rule `gather_beams`: the shards' lists -> one file in the partition's order."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.beams.choice import choose_trials
from utterflow.files import parse_object, read_json
from utterflow.gather import ShardReader, gather_shards, open_shards
from utterflow.provenance import Stopwatch, side_file, write_meta
from utterflow.records import BeamsRow, RejectedRow, TrialRow, parse_record


def gather_beams(
    *,
    trials: Sequence[Path],
    shards: Sequence[Path],
    rejected_shards: Sequence[Path],
    cfg: Mapping[str, Any],
    code: str,
    beams: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Put the shards' rows into the order of the trials' positions; memory does not grow with the partition.

    Args:
        trials: the shards' trials, in the order of `shards`.
        cfg: `max_samples` and `trial_indices`, which chose among them.

    Raises:
        UserError: a chosen trial is in no shard, or a shard holds a row that is no chosen trial.
    """
    watch = Stopwatch()
    order = trial_order(trials, cfg["max_samples"], cfg["trial_indices"])
    counts = gather_shards(order, shards, rejected_shards, beams, rejected, "the trials")
    parts = [read_json(side_file(path)) for path in shards]
    lists = {name: sum(part["lists"][name] for part in parts) for name in parts[0]["lists"]}
    write_meta(
        meta,
        rule="gather_beams",
        cfg=cfg,
        code=code,
        inputs=[*trials, *shards],
        outputs={BeamsRow.RECORD: beams, RejectedRow.RECORD: rejected},
        seconds=round(sum(part["seconds"] for part in parts), 3),
        rows=counts,
        extra={
            "gather_seconds": watch.seconds(),
            "lists": lists,
            "from_journal": sum(part["rows"]["from_journal"] for part in parts),
        },
    )


def trial_order(
    trials: Sequence[Path], max_samples: int | None, indices: Sequence[int] | None
) -> Iterator[tuple[int, str]]:
    """Shard and id of each chosen trial, by its position in the partition."""
    readers = open_shards(trials)
    streams = [_places(reader, shard, max_samples, indices) for shard, reader in enumerate(readers)]
    return ((shard, name) for _, shard, name in heapq.merge(*streams))


def _places(
    reader: ShardReader, shard: int, max_samples: int | None, indices: Sequence[int] | None
) -> Iterator[tuple[int, int, str]]:
    for trial in choose_trials(_trials(reader), max_samples, indices):
        yield trial.index, shard, trial.id


def _trials(reader: ShardReader) -> Iterator[TrialRow]:
    while reader.row_id is not None:
        yield parse_record(TrialRow, parse_object(reader.take(), reader.path, 0), str(reader.path))
