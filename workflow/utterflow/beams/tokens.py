"""The classes of a CTC model: phones, the blank `-` and the separator `|`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from utterflow.errors import UserError
from utterflow.files import text_lines

BLANK = "-"
SEPARATOR = "|"


@dataclass(frozen=True)
class Tokens:
    """Names of the classes in the order of a posterior's columns, with the columns of blank and separator."""

    names: tuple[str, ...]
    blank: int
    separator: int


def read_tokens(path: Path) -> Tokens:
    """Read a tokens file: one token per line, the n-th line names the n-th class.

    Raises:
        UserError: the file is missing or empty, a line holds several tokens, a token stands there twice, or the blank
            `-` or the separator `|` is missing.
    """
    lines: dict[str, int] = {}
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        name = line.strip()
        if len(name.split()) > 1:
            raise UserError(f"several tokens in one line: {name!r}", where=where, fix="write one token per line")
        if name in lines:
            raise UserError(
                f"token {name!r} stands here twice: first in line {lines[name]}", where=where, fix="delete one of them"
            )
        lines[name] = number
    if not lines:
        raise UserError("no tokens in this file", where=str(path), fix="write one token per line")
    names = tuple(lines)
    return Tokens(
        names, blank=_column(names, BLANK, "blank", path), separator=_column(names, SEPARATOR, "separator", path)
    )


def _column(names: tuple[str, ...], name: str, role: str, path: Path) -> int:
    if name not in names:
        raise UserError(
            f"no {role} among the {len(names)} tokens",
            where=str(path),
            fix=f"add a line `{name}` at the place of the {role}'s column in the posteriors",
        )
    return names.index(name)
