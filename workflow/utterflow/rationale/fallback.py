"""What stands in for an answer that never came in the right form: made from the question by rule.

A label fits the better, the more of its words (`alarm_set`: alarm, set) the hypotheses hold; labels that fit equally
well stand in the order of the alphabet. Of the reference labels a fallback uses what the question had shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utterflow.rationale.evidence import Case, find_span, words


def intent_candidates(case: Case, intents: Sequence[str], count: int) -> dict[str, Any]:
    """The reference, those of its scenario, and the best fitting others."""
    reference = case.reference.intent if case.reference else None
    scenario = reference.partition("_")[0] if reference else None
    fitting = sorted(_by_fit(case, intents), key=lambda label: label.partition("_")[0] != scenario)
    return {"topk_intents": _chosen(fitting, [reference] if reference else [], count)}


def slot_candidates(case: Case, slot_types: Sequence[str], count: int) -> dict[str, Any]:
    """The reference types and the best fitting others."""
    reference = case.reference.slot_types if case.reference else ()
    return {"topk_slot_types": _chosen(_by_fit(case, slot_types), reference, count)}


def intent_pruning(case: Case, topk_intents: Sequence[str]) -> dict[str, Any]:
    """The best fitting candidate stays. Its question shows no reference, and so this knows none: the gold label does
    not pass by itself for what the rationale ends with."""
    final, *others = _by_fit(case, topk_intents)
    heard = bool(case.hypotheses)
    reason = f"It has no more words in common with what was heard than {final}." if heard else "No reason was given."
    why = f"Of the candidates {final} has the most words in common with what was heard." if heard else reason
    return {
        "intent_elimination": [{"intent": label, "reason": reason} for label in others],
        "final_prediction": final,
        "intent_rationalization": why,
    }


def slot_grounding(case: Case, topk_slot_types: Sequence[str]) -> dict[str, Any]:
    """The reference slots where a hypothesis holds them; all other types are unsupported."""
    found: list[dict[str, Any]] = []
    for slot in case.reference.slots if case.reference else ():
        spans = ((number, find_span(text, slot.filler)) for number, text in enumerate(case.hypotheses, start=1))
        first = next(((number, span) for number, span in spans if span is not None), None)
        if first is not None and slot.type in topk_slot_types:
            found.append(_grounding(slot.type, first[1], first[0]))
    grounded = {item["slot_type"] for item in found}
    text = "; ".join(f"{item['slot_type']} is heard as {item['best_span']}" for item in found)
    found += [_grounding(label, None, None) for label in topk_slot_types if label not in grounded]
    return {"slot_grounding": found, "slot_rationalization": f"{text or 'No slot was found word by word'}."}


def _by_fit(case: Case, labels: Sequence[str]) -> list[str]:
    heard = {word for text in case.hypotheses for word in words(text)}
    return sorted(labels, key=lambda label: (-len(heard & set(label.lower().split("_"))), label))


def _chosen(ranked: Sequence[str], reference: Sequence[str], count: int) -> list[str]:
    """`count` labels, the reference among them; in the order of the alphabet, so that its place does not tell."""
    return sorted([*reference, *(label for label in ranked if label not in reference)][:count])


def _grounding(slot_type: str, span: str | None, number: int | None) -> dict[str, Any]:
    return {"slot_type": slot_type, "supported": span is not None, "best_span": span, "source_hypothesis": number}
