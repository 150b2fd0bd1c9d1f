"""The prompts of a rationale: Jinja templates in a folder, an example, and what they are filled with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.runtime import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from utterflow.corrector.prompt import numbered
from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.rationale.answers import ONE_STAGE, Grounding, Ruled, Shape
from utterflow.rationale.evidence import Case
from utterflow.rationale.files import FEW_SHOT, SYSTEM
from utterflow.records import Entity, Message, short
from utterflow.slu.labels import Inventory

CHOICES = 5
# What a template's own expressions raise beside Jinja's errors.
TEMPLATE_FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class Example(BaseModel):
    """A worked example of the file `few_shot.json`: a command, its labels, and good answers to all questions."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    transcript: str = Field(min_length=1, description="what one hears; shown where the evidence is a recording")
    hypotheses: list[str] = Field(min_length=1)
    intent: str
    slots: list[Entity]
    topk_intents: list[str]
    intent_elimination: list[Ruled]
    final_prediction: str
    intent_rationalization: str
    topk_slot_types: list[str]
    slot_grounding: list[Grounding]
    slot_rationalization: str

    def answer(self, shape: Shape, *, audio: bool) -> str:
        """The good answer to a question, as JSON."""
        value = self.model_dump(mode="json", include=set(shape.keys))
        if shape is ONE_STAGE:
            named = {slot.type for slot in self.slots}
            value["slot_grounding"] = [item for item in value["slot_grounding"] if item["slot_type"] in named]
        if audio and "slot_grounding" in value:
            value["slot_grounding"] = [{**item, "source_hypothesis": None} for item in value["slot_grounding"]]
        return json.dumps({name: value[name] for name in shape.keys}, ensure_ascii=False)


@dataclass(frozen=True)
class Prompts:
    """The templates of the questions, by their names, and what is the same in all rows."""

    system: str
    templates: Mapping[str, Template]
    examples: tuple[Example, ...]
    inventory: Inventory
    shown: dict[tuple[str, bool], list[dict[str, str]]] = field(default_factory=dict)  # examples, made once

    def messages(self, shape: Shape, case: Case, **proposed: Sequence[str]) -> tuple[Message, ...]:
        """The conversation up to the answer.

        Args:
            proposed: `topk_intents` or `topk_slot_types`, where the question is about them.

        Raises:
            UserError: the template cannot be filled.
        """
        prompt = self._rendered(shape, case, proposed)
        parts: str | list[dict[str, Any]] = prompt
        if case.recording:
            parts = [{"type": "audio", **case.recording}, {"type": "text", "text": prompt}]
        opening = [Message(role="system", content=self.system)] if self.system else []
        return (*opening, Message(role="user", content=parts))

    def _rendered(self, shape: Shape, case: Case, proposed: Mapping[str, Sequence[str]]) -> str:
        audio = case.recording is not None
        template = self.templates[shape.name]
        try:
            return template.render(
                audio=audio,
                hypotheses=numbered(case.hypotheses),
                reference=case.reference
                and {
                    "intent": case.reference.intent,
                    "slots": slots_text(case.reference.slots),
                    "slot_types": ", ".join(case.reference.slot_types) or "none",
                },
                intents=self.inventory.intents,
                slot_types=self.inventory.slot_types,
                intent_count=intent_count(self.inventory),
                slot_count=slot_count(self.inventory, case),
                examples=self._shown_examples(shape, audio),
                **proposed,
            ).strip()
        except (TemplateError, *TEMPLATE_FAULTS) as error:
            raise UserError(
                f"the template cannot be filled: {error}",
                where=str(template.filename),
                fix="docs/rationale.md lists what a template can use",
            ) from None

    def _shown_examples(self, shape: Shape, audio: bool) -> list[dict[str, str]]:
        key = shape.name, audio
        if key not in self.shown:
            self.shown[key] = [_shown(example, shape, audio=audio) for example in self.examples]
        return self.shown[key]


def read_prompts(files: Sequence[Path], inventory: Inventory) -> Prompts:
    """The prompts of the files that a rationale uses: `system.txt`, templates, and `few_shot.json` where it has one.

    Raises:
        UserError: a file is missing, is no template, or the example does not fit its record.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    named = {path.name: path for path in files}
    templates = [path for name, path in named.items() if name not in (SYSTEM, FEW_SHOT)]
    return Prompts(
        system=_read_text(named[SYSTEM]),
        templates={path.stem: _read_template(path, environment) for path in templates},
        examples=_read_examples(named[FEW_SHOT]) if FEW_SHOT in named else (),
        inventory=inventory,
    )


def intent_count(inventory: Inventory) -> int:
    """How many intents an answer lists: 5, or as many as there are."""
    return min(CHOICES, len(inventory.intents))


def slot_count(inventory: Inventory, case: Case) -> int:
    """How many slot types an answer lists: 5, or as many as there are; more where the reference has more."""
    shown = len(case.reference.slot_types) if case.reference else 0
    return max(min(CHOICES, len(inventory.slot_types)), shown)


def slots_text(slots: Sequence[Entity]) -> str:
    """`type = filler; type = filler`, or `none`."""
    return "; ".join(f"{slot.type} = {slot.filler}" for slot in slots) or "none"


def _shown(example: Example, shape: Shape, *, audio: bool) -> dict[str, str]:
    return {
        "transcript": example.transcript,
        "hypotheses": numbered(example.hypotheses),
        "intent": example.intent,
        "slots": slots_text(example.slots),
        "slot_types": ", ".join(dict.fromkeys(slot.type for slot in example.slots)) or "none",
        "topk_intents": ", ".join(example.topk_intents),
        "topk_slot_types": ", ".join(example.topk_slot_types),
        "answer": example.answer(shape, audio=audio),
    }


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        raise UserError(
            "file not found", where=str(path), fix="`prompts` names a folder; docs/rationale.md lists its files"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path), fix="save it as UTF-8") from None


def _read_template(path: Path, environment: ImmutableSandboxedEnvironment) -> Template:
    text = _read_text(path)
    if not text:
        raise UserError("the template is empty", where=str(path), fix="write a question; docs/rationale.md says how")
    try:
        template = environment.from_string(text)
    except TemplateSyntaxError as error:
        raise UserError(
            f"not a Jinja template: {error.message}",
            where=f"{path}, line {error.lineno}",
            fix="docs/rationale.md lists what a template can use",
        ) from None
    template.filename = str(path)
    return template


def _read_examples(path: Path) -> tuple[Example, ...]:
    fix = "write a list of examples as in workflow/prompts/rationale/few_shot.json, or set `few_shot: false`"
    if not path.is_file():
        raise UserError("file not found", where=str(path), fix=fix)
    value = read_json(path)
    if not isinstance(value, list) or not value:
        raise UserError("expected a list of examples", where=str(path), fix=fix)
    try:
        return tuple(Example.model_validate(item) for item in value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "(example)"
        raise UserError(
            f"field `{field}` of an example: {first['msg']} (value: {short(first['input'])})", where=str(path), fix=fix
        ) from None
