"""Shards, and what every stage with shards does at its end: one file of all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utterflow.errors import UserError
from utterflow.files import atomic_writer, parse_object

BYTES_IN_MEMORY = 100_000_000  # of all shards together


@dataclass(frozen=True)
class Shard:
    """Job `index` of `count`: takes rows index, index + count, ..."""

    index: int
    count: int


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


def open_shards(paths: Sequence[Path]) -> list[ShardReader]:
    """A reader of each file; together they hold about `BYTES_IN_MEMORY`."""
    block_bytes = max(1, BYTES_IN_MEMORY // max(1, len(paths)))
    return [ShardReader(path, block_bytes) for path in paths]


def gather_shards(
    order: Iterable[tuple[int, str]],
    shards: Sequence[Path],
    rejected_shards: Sequence[Path],
    out: Path,
    rejected: Path,
    source: str = "the manifest",
) -> dict[str, int]:
    """Put the shards' rows into one order; memory does not grow with their number.

    Args:
        order: the shard and the id of each row, in the order of `out`; within a shard the order of its files.
        source: what `order` comes from, for messages.

    Returns:
        Counts `in`, `out`, `rejected`.

    Raises:
        UserError: a row of `order` is not in its shard, or a shard holds a row that is not in `order`.
    """
    counts = {"in": 0, "out": 0, "rejected": 0}
    good_readers, bad_readers = open_shards(shards), open_shards(rejected_shards)
    with atomic_writer(out) as good, atomic_writer(rejected) as bad:
        for shard, row in order:
            counts["in"] += 1
            if good_readers[shard].row_id == row:
                good.write(good_readers[shard].take())
                counts["out"] += 1
            elif bad_readers[shard].row_id == row:
                bad.write(bad_readers[shard].take())
                counts["rejected"] += 1
            else:
                raise UserError(
                    f"row {row!r} of {source} is missing from its shard",
                    where=str(shards[shard]),
                    fix="delete that file and start again: finished rows are in the journal",
                )
        for reader in [*good_readers, *bad_readers]:
            if reader.row_id is not None:
                raise UserError(f"row {reader.row_id!r} is not in {source}", where=str(reader.path))
    return counts
