"""A rationale as one text: what a model learns to write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HYPOTHESIS = re.compile(r"\(hypothesis (\d{1,6})\)")


def rationale_text(answer: Mapping[str, Any]) -> str:
    """The final intent and why, why each of the others falls, and the slots with what was heard of them.

    Args:
        answer: with the keys of a single stage's answer.
    """
    lines = [f"Intent: {answer['final_prediction']}. {_sentence(answer['intent_rationalization'])}"]
    lines += [f"Not {item['intent']}: {_sentence(item['reason'])}" for item in answer["intent_elimination"]]
    slots = "; ".join(map(_slot, answer["slot_grounding"])) or "none"
    lines.append(f"Slots: {slots}. {_sentence(answer['slot_rationalization'])}")
    return "\n".join(lines)


def last_hypothesis(text: str) -> int:
    """The highest number of a hypothesis that the slots of a rationale's text name; 0 without any."""
    return max(map(int, HYPOTHESIS.findall(text)), default=0)


def _slot(item: Mapping[str, Any]) -> str:
    if not item["supported"]:
        return f"{item['slot_type']} not heard"
    number = item["source_hypothesis"]
    place = f" (hypothesis {number})" if number is not None else ""
    return f'{item["slot_type"]} "{_line(item["best_span"])}"{place}'


def _line(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    """In one line, with a full stop where it has no end."""
    line = _line(text)
    return line if line.rstrip("\"')").endswith((".", "!", "?")) else f"{line}."
