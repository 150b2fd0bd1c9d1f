"""The corrector's prompt: a template file and a numbered list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from utterflow.errors import UserError
from utterflow.records import Message

PLACEHOLDERS = ("n", "candidates")
EXAMPLE = "write e.g. `Correct these {n} transcriptions:`, then `{candidates}`; a brace as such is written twice"


@dataclass(frozen=True)
class Template:
    """A parsed template: pieces of text, each with the placeholder that follows it, or None."""

    pieces: tuple[tuple[str, str | None], ...]

    def render(self, texts: Sequence[str]) -> str:
        """The prompt with `texts`, best first; `{n}` is their number. Braces in them stay as they are."""
        return _filled(self.pieces, texts).strip()

    def instruction(self, texts: Sequence[str]) -> str:
        """What stands before the list (after it, in a template that begins with the list)."""
        place = next(index for index, (_, name) in enumerate(self.pieces) if name == "candidates")
        head = (*self.pieces[:place], (self.pieces[place][0], None))
        return _filled(head, texts).strip() or _filled(self.pieces[place + 1 :], texts).strip()


def read_template(path: Path) -> Template:
    """Read a template with the placeholders `{n}` and `{candidates}`.

    Raises:
        UserError: the file is missing or no text, a brace has no partner, a placeholder is missing, unknown or has a
            format, or the list stands there twice.
    """
    text = read_text(path, "instruction")
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"unbalanced braces in the template: {error}", where=str(path), fix=EXAMPLE) from None
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in PLACEHOLDERS or spec or conversion):
            raise UserError(f"unknown placeholder `{{{name}}}` in the template", where=str(path), fix=EXAMPLE)
    names = [name for _, name, _, _ in parsed]
    for name in PLACEHOLDERS:
        if name not in names:
            raise UserError(f"the template has no placeholder `{{{name}}}`", where=str(path), fix=EXAMPLE)
    if names.count("candidates") > 1:
        raise UserError("the template has `{candidates}` more than once", where=str(path), fix="keep one of them")
    return Template(tuple((literal, name) for literal, name, _, _ in parsed))


def read_text(path: Path, key: str) -> str:
    """A text file that the configuration's `key` names, without outer white space.

    Raises:
        UserError: it is missing, empty, or not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise UserError("file not found", where=str(path), fix=f"correct `{key}` in the data set") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path), fix="save it as UTF-8") from None
    if not text:
        raise UserError("the file is empty", where=str(path), fix=f"correct `{key}` in the data set")
    return text


def messages(template: Template, system: str | None, texts: Sequence[str]) -> list[Message]:
    """The conversation up to the answer."""
    opening = [Message(role="system", content=system)] if system else []
    return [*opening, Message(role="user", content=template.render(texts))]


def numbered(texts: Sequence[str]) -> str:
    """`1. first`, `2. second`, ..., one per line."""
    return "\n".join(f"{number}. {text}" for number, text in enumerate(texts, start=1))


def _filled(pieces: Sequence[tuple[str, str | None]], texts: Sequence[str]) -> str:
    values = {"n": str(len(texts)), "candidates": numbered(texts)}
    return "".join(literal + (values[name] if name else "") for literal, name in pieces)
