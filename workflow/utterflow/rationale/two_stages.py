"""A rationale in four questions per row: candidates of intents and of slot types, then what is left of them.

The questions of a stage are asked together, about all rows. The second stage is shown the candidates and the evidence,
and no reference labels. Where the answer to a question stays of the wrong form, a rule stands in for it
(`rationale.fallback`), and the row says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from utterflow.jobs import log
from utterflow.llm.ask import Outcome, Question
from utterflow.rationale import fallback
from utterflow.rationale.answers import (
    INTENT_CANDIDATES,
    INTENT_PRUNING,
    SLOT_CANDIDATES,
    SLOT_GROUNDING,
    Shape,
    check_intent_candidates,
    check_intent_pruning,
    check_slot_candidates,
    check_slot_grounding,
)
from utterflow.rationale.evidence import Case
from utterflow.rationale.prompts import intent_count, slot_count
from utterflow.rationale.questions import Asking, Found, is_answered, is_spent, why_lost

Rule = Callable[[], dict[str, Any]]


class _Row:
    """A row on its way through the stages."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.outcomes: dict[str, Outcome] = {}
        self.answer: dict[str, Any] = {}
        self.fallbacks: dict[str, str] = {}
        self.lost: str | None = None

    def take(self, shape: Shape, outcome: Outcome, rule: Rule) -> None:
        """Note what came of a question: its answer, or what the rule makes instead."""
        self.outcomes[shape.name] = outcome
        if outcome.problem is None:
            self.answer |= outcome.value
        elif is_answered(outcome) or is_spent(outcome):
            self.answer |= rule()
            self.fallbacks[shape.name] = outcome.problem
        elif self.lost is None:
            self.lost = why_lost(outcome.problem, shape.name)

    def found(self) -> Found:
        last = self.outcomes.get(SLOT_GROUNDING.name)
        return Found(
            outcomes=self.outcomes,
            answer=None if self.lost else with_stages(self.answer),
            raw_output=(last.text if last else None) or "",
            problem=self.fallbacks.get(INTENT_CANDIDATES.name),
            fallbacks=self.fallbacks,
            lost=self.lost,
        )


def ask_two_stages(cases: Sequence[Case], asking: Asking) -> list[Found]:
    """Ask about all rows, one stage after the other; what came of each, in their order.

    Raises:
        UserError: a template cannot be filled, or nothing can be answered.
    """
    rows = [_Row(case) for case in cases]
    log.info("stage 1, candidates of intents and slot types: %d rows", len(rows))
    _ask_stage(rows, (_intent_candidates, _slot_candidates), asking)
    left = [row for row in rows if row.lost is None]
    log.info("stage 2, pruning of intents and grounding of slots: %d rows", len(left))
    _ask_stage(left, (_intent_pruning, _slot_grounding), asking)
    return [row.found() for row in rows]


def with_stages(answer: dict[str, Any]) -> dict[str, Any]:
    """The keys of a single stage's answer and `topk_slot_types`, and beside them the answers of both stages."""

    def part(shape: Shape) -> dict[str, Any]:
        return {key: answer[key] for key in shape.keys}

    return {
        **part(INTENT_CANDIDATES),
        **part(INTENT_PRUNING),
        **part(SLOT_CANDIDATES),
        **part(SLOT_GROUNDING),
        "candidate_generation": {"intent": part(INTENT_CANDIDATES), "slot": part(SLOT_CANDIDATES)},
        "candidate_pruning": {"intent": part(INTENT_PRUNING), "slot": part(SLOT_GROUNDING)},
    }


Ask = Callable[[_Row, Asking], tuple[Shape, Question, Rule]]


def _ask_stage(rows: Sequence[_Row], kinds: Sequence[Ask], asking: Asking) -> None:
    asked = [(row, *kind(row, asking)) for kind in kinds for row in rows]
    outcomes = asking.ask([question for _, _, question, _ in asked])
    for (row, shape, _, rule), outcome in zip(asked, outcomes, strict=True):
        row.take(shape, outcome, rule)


def _intent_candidates(row: _Row, asking: Asking) -> tuple[Shape, Question, Rule]:
    intents, count = asking.prompts.inventory.intents, intent_count(asking.prompts.inventory)
    reference = row.case.reference.intent if row.case.reference else None
    check = partial(check_intent_candidates, intents=intents, count=count, reference=reference)
    question = asking.question(row.case, INTENT_CANDIDATES, check)
    return INTENT_CANDIDATES, question, partial(fallback.intent_candidates, row.case, intents, count)


def _slot_candidates(row: _Row, asking: Asking) -> tuple[Shape, Question, Rule]:
    slot_types, count = asking.prompts.inventory.slot_types, slot_count(asking.prompts.inventory, row.case)
    reference = row.case.reference.slot_types if row.case.reference else ()
    check = partial(check_slot_candidates, slot_types=slot_types, count=count, reference_types=reference)
    question = asking.question(row.case, SLOT_CANDIDATES, check)
    return SLOT_CANDIDATES, question, partial(fallback.slot_candidates, row.case, slot_types, count)


def _intent_pruning(row: _Row, asking: Asking) -> tuple[Shape, Question, Rule]:
    topk = row.answer["topk_intents"]
    check = partial(check_intent_pruning, topk_intents=topk)
    question = asking.question(row.case, INTENT_PRUNING, check, topk_intents=topk)
    return INTENT_PRUNING, question, partial(fallback.intent_pruning, row.case, topk)


def _slot_grounding(row: _Row, asking: Asking) -> tuple[Shape, Question, Rule]:
    topk = row.answer["topk_slot_types"]
    check = partial(check_slot_grounding, topk_slot_types=topk, hypotheses=len(row.case.hypotheses))
    question = asking.question(row.case, SLOT_GROUNDING, check, topk_slot_types=topk)
    return SLOT_GROUNDING, question, partial(fallback.slot_grounding, row.case, topk)
