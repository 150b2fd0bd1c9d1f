"""A language model that answers by script, and hand-made rows for rationales: no server, no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utterflow.llm.ask import Keep, Reply, Turn, Usage

INTENTS = ("alarm_query", "alarm_set", "calendar_set", "lists_remove", "music_play", "news_query", "weather_query")
SLOT_TYPES = ("date", "event_name", "list_name", "person", "song_name", "time", "weather_descriptor")

# What a script may return: the answer, a whole reply, or None where nobody answers.
Script = Callable[[Turn], str | Reply | None]


@dataclass
class ScriptedModel:
    """A back end of `ask` that notes what it was asked."""

    script: Script
    digest: str = "scripted"
    price: float | None = None  # of a token, in or out
    turns: list[Turn] = field(default_factory=list)
    closed: bool = False

    def asked(self, turn: Turn) -> Mapping[str, Any]:
        return {
            "messages": [message.row() for message in turn.messages],
            "schema": turn.schema,
            "max_tokens": turn.max_tokens,
            "again": turn.again,
        }

    def grown(self, max_tokens: int) -> int | None:
        return None

    def usage(self, reply: Reply) -> Usage:
        cost = None if self.price is None else self.price * (reply.input_tokens + reply.output_tokens)
        return Usage(reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens, cost)

    def count(self, replies: Mapping[str, Reply]) -> None:
        pass

    def answers(self, turns: Mapping[str, Turn], found: Mapping[str, Reply], keep: Keep) -> Mapping[str, str]:
        problems = {}
        for key, turn in turns.items():
            if key in found:
                continue
            self.turns.append(turn)
            said = self.script(turn)
            if said is None:
                problems[key] = "unreachable: the server is down"
            else:
                keep({key: said if isinstance(said, Reply) else reply(said)})
        return problems

    def close(self) -> None:
        self.closed = True


def reply(content: str, **changes: Any) -> Reply:
    given: dict[str, Any] = {
        "content": content,
        "reasoning": None,
        "finish": "stop",
        "input_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 5,
        "reasoning_tokens": 2,
    }
    return Reply(**given | changes)


def prompt_of(turn: Turn) -> str:
    """The text of the first user message."""
    content = next(message.content for message in turn.messages if message.role == "user")
    return content if isinstance(content, str) else next(part["text"] for part in content if "text" in part)


def good_answers() -> dict[str, dict[str, Any]]:
    """An answer to each question about a row of `write_lists` that passes all checks, with gold labels and without."""
    topk = ["alarm_set", "alarm_query", "calendar_set", "music_play", "news_query"]
    pruning = {
        "intent_elimination": [{"intent": label, "reason": f"nothing says {label}"} for label in topk[1:]],
        "final_prediction": "alarm_set",
        "intent_rationalization": "wake me orders an alarm",
    }
    slots = ["time", "date", "event_name", "person", "song_name"]
    heard = {"slot_type": "time", "supported": True, "best_span": "five pm", "source_hypothesis": 1}
    missing = {"supported": False, "best_span": None, "source_hypothesis": None}
    rest = [{"slot_type": label, **missing} for label in slots[1:]]
    said = "five pm is in the first hypothesis"
    return {
        "one_stage": {
            "topk_intents": topk,
            **pruning,
            "slot_grounding": [heard, rest[0]],
            "slot_rationalization": said,
        },
        "intent_candidates": {"topk_intents": topk},
        "slot_candidates": {"topk_slot_types": slots},
        "intent_pruning": pruning,
        "slot_grounding": {"slot_grounding": [heard, *rest], "slot_rationalization": said},
    }


def always_good(turn: Turn) -> str:
    """A right answer to every question: about what a second stage's prompt proposes, too."""
    answer = good_answers()[question_of(turn)]
    proposed = re.findall(r"^Proposed (?:intents|slot types): (.*)$", prompt_of(turn), re.MULTILINE)
    labels = proposed[-1].split(", ") if proposed else []
    if "final_prediction" in answer and labels:
        reasons = {item["intent"]: item for item in answer["intent_elimination"]}
        others = [label for label in labels if label != answer["final_prediction"]]
        answer["intent_elimination"] = [reasons.get(label, {"intent": label, "reason": "no"}) for label in others]
    elif labels:
        entries = {item["slot_type"]: item for item in answer["slot_grounding"]}
        answer["slot_grounding"] = [
            entries.get(label, {**answer["slot_grounding"][-1], "slot_type": label}) for label in labels
        ]
    return json.dumps(answer)


def question_of(turn: Turn) -> str:
    """`<row>/<question>`: the question."""
    return turn.id.rpartition("/")[2]


def record(number: int, **changes: Any) -> dict[str, Any]:
    """A SLURP record with an n-best list."""
    given: dict[str, Any] = {
        "slurp_id": number,
        "sentence": f"wake me at five pm today {number}",
        "scenario": "alarm",
        "action": "set",
        "entities": [{"type": "time", "filler": "five pm"}, {"type": "date", "filler": "today"}],
        "asr_hypotheses": [
            {"text": f"wake me at five pm to day {number}", "score": -1.0},
            {"text": f"make me at nine pm to day {number}", "score": -2.0},
            {"text": f"wake me at five pm two day {number}", "score": -3.0},
        ],
    }
    return {name: value for name, value in (given | changes).items() if value is not None}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_labels(path: Path, intents: tuple[str, ...] = INTENTS, slot_types: tuple[str, ...] = SLOT_TYPES) -> Path:
    """SLURP annotations that have these labels, and no other."""
    rows = []
    for number in range(max(len(intents), len(slot_types))):
        scenario, _, action = intents[number % len(intents)].partition("_")
        entities = [{"type": slot_types[number % len(slot_types)], "filler": "x"}] if slot_types else []
        rows.append({"slurp_id": number, "sentence": "a", "scenario": scenario, "action": action, "entities": entities})
    return write_jsonl(path, rows)
