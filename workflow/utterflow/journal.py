"""The journal: finished rows of a costly stage, kept as they come.

One folder per stage and per digest of what makes its results (config and code); one append-only file per writer.
Each line is one finished batch, `{"rows": {row key: result}}`, written with one call and synced, so a killed job
loses at most the batch in flight and a torn last line is simply not there at the next reading.

A file's name tells which rows it can hold: `<scope>-<shard>-of-<shards>-<writer>.jsonl`. With the same scope (the
digest of the input file) and the same number of shards, another shard's files cannot hold this shard's rows and
are not opened: ten thousand shards do not read each other's files.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from utterflow.files import canonical_json


class Journal:
    """Append-only store of one shard's finished rows."""

    def __init__(self, root: Path, stage: str, digest: str, scope: str, shard: int = 0, shards: int = 1) -> None:
        self.folder = root / stage / digest[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._set = f"{scope[:16]}-"
        self._own = f"{scope[:16]}-{shard}-of-{shards}-"
        self._count = f"-of-{shards}-"
        writer = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        self.path = self.folder / f"{self._own}{writer}.jsonl"
        self._descriptor: int | None = None

    def load(self, keys: Collection[str]) -> dict[str, Any]:
        """The results of those of `keys` that an earlier or parallel run has finished."""
        wanted = set(keys)
        found: dict[str, Any] = {}
        files = sorted(path for path in self.folder.glob("*.jsonl") if self._may_hold_own_rows(path.name))
        files.sort(key=lambda path: not path.name.startswith(self._own))
        for path in files:
            if len(found) == len(wanted):
                break
            for rows in _batches(path):
                found.update({key: rows[key] for key in rows.keys() & wanted if key not in found})
        return found

    def append(self, rows: Mapping[str, Any]) -> None:
        """Add one finished batch, whole: on disk when this returns."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        data = (canonical_json({"rows": rows}) + "\n").encode()
        written = 0
        while written < len(data):
            written += os.write(self._descriptor, data[written:])
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _may_hold_own_rows(self, name: str) -> bool:
        same_rows_same_split = name.startswith(self._set) and self._count in name
        return name.startswith(self._own) or not same_rows_same_split


def _batches(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            try:
                rows = json.loads(line)["rows"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(rows, dict):
                yield rows
