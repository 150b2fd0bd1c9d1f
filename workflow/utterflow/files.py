"""Files: atomic writes, digests and JSON Lines."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utterflow.errors import UserError


@contextmanager
def atomic_writer(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` and rename it to `path` when the block ends well.

    The temporary name holds host, process id and a random part, so that two processes never share one.
    On an exception the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    encoding = None if "b" in mode else "utf-8"
    newline = None if "b" in mode else "\n"
    try:
        with temporary.open(mode, encoding=encoding, newline=newline) as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def seed_of(*parts: str | int) -> int:
    """A 63-bit seed from a row's id and whatever else names the draw; the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, indented, atomically."""
    with atomic_writer(path) as handle:
        json.dump(value, handle, ensure_ascii=False, indent=2, allow_nan=False)
        handle.write("\n")


def json_line(row: Mapping[str, Any]) -> str:
    """One row as it stands in a JSON Lines file."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON Lines, atomically, one at a time; the number of rows written."""
    count = 0
    with atomic_writer(path) as handle:
        for row in rows:
            handle.write(json_line(row))
            count += 1
    return count


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError("file not found", where=str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not valid JSON: {error}", where=str(path)) from None
    except RecursionError:
        raise UserError("not valid JSON: nested too deep", where=str(path)) from None


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line) of a text file; empty lines are skipped.

    Raises:
        UserError: the file is missing, or is not UTF-8 text.
    """
    try:
        handle = path.open(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("file not found", where=str(path)) from None
    with handle:
        number = 0
        try:
            for number, line in enumerate(handle, start=1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text: {error.reason}", where=f"{path}, after line {number}") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON Lines file; empty lines are skipped.

    Raises:
        UserError: the file is missing, or a line is not a JSON object.
    """
    for number, line in text_lines(path):
        yield number, parse_object(line, path, number)


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, but they are not JSON and could not be written again."""
    raise ValueError(f"{name} is not a JSON value")


def parse_object(line: str, path: Path, number: int) -> dict[str, Any]:
    """Parse one line of a JSON Lines file.

    Raises:
        UserError: the line is not a JSON object.
    """
    try:
        value = json.loads(line, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error.msg} at column {error.colno}",
            where=f"{path}, line {number}",
            fix="write one JSON object per line",
        ) from None
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=f"{path}, line {number}", fix="write null") from None
    except RecursionError:
        raise UserError("not valid JSON: nested too deep", where=f"{path}, line {number}") from None
    if not isinstance(value, dict):
        raise UserError(
            f"expected a JSON object, found {type(value).__name__}",
            where=f"{path}, line {number}",
            fix='write one JSON object per line, e.g. {"id": "a", "text": "hello"}',
        )
    return value
