"""Rule `gather_nbest`: the shards' n-best lists -> one file in the manifest's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.files import read_json
from utterflow.gather import gather_shards
from utterflow.provenance import Stopwatch, side_file, write_meta
from utterflow.records import ManifestRow, NbestRow, RejectedRow, read_records


def gather_nbest(
    *,
    manifest: Path,
    shards: Sequence[Path],
    rejected_shards: Sequence[Path],
    cfg: Mapping[str, Any],
    code: str,
    nbest: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Put the shards' rows back into the manifest's order; memory does not grow with the corpus.

    Raises:
        UserError: a row of the manifest is in no shard, or a shard holds a row that the manifest does not.
    """
    watch = Stopwatch()
    rows = enumerate(read_records(manifest, ManifestRow))
    order = ((place % len(shards), row.id) for place, row in rows)
    counts = gather_shards(order, shards, rejected_shards, nbest, rejected)
    parts = [read_json(side_file(path)) for path in shards]
    write_meta(
        meta,
        rule="gather_nbest",
        cfg=cfg,
        code=code,
        inputs=[manifest, *shards],
        outputs={NbestRow.RECORD: nbest, RejectedRow.RECORD: rejected},
        seconds=round(sum(part["seconds"] for part in parts), 3),
        rows=counts,
        device=", ".join(sorted({part["device"] for part in parts})),
        extra={
            "gather_seconds": watch.seconds(),
            "audio_seconds": round(sum(part["audio_seconds"] for part in parts), 3),
            "from_journal": sum(part["rows"]["from_journal"] for part in parts),
        },
    )
