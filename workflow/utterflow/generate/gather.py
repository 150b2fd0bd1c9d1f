"""Rule `gather_predictions`: the shards' answers -> one file in the dataset's order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.files import read_json
from utterflow.gather import gather_shards
from utterflow.provenance import Stopwatch, side_file, write_meta
from utterflow.records import PredictionRow, RejectedRow, SftRow, read_records

COUNTS = ("prompt_tokens", "output_tokens", "answers", "cut_off", "invalid_json")


def gather_predictions(
    *,
    sft: Path,
    shards: Sequence[Path],
    rejected_shards: Sequence[Path],
    cfg: Mapping[str, Any],
    code: str,
    predictions: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Put the shards' rows back into the dataset's order.

    Raises:
        UserError: a row of the dataset is in no shard, or a shard holds a row that the dataset does not.
    """
    watch = Stopwatch()
    counts = gather_shards(_order(sft, len(shards)), shards, rejected_shards, predictions, rejected, str(sft))
    parts = [read_json(side_file(path)) for path in shards]
    write_meta(
        meta,
        rule="gather_predictions",
        cfg=cfg,
        code=code,
        inputs=[sft, *shards],
        outputs={PredictionRow.RECORD: predictions, RejectedRow.RECORD: rejected},
        seconds=round(sum(part["seconds"] for part in parts), 3),
        rows=counts,
        device=", ".join(sorted({part["device"] for part in parts})),
        extra={
            "gather_seconds": watch.seconds(),
            "from_journal": sum(part["rows"]["from_journal"] for part in parts),
            **{name: sum(part[name] for part in parts) for name in COUNTS},
            **{name: parts[0][name] for name in ("model", "model_digest", "adapter", "adapter_digest", "dtype")},
        },
    )


def _order(sft: Path, shards: int) -> Iterator[tuple[int, str]]:
    """Row i of the dataset is in shard i modulo `shards`."""
    for index, row in enumerate(read_records(sft, SftRow)):
        yield index % shards, row.id
