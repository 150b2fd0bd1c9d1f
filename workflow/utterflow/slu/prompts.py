"""Prompts for spoken commands: template files with named fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from utterflow.corrector.prompt import read_text
from utterflow.errors import UserError
from utterflow.records import Message, Noise

Task = Literal["slu", "ras"]
Piece = tuple[str, str | None]

EVIDENCE = ("n", "candidates", "intents", "slot_types")
# What a `<ras>` prompt asks for is the rationale: it cannot hold it.
FIELDS: Mapping[Task, tuple[str, ...]] = {"slu": (*EVIDENCE, "rationale"), "ras": EVIDENCE}
BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Template:
    """A parsed template: paragraphs of pieces of text, each with the field that follows it, or None."""

    paragraphs: tuple[tuple[Piece, ...], ...]

    @property
    def fields(self) -> frozenset[str]:
        """The fields that stand in it."""
        return frozenset(name for pieces in self.paragraphs for _, name in pieces if name)

    def render(self, values: Mapping[str, str]) -> str:
        """The text with its fields filled in; braces in values stay as they are.

        A paragraph whose fields are all empty is left out.
        """
        return "\n\n".join(_filled(pieces, values) for pieces in self.paragraphs if _wanted(pieces, values))


def read_template(path: Path, task: Task, needed: Sequence[str] = ()) -> Template:
    """Read a template with the fields of `FIELDS[task]`; blank lines part its paragraphs.

    Raises:
        UserError: the file is missing or no text, a brace has no partner, a field is unknown, has a format, or is
            missing though `needed`.
    """
    known = ", ".join(f"{{{name}}}" for name in FIELDS[task])
    paragraphs = []
    for text in BLANK_LINES.split(read_text(path, f"{task}_prompt")):
        try:
            parsed = list(Formatter().parse(text))
        except ValueError as error:
            raise UserError(
                f"unbalanced braces in the template: {error}",
                where=str(path),
                fix="a brace as such is written twice: {{ or }}",
            ) from None
        for _, name, spec, conversion in parsed:
            if name is not None and (name not in FIELDS[task] or spec or conversion):
                raise UserError(
                    f"unknown field `{{{name}}}` in the template of <{task}> prompts",
                    where=str(path),
                    fix=f"the fields are {known}; a brace as such is written twice",
                )
        paragraphs.append(tuple((literal, name) for literal, name, _, _ in parsed))
    template = Template(tuple(paragraphs))
    for name in needed:
        if name not in template.fields:
            raise UserError(
                f"the template of <{task}> prompts has no field `{{{name}}}`, and the data set shows it",
                where=str(path),
                fix=f"the fields are {known}",
            )
    return template


def conversation(task: Task, text: str, *, system: str | None, audio: str | None, noise: Noise | None) -> list[Message]:
    """The conversation up to the answer: the recording, if any, then the task's tag and the text."""
    opening = [Message(role="system", content=system)] if system else []
    prompt = f"<{task}>\n{text}"
    if audio is None:
        return [*opening, Message(role="user", content=prompt)]
    recording: dict[str, Any] = {"type": "audio", "path": audio, **({"noise": noise.row()} if noise else {})}
    return [*opening, Message(role="user", content=[recording, {"type": "text", "text": prompt}])]


def _wanted(pieces: Sequence[Piece], values: Mapping[str, str]) -> bool:
    names = [name for _, name in pieces if name]
    return not names or any(values[name] for name in names)


def _filled(pieces: Sequence[Piece], values: Mapping[str, str]) -> str:
    return "".join(literal + (values[name] if name else "") for literal, name in pieces).strip()
