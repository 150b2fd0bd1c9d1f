"""What answers must look like: the JSON schema that a back end can follow, and the check of what came."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MOST_PROBLEMS = 6  # of an answer, in one message


@dataclass(frozen=True)
class Shape:
    """A question's name, and the keys of its answer in their order."""

    name: str
    keys: tuple[str, ...]


INTENT_CANDIDATES = Shape("intent_candidates", ("topk_intents",))
SLOT_CANDIDATES = Shape("slot_candidates", ("topk_slot_types",))
INTENT_PRUNING = Shape("intent_pruning", ("intent_elimination", "final_prediction", "intent_rationalization"))
SLOT_GROUNDING = Shape("slot_grounding", ("slot_grounding", "slot_rationalization"))
ONE_STAGE = Shape("one_stage", INTENT_CANDIDATES.keys + INTENT_PRUNING.keys + SLOT_GROUNDING.keys)


class _Part(BaseModel):
    """Part of an answer: keys that nobody asked for are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True, str_strip_whitespace=True)


class Ruled(_Part):
    """An intent that was ruled out."""

    intent: str
    reason: str = Field(min_length=1)


class Grounding(_Part):
    """Whether a slot shows in the evidence, and where."""

    slot_type: str
    supported: bool
    best_span: str | None = None
    source_hypothesis: int | None = None


class _IntentCandidates(_Part):
    topk_intents: list[str]


class _SlotCandidates(_Part):
    topk_slot_types: list[str]


class _Pruning(_Part):
    intent_elimination: list[Ruled]
    final_prediction: str
    intent_rationalization: str = Field(min_length=1)


class _Groundings(_Part):
    slot_grounding: list[Grounding]
    slot_rationalization: str = Field(min_length=1)


class _OneStage(_Groundings, _Pruning, _IntentCandidates):  # pydantic puts the keys of the last base first
    pass


Answer = TypeVar("Answer", bound=_Part)


def check_one_stage(
    text: str,
    *,
    intents: Sequence[str],
    slot_types: Sequence[str],
    count: int,
    reference: str | None,
    reference_types: Sequence[str],
    hypotheses: int,
) -> dict[str, Any]:
    """The answer to the only question of a single stage.

    Args:
        intents: labels that may be chosen.
        slot_types: likewise.
        count: intents that must be listed.
        reference: intent that must be among them; None: any.
        reference_types: slot types that must be grounded.
        hypotheses: how many the evidence has; 0: it is a recording.

    Raises:
        ValueError: all that is wrong, in words for the model and for people.
    """
    found = _shaped(text, _OneStage)
    problems = [
        *_choice_problems("topk_intents", found.topk_intents, intents, count, [reference] if reference else []),
        *_pruning_problems(found, found.topk_intents),
        *_grounding_problems(found.slot_grounding, slot_types, reference_types, hypotheses),
    ]
    return _tidy(_sound(found, problems), hypotheses)


def check_intent_candidates(text: str, *, intents: Sequence[str], count: int, reference: str | None) -> dict[str, Any]:
    """`count` different ones of `intents`, `reference` among them.

    Raises:
        ValueError: all that is wrong.
    """
    found = _shaped(text, _IntentCandidates)
    wanted = [reference] if reference else []
    return _sound(found, _choice_problems("topk_intents", found.topk_intents, intents, count, wanted))


def check_slot_candidates(
    text: str, *, slot_types: Sequence[str], count: int, reference_types: Sequence[str]
) -> dict[str, Any]:
    """`count` different ones of `slot_types`, all `reference_types` among them.

    Raises:
        ValueError: all that is wrong.
    """
    found = _shaped(text, _SlotCandidates)
    return _sound(found, _choice_problems("topk_slot_types", found.topk_slot_types, slot_types, count, reference_types))


def check_intent_pruning(text: str, *, topk_intents: Sequence[str]) -> dict[str, Any]:
    """One of `topk_intents`, and a reason against each of the others.

    Raises:
        ValueError: all that is wrong.
    """
    found = _shaped(text, _Pruning)
    return _sound(found, _pruning_problems(found, topk_intents))


def check_slot_grounding(text: str, *, topk_slot_types: Sequence[str], hypotheses: int) -> dict[str, Any]:
    """An entry for each of `topk_slot_types`, and for no other type.

    Raises:
        ValueError: all that is wrong.
    """
    found = _shaped(text, _Groundings)
    problems = _grounding_problems(found.slot_grounding, topk_slot_types, topk_slot_types, hypotheses)
    return _tidy(_sound(found, problems), hypotheses)


def schema_of(
    shape: Shape, *, intents: Sequence[str], slot_types: Sequence[str], intent_count: int, slot_count: int
) -> dict[str, Any]:
    """JSON schema of the answer to a question, the same for all rows that list as many labels."""
    named = {"intent": _label(intents), "slot_type": _label(slot_types)}
    intent, slot_type, reason = {"$ref": "#/$defs/intent"}, {"$ref": "#/$defs/slot_type"}, {"type": "string"}
    ruled = _object({"intent": intent, "reason": reason})
    grounding = _object(
        {
            "slot_type": slot_type,
            "supported": {"type": "boolean"},
            "best_span": {"type": ["string", "null"]},
            "source_hypothesis": {"type": ["integer", "null"]},
        }
    )
    parts: dict[str, dict[str, Any]] = {
        "topk_intents": _list_of(intent, intent_count),
        "intent_elimination": _list_of(ruled, max(intent_count - 1, 0)),
        "final_prediction": intent,
        "intent_rationalization": reason,
        "topk_slot_types": _list_of(slot_type, slot_count),
        "slot_grounding": {"type": "array", "items": grounding},
        "slot_rationalization": reason,
    }
    schema = _object({name: parts[name] for name in shape.keys})
    used = {name: labels for name, labels in named.items() if f"#/$defs/{name}" in json.dumps(schema)}
    return {**schema, "$defs": used}


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that an answer is.

    Raises:
        ValueError: it is none, or holds what no file can.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeEncodeError:
        raise ValueError("a text has half of a surrogate pair, which UTF-8 cannot hold") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _shaped(text: str, kind: type[Answer]) -> Answer:
    value = json_object(text)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        faults = [
            f"`{'.'.join(map(str, item['loc']))}`: {item['msg'][:1].lower()}{item['msg'][1:]}"
            for item in error.errors(include_url=False, include_context=False)
        ]
        raise ValueError("; ".join(faults[:MOST_PROBLEMS])) from None


def _sound(found: _Part, problems: Sequence[str]) -> dict[str, Any]:
    if problems:
        raise ValueError("; ".join(problems[:MOST_PROBLEMS]))
    return found.model_dump(mode="json")


def _tidy(answer: dict[str, Any], hypotheses: int) -> dict[str, Any]:
    """No span without support, and no number of a hypothesis where there is none."""
    for item in answer["slot_grounding"]:
        if not item["supported"]:
            item["best_span"] = None
        if not item["supported"] or not hypotheses:
            item["source_hypothesis"] = None
    return answer


def _choice_problems(
    key: str, chosen: Sequence[str], allowed: Sequence[str], count: int, wanted: Sequence[str]
) -> list[str]:
    problems = [] if len(chosen) == count else [f"`{key}` has {len(chosen)} entries, not {count}"]
    problems += [f"`{key}` has {label!r} twice" for label, times in Counter(chosen).items() if times > 1]
    problems += _unknown(key, chosen, allowed)
    return problems + [f"`{key}` is without the reference {label!r}" for label in wanted if label not in chosen]


def _unknown(key: str, labels: Sequence[str], allowed: Sequence[str]) -> list[str]:
    known = set(allowed)
    return [f"`{key}`: {label!r} is not in the list" for label in dict.fromkeys(labels) if label not in known]


def _pruning_problems(found: _Pruning, topk: Sequence[str]) -> list[str]:
    final, ruled = found.final_prediction, [item.intent for item in found.intent_elimination]
    if final not in topk:
        return [f"`final_prediction`: {final!r} is not one of the candidates"]
    problems = [f"`intent_elimination` has {label!r} twice" for label, times in Counter(ruled).items() if times > 1]
    others = [label for label in dict.fromkeys(topk) if label != final]
    problems += [f"`intent_elimination` is without {label!r}" for label in others if label not in ruled]
    wrong = [label for label in dict.fromkeys(ruled) if label not in others]
    return problems + [
        f"`intent_elimination`: {label!r} is {'the final one' if label == final else 'not one of the candidates'}"
        for label in wrong
    ]


def _grounding_problems(
    groundings: Sequence[Grounding], allowed: Sequence[str], wanted: Sequence[str], hypotheses: int
) -> list[str]:
    grounded = [item.slot_type for item in groundings]
    problems = _unknown("slot_grounding", grounded, allowed)
    problems += [f"`slot_grounding` is without {label!r}" for label in wanted if label not in grounded]
    for item in groundings:
        if item.supported and not item.best_span:
            problems.append(f"`slot_grounding`: {item.slot_type!r} is supported and has no `best_span`")
        if item.source_hypothesis is not None and hypotheses and not 1 <= item.source_hypothesis <= hypotheses:
            problems.append(
                f"`slot_grounding`: there is no hypothesis {item.source_hypothesis}, they are 1 to {hypotheses}"
            )
    return problems


def _label(labels: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(labels)} if labels else {"type": "string"}


def _list_of(item: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": count, "maxItems": count}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _refuse(name: str) -> None:
    raise ValueError(f"not valid JSON: {name} is not a JSON value")
