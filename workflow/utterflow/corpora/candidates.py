"""What adapters yield, and the readers they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import parse_object
from utterflow.records import NbestRow, RejectedRow, short

STAGE = "prepare_corpus"
GET_IT = "correct the path or put it there; what `downloads` in the configuration lists is made by Snakemake"


@dataclass(frozen=True)
class Candidate:
    """An utterance as its annotations describe it, before its audio was looked at."""

    id: str
    audio: str
    text: str | None
    where: str
    speaker: str | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


Entry = Candidate | RejectedRow


def reject(id: str, reason: str, where: str) -> RejectedRow:
    """An entry of the annotations that is no utterance; what UTF-8 cannot hold is written as `?`."""
    id, reason, where = (text.encode(errors="replace").decode() for text in (id, reason, where))
    return RejectedRow(id=id, stage=STAGE, reason=reason, where=where)


def require_file(path: str, key: str) -> Path:
    """The annotation file.

    Raises:
        UserError: it is not there.
    """
    if not Path(path).is_file():
        raise UserError(f"no such file: {path} (config key `{key}`)", fix=GET_IT)
    return Path(path)


def require_folder(path: str | Path, key: str) -> Path:
    """The folder.

    Raises:
        UserError: it is not there.
    """
    if not Path(path).is_dir():
        raise UserError(f"no such folder: {path} (config key `{key}`)", fix=GET_IT)
    return Path(path)


def numbered_lines(path: Path) -> Iterator[tuple[int, str | None]]:
    """Yield (number from 1, line without its end and byte order mark); None for a line that is not UTF-8."""
    with path.open("rb") as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield number, None
            else:
                yield number, line.rstrip("\r\n")


def json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | RejectedRow]]:
    """Yield (where, object) for each line of a JSON Lines file, or (where, rejected row)."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        if line is None:
            yield where, reject(f"line {number}", "unreadable: not UTF-8 text", where)
        elif line.strip():
            try:
                yield where, parse_object(line, path, number)
            except UserError as error:
                yield where, reject(f"line {number}", f"unreadable: {error.what}", where)


def scalar(value: Any) -> str | None:
    """A name (id, speaker, group) as text; None where there is none.

    Raises:
        ValueError: the value is a list, an object or the like.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected a name, found {short(value, 60)}")
    return str(value)


def transcript(value: Any) -> str | None:
    """A transcript; None where there is none.

    Raises:
        ValueError: the value is not text.
    """
    if value is None or isinstance(value, str):
        return value or None
    raise ValueError(f"expected a transcript, found {short(value, 60)}")


def extra_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a source record whose names are free in the manifest and n-best records."""
    return {name: value for name, value in record.items() if name not in NbestRow.model_fields}
