"""What questions of all kinds share: how they are asked, and what came of them for a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utterflow.files import seed_of
from utterflow.llm.ask import Outcome, Question
from utterflow.rationale.answers import Shape, schema_of
from utterflow.rationale.evidence import Case
from utterflow.rationale.prompts import Prompts, intent_count, slot_count

Ask = Callable[[Sequence[Question]], list[Outcome]]
EMPTY = "empty content"  # the kind of fault of an answer without a word
NO_ANSWER = "no answer: "


@dataclass(frozen=True)
class Asking:
    """The prompts, how long an answer may be, the seed of its draws, and who answers."""

    prompts: Prompts
    max_new_tokens: int
    seed: int
    ask: Ask
    schemas: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # made once, by question and size

    def question(
        self, case: Case, shape: Shape, check: Callable[[str], dict[str, Any]], **proposed: Sequence[str]
    ) -> Question:
        """One question about a row.

        Raises:
            UserError: its template cannot be filled.
        """
        return Question(
            id=f"{case.id}/{shape.name}",
            messages=self.prompts.messages(shape, case, **proposed),
            schema=self._schema(shape, case),
            max_tokens=self.max_new_tokens,
            seed=seed_of(self.seed, case.id, shape.name),
            check=check,
        )

    def _schema(self, shape: Shape, case: Case) -> dict[str, Any]:
        inventory, count = self.prompts.inventory, slot_count(self.prompts.inventory, case)
        if (shape.name, count) not in self.schemas:
            self.schemas[shape.name, count] = schema_of(
                shape,
                intents=inventory.intents,
                slot_types=inventory.slot_types,
                intent_count=intent_count(inventory),
                slot_count=count,
            )
        return self.schemas[shape.name, count]


@dataclass(frozen=True)
class Found:
    """What came of a row's questions."""

    outcomes: Mapping[str, Outcome]  # by the question's name
    answer: dict[str, Any] | None  # with the keys of a single stage's answer at least; None: unusable
    raw_output: str
    problem: str | None  # of the intents' list
    fallbacks: Mapping[str, str] = field(default_factory=dict)  # question -> why its answer was made by rule
    lost: str | None = None  # why there is no row


def is_answered(outcome: Outcome) -> bool:
    """Whether the model said anything: what went wrong on the way to it is nothing that a rule could replace."""
    return bool((outcome.text or "").strip())


def why_lost(problem: str | None, question: str = "") -> str:
    """The reason of a row that got no answer, with the question's name where there are several."""
    what = str(problem).removeprefix(NO_ANSWER)
    return f"{NO_ANSWER}{question}: {what}" if question else f"{NO_ANSWER}{what}"


def is_spent(outcome: Outcome) -> bool:
    """Whether the model was asked, and used up its tokens before it answered."""
    return outcome.problem is not None and outcome.problem.startswith(EMPTY)
