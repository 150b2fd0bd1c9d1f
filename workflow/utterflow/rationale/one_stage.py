"""A rationale in one question per row."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from utterflow.llm.ask import Outcome
from utterflow.rationale.answers import ONE_STAGE, check_one_stage
from utterflow.rationale.evidence import Case
from utterflow.rationale.prompts import intent_count
from utterflow.rationale.questions import Asking, Found, is_answered, why_lost


def ask_one_stage(cases: Sequence[Case], asking: Asking) -> list[Found]:
    """Ask about all rows; what came of each, in their order.

    An answer of the wrong form is kept as it came, with what is wrong; a row is lost only where there is no answer.

    Raises:
        UserError: a template cannot be filled, or nothing can be answered.
    """
    inventory = asking.prompts.inventory
    questions = [
        asking.question(
            case,
            ONE_STAGE,
            partial(
                check_one_stage,
                intents=inventory.intents,
                slot_types=inventory.slot_types,
                count=intent_count(inventory),
                reference=case.reference.intent if case.reference else None,
                reference_types=case.reference.slot_types if case.reference else (),
                hypotheses=len(case.hypotheses),
            ),
        )
        for case in cases
    ]
    return [_found(outcome) for outcome in asking.ask(questions)]


def _found(outcome: Outcome) -> Found:
    return Found(
        outcomes={ONE_STAGE.name: outcome},
        answer=outcome.value,
        raw_output=outcome.text or "",
        problem=outcome.problem,
        lost=None if is_answered(outcome) else why_lost(outcome.problem),
    )
