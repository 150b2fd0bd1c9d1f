"""A model's answer as labels."""

from __future__ import annotations

import json
from typing import Any

from utterflow.records import short
from utterflow.slu.metrics import Meaning

SHOWN = 60


def parse_labels(text: str) -> Meaning:
    """Read `{"scenario": .., "action": .., "entities": [{"type": .., "filler": ..}]}` out of an answer.

    The answer is the first JSON object in the text, whatever stands around it: a fence, or words before it. Further
    keys are ignored, and `entities` that are left out (or null) are none.

    Raises:
        ValueError: says why the text holds no labels.
    """
    value = first_object(text)
    scenario, action = (_text(value, name, "the object") for name in ("scenario", "action"))
    entities = value.get("entities")
    if entities is not None and not isinstance(entities, list):
        raise ValueError(f"`entities` is no list: {short(entities, SHOWN)}")
    found = []
    for entity in entities or ():
        if not isinstance(entity, dict):
            raise ValueError(f"an entity is no object: {short(entity, SHOWN)}")
        found.append((_text(entity, "type", "an entity"), _text(entity, "filler", "an entity")))
    return Meaning(scenario, action, tuple(found))


def first_object(text: str) -> dict[str, Any]:
    """The first JSON object that stands in a text.

    After a brace that begins no JSON object only one with a `scenario` counts: others may be parts of a broken one.

    Raises:
        ValueError: there is none; what is wrong with the first brace.
    """
    decoder = json.JSONDecoder()
    fault, start = "", text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("no JSON object: nested too deep") from None
        except json.JSONDecodeError as error:
            fault = fault or f"no JSON object: {error.msg} at character {error.pos + 1}"
            start = text.find("{", start + 1)
        except ValueError as error:  # a number of thousands of digits
            raise ValueError(f"no JSON object: {error}") from None
        else:
            if not fault or "scenario" in value:
                return dict(value)
            start = text.find("{", end)
    raise ValueError(fault or ("no JSON object: there is no `{`" if text.strip() else "the answer is empty"))


def _text(value: dict[str, Any], name: str, where: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        missing = "has no" if name not in value else f"has {short(found, SHOWN)} for"
        raise ValueError(f"{where} {missing} `{name}`")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` has half of a surrogate pair, which UTF-8 cannot hold") from None
    return found
