"""Counts of rationales: of a row, of a shard, of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from utterflow.llm.ask import Outcome
from utterflow.rationale.answers import SLOT_GROUNDING
from utterflow.rationale.evidence import Case, find_span, words
from utterflow.rationale.questions import Found, is_answered
from utterflow.rationale.records import QuestionCounts, SlotCounts
from utterflow.records import SluItem

Counts = Mapping[str, float]
TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
DECIMALS = 9  # of costs


def row_counts(item: SluItem, case: Case, found: Found) -> Counter[str]:
    """What a row adds to the counts; of a lost one only what was asked."""
    counts: Counter[str] = Counter()
    for name, outcome in found.outcomes.items():
        counts.update({f"{name}.{key}": value for key, value in _question_counts(outcome).items()})
        counts[f"{name}.fallbacks"] += name in found.fallbacks
    if found.lost is None:
        final = (found.answer or {}).get("final_prediction")
        counts["valid"] += found.problem is None
        counts["labelled"] += item.intent is not None
        counts["agreeing"] += item.intent is not None and final == item.intent
        counts["fallback"] += bool(found.fallbacks)
        counts.update(_slot_counts(item, case, found))
    return counts


def summed(parts: Iterable[Counts]) -> dict[str, float]:
    """The counts of several parts together, by name."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {name: round(total[name], DECIMALS) if name.endswith("cost") else total[name] for name in sorted(total)}


def question_counts(counts: Counts, name: str) -> QuestionCounts:
    """The counts of one question."""

    def number(key: str) -> int:
        return int(counts.get(f"{name}.{key}", 0))

    keys = ("asked", "tries", "valid", "unanswered", "fallbacks", *TOKENS)
    return QuestionCounts(
        **{key: number(key) for key in keys},
        fallback_share=share(number("fallbacks"), number("asked")),
        cost=counts.get(f"{name}.cost"),
    )


def slot_counts(counts: Counts, *, listens: bool) -> SlotCounts:
    """The counts of slots; what hypotheses hold is not known of recordings."""
    gold, grounded, spans = (int(counts.get(name, 0)) for name in ("slots.gold", "slots.grounded", "slots.spans"))
    heard = None if listens else int(counts.get("slots.heard", 0))
    spans_heard = None if listens else int(counts.get("slots.spans_heard", 0))
    return SlotCounts(
        gold=gold,
        heard=heard,
        heard_share=share(heard, gold),
        grounded=grounded,
        grounded_share=share(grounded, gold),
        spans=spans,
        spans_heard=spans_heard,
        spans_heard_share=share(spans_heard, spans),
    )


def share(part: int | None, whole: int) -> float | None:
    """None where there is nothing to have a share of."""
    return round(part / whole, 6) if part is not None and whole else None


def _question_counts(outcome: Outcome) -> dict[str, float]:
    usage = outcome.usage
    counts: dict[str, float] = {
        "asked": 1,
        "tries": len(outcome.tries),
        "valid": outcome.problem is None,
        "unanswered": not is_answered(outcome),
        **{name: getattr(usage, name) for name in TOKENS},
    }
    return counts if usage.cost is None else {**counts, "cost": usage.cost}


def _slot_counts(item: SluItem, case: Case, found: Found) -> dict[str, int]:
    """What the model itself has grounded: a rule's answer does not count for it."""
    groundings: list[dict[str, Any]] = (found.answer or {}).get("slot_grounding", [])
    own = SLOT_GROUNDING.name not in found.fallbacks
    supported = [entry for entry in groundings if entry["supported"] and own]
    spans = {(entry["slot_type"], tuple(words(entry["best_span"]))) for entry in supported}
    gold = item.entities or []
    return {
        "slots.gold": len(gold),
        "slots.heard": sum(_is_heard(slot.filler, case.hypotheses) for slot in gold),
        "slots.grounded": sum((slot.type, tuple(words(slot.filler))) in spans for slot in gold),
        "slots.spans": len(supported),
        "slots.spans_heard": sum(_is_heard(entry["best_span"], _named(entry, case)) for entry in supported),
    }


def _named(entry: Mapping[str, Any], case: Case) -> tuple[str, ...]:
    """The hypothesis that a grounding names; all where it names none."""
    number = entry["source_hypothesis"]
    return case.hypotheses if number is None else case.hypotheses[number - 1 : number]


def _is_heard(span: str, hypotheses: Iterable[str]) -> bool:
    return any(find_span(text, span) is not None for text in hypotheses)
