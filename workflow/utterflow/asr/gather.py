"""Rule `gather_nbest`: the shards' n-best lists -> one file in the manifest's order."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import atomic_writer, parse_object, read_json
from utterflow.provenance import Stopwatch, side_file, write_meta
from utterflow.records import ManifestRow, NbestRow, RejectedRow, read_records

BYTES_IN_MEMORY = 100_000_000  # of all shards together


class ShardReader:
    """A shard's file read a few lines at a time, closed in between: thousands of shards stay within the limits."""

    def __init__(self, path: Path, block_bytes: int) -> None:
        self.path, self._block_bytes, self._offset = path, block_bytes, 0
        self._buffer: deque[str] = deque()
        self._row: str | None = None
        self.advance()

    @property
    def row_id(self) -> str | None:
        """The id of the row in sight; None at the end."""
        return self._row

    def take(self) -> str:
        """The line in sight; the next one comes into sight."""
        line = self._buffer.popleft()
        self.advance()
        return line

    def advance(self) -> None:
        if not self._buffer:
            with self.path.open("rb") as handle:
                handle.seek(self._offset)
                block = handle.readlines(self._block_bytes)
            self._offset += sum(map(len, block))
            self._buffer.extend(line.decode("utf-8") for line in block)
        self._row = str(parse_object(self._buffer[0], self.path, 0)["id"]) if self._buffer else None


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
    counts = {"in": 0, "out": 0, "rejected": 0}
    block_bytes = max(1, BYTES_IN_MEMORY // len(shards))
    good_readers = [ShardReader(path, block_bytes) for path in shards]
    bad_readers = [ShardReader(path, block_bytes) for path in rejected_shards]
    with atomic_writer(nbest) as good, atomic_writer(rejected) as bad:
        for row in read_records(manifest, ManifestRow):
            turn = counts["in"] % len(shards)
            counts["in"] += 1
            if good_readers[turn].row_id == row.id:
                good.write(good_readers[turn].take())
                counts["out"] += 1
            elif bad_readers[turn].row_id == row.id:
                bad.write(bad_readers[turn].take())
                counts["rejected"] += 1
            else:
                raise UserError(
                    f"row {row.id!r} of the manifest is missing from its shard",
                    where=str(shards[turn]),
                    fix="delete that file and start again: finished rows are in the journal",
                )
        for reader in [*good_readers, *bad_readers]:
            if reader.row_id is not None:
                raise UserError(f"row {reader.row_id!r} is not in the manifest", where=str(reader.path))
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
