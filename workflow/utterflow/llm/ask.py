"""Asking questions of a language model, whichever back end answers: rounds of tries, checks, repair, the journal.

A question is asked until its answer passes its check, at most `retries` times more. All questions are asked first,
then in one round those that need a further try, and so on. An answer enters the journal as it arrives, before it is
looked at, under the digest of what was asked: an answer that fails its check is there too, so that a later run goes the
same way without asking anything again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from utterflow.errors import UserError
from utterflow.files import digest_of
from utterflow.jobs import log
from utterflow.journal import Journal
from utterflow.llm.structured import json_fault
from utterflow.records import Message

STAGE = "llm"
REPAIR = "That answer cannot be used: {problem}. Give the whole answer once more, corrected, and nothing else."
PROGRESS_SECONDS = 10.0
THINK_START, THINK_END = "<think>", "</think>"
FENCE = re.compile(r"```[ \t]*(\w*)[ \t]*\r?\n(.*?)\r?\n?[ \t]*```", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """What one row asks.

    `check` gets the answer (out of its code fence, if it stands in one) and returns its value, or raises ValueError
    saying what is wrong. With a `schema` the answer has been found to follow it before.
    """

    id: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None
    max_tokens: int  # of the answer, reasoning included
    seed: int  # of its draws, where answers are sampled
    check: Callable[[str], Any]


@dataclass(frozen=True)
class Usage:
    """Tokens, and their cost in the currency of the server's prices (None without prices)."""

    input_tokens: int = 0
    cached_tokens: int = 0  # of the input, those that the server had cached
    output_tokens: int = 0
    reasoning_tokens: int = 0  # of the output, those of the reasoning
    cost: float | None = None

    def __add__(self, other: Usage) -> Usage:
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            sum(costs) if costs else None,
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a question.

    Each of `tries` has `messages` (as rows), `max_tokens`, `answer`, `reasoning`, `finish`, `problem`, `usage` (as a
    dictionary) and `from_journal`. Of questions that ask just the same, one is asked, and the first one pays: the
    others have no usage.
    """

    id: str
    value: Any  # what `check` returned; None where no answer passed
    text: str | None  # the last answer
    reasoning: str | None  # the last one's
    problem: str | None  # why there is no value; the kind of fault stands before the first colon
    tries: tuple[dict[str, Any], ...]
    usage: Usage
    from_journal: bool  # nothing was asked


@dataclass(frozen=True)
class Turn:
    """One try of a question: what a back end is asked."""

    id: str
    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None
    max_tokens: int
    seed: int
    again: int = 0  # how often just this was asked before


@dataclass(frozen=True)
class Reply:
    """What arrived, as the journal keeps it."""

    content: str
    reasoning: str | None
    finish: str  # stop, length, or what else the server says
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    problem: str | None = None  # the answer is none, and asking again is of no use

    def row(self) -> dict[str, Any]:
        return dict(self.__dict__)


Keep = Callable[[Mapping[str, Reply]], None]


class Backend(Protocol):
    """What answers: a server, or a local model."""

    digest: str  # names the journal's folder: the model

    def asked(self, turn: Turn) -> Mapping[str, Any]:
        """All that the answer depends on; JSON-like."""
        ...

    def grown(self, max_tokens: int) -> int | None:
        """Tokens for another try of an answer that these did not suffice for; None: no more are allowed."""
        ...

    def usage(self, reply: Reply) -> Usage:
        """The tokens of a reply, with their cost today."""
        ...

    def count(self, replies: Mapping[str, Reply]) -> None:
        """Note what the journal holds of this run's questions, by key: it counts against a budget."""
        ...

    def answers(self, turns: Mapping[str, Turn], found: Mapping[str, Reply], keep: Keep) -> Mapping[str, str]:
        """Answer the turns of a round, by key, that are not `found`; hand over replies to `keep` as they come.

        Returns:
            Why there is no reply, by key.

        Raises:
            UserError: nothing can be answered.
            BudgetReachedError: nothing more may be asked.
        """
        ...

    def close(self) -> None: ...


class BudgetReachedError(Exception):
    """The next question could cost more than is left."""

    def __init__(self, spent: float, budget: float, currency: str) -> None:
        self.spent, self.budget, self.currency = spent, budget, currency
        super().__init__(f"{spent:.6g} of {budget:.6g} {currency}")


def ask(questions: Sequence[Question], backend: Backend, *, journal: Journal, retries: int) -> list[Outcome]:
    """Ask all questions; the outcomes in their order.

    Args:
        journal: of stage `STAGE` and digest `backend.digest`.
        retries: further tries per question, after an answer that is empty, cut off or fails its check.

    Raises:
        UserError: the back end cannot answer at all, or the budget is used up; answers so far are in the journal.
    """
    known = _walk(questions, backend, journal, retries)
    backend.count(known)
    states = [_State(question, question.messages, question.max_tokens) for question in questions]
    paid: set[str] = set()
    for number in range(retries + 1):
        waiting = [state for state in states if state.waits]
        if not waiting:
            break
        log.info("%s", "first tries" if number == 0 else f"further tries, round {number}")
        if reached := _ask_round(waiting, backend, journal, known, paid):
            raise _budget_error(reached, states)
    return [state.outcome() for state in states]


@dataclass
class _State:
    """A question on its way."""

    question: Question
    messages: tuple[Message, ...]
    max_tokens: int
    again: int = 0
    waits: bool = True
    value: Any = None
    problem: str | None = None
    tries: list[dict[str, Any]] = field(default_factory=list)
    spent: Usage = field(default_factory=Usage)

    @property
    def turn(self) -> Turn:
        question = self.question
        return Turn(question.id, self.messages, question.schema, self.max_tokens, question.seed, self.again)

    def outcome(self) -> Outcome:
        last = self.tries[-1] if self.tries else {}
        return Outcome(
            id=self.question.id,
            value=self.value,
            text=last.get("answer"),
            reasoning=last.get("reasoning"),
            problem=self.problem,
            tries=tuple(self.tries),
            usage=self.spent,
            from_journal=bool(self.tries) and all(item["from_journal"] for item in self.tries),
        )


def _walk(questions: Sequence[Question], backend: Backend, journal: Journal, retries: int) -> dict[str, Reply]:
    """All replies that the journal holds for these questions, by key: each followed as far as it goes."""
    known: dict[str, Reply] = {}
    states = [_State(question, question.messages, question.max_tokens) for question in questions]
    for _ in range(retries + 1):
        keys = [digest_of(backend.asked(state.turn)) for state in states]
        known |= {key: Reply(**row) for key, row in journal.load(set(keys) - known.keys()).items()}
        for key, state in zip(keys, states, strict=True):
            if key in known:
                _take(state, known[key], backend, from_journal=True, free=False)
        states = [state for key, state in zip(keys, states, strict=True) if key in known and state.waits]
        if not states:
            break
    return known


def _ask_round(
    waiting: Sequence[_State], backend: Backend, journal: Journal, known: Mapping[str, Reply], paid: set[str]
) -> BudgetReachedError | None:
    """Ask one try of each question, and note what came; what ended the round early, if anything did."""
    keys = [digest_of(backend.asked(state.turn)) for state in waiting]
    turns = {key: state.turn for key, state in zip(keys, waiting, strict=True)}
    found = {key: known[key] for key in turns if key in known}
    replies = dict(found)
    log.info("%d questions, %d different ones, %d found in the journal", len(waiting), len(turns), len(found))
    progress = _Progress(len(turns) - len(found), backend)

    def keep(fresh: Mapping[str, Reply]) -> None:
        journal.append({key: reply.row() for key, reply in fresh.items()})
        replies.update(fresh)
        progress.advance(fresh.values())

    problems: Mapping[str, str] = {}
    reached = None
    try:
        problems = backend.answers(turns, found, keep)
    except BudgetReachedError as error:
        reached = error
    for key, state in zip(keys, waiting, strict=True):
        if key in replies:
            _take(state, replies[key], backend, from_journal=key in found, free=key in paid)
            paid.add(key)
        elif reached is None:
            state.waits, state.problem = False, problems[key]
    return reached


def _take(state: _State, reply: Reply, backend: Backend, *, from_journal: bool, free: bool) -> None:
    """Note a reply, and what it leads to: a value, a further try, or a problem that no try mends."""
    value, problem = _judge(reply, state.question)
    usage = replace(Usage(), cost=backend.usage(reply).cost and 0.0) if free else backend.usage(reply)
    state.tries.append(
        {
            "messages": [message.row() for message in state.messages],
            "max_tokens": state.max_tokens,
            "answer": reply.content,
            "reasoning": reply.reasoning,
            "finish": reply.finish,
            "problem": problem,
            "usage": dict(usage.__dict__),
            "from_journal": from_journal,
        }
    )
    state.spent = state.spent + usage
    state.value, state.problem = value, problem
    if problem is None or reply.problem:
        state.waits = False
        return
    more = backend.grown(state.max_tokens) if reply.finish == "length" else None
    if more is not None:
        state.max_tokens, state.again = more, 0
    elif not reply.content.strip():
        state.again += 1
        state.waits = reply.finish != "length"
    else:
        repair = (Message(role="assistant", content=reply.content), _repair(problem))
        state.messages, state.again = state.messages + repair, 0


def _repair(problem: str) -> Message:
    return Message(role="user", content=REPAIR.format(problem=problem.partition(": ")[2] or problem))


def _judge(reply: Reply, question: Question) -> tuple[Any, str | None]:
    """(value, None), or (None, what is wrong with the answer)."""
    if reply.problem:
        return None, reply.problem
    if not reply.content.strip():
        used = f"{reply.output_tokens} tokens, {reply.reasoning_tokens} of them reasoning, ended by {reply.finish}"
        more = "; raise the most tokens of an answer" if reply.finish == "length" else ""
        return None, f"empty content: {used}{more}"
    text = unfenced(reply.content, any_label=question.schema is not None)
    kind = "cut off" if reply.finish == "length" else "wrong form"
    if question.schema is not None and (fault := json_fault(text, question.schema)):
        return None, f"{kind}: {fault}"
    try:
        return question.check(text), None
    except ValueError as error:
        return None, f"{kind}: {error}"


def unfenced(text: str, *, any_label: bool = True) -> str:
    """An answer out of its code fence, where it has just one; else as it is, without white space around it.

    Args:
        any_label: take the contents of a fence without a label too, not only of one labelled `json`.
    """
    found = FENCE.findall(text)
    if len(found) == 1 and (found[0][0].lower() == "json" or (any_label and found[0][0] == "")):
        return str(found[0][1]).strip()
    return text.strip()


def split_thinking(text: str, *, thinks: bool) -> tuple[str, str | None]:
    """Answer and reasoning of a text that may hold both: the answer is what follows `</think>`.

    Args:
        thinks: the model was to think first, and its template may have opened the thought: without an end of it there
            is no answer yet.
    """
    before, end, after = text.partition(THINK_END)
    if end:
        return after.strip(), before.removeprefix(THINK_START).strip()
    if thinks or text.lstrip().startswith(THINK_START):
        return "", text.strip().removeprefix(THINK_START).strip()
    return text, None


def _budget_error(reached: BudgetReachedError, states: Sequence[_State]) -> UserError:
    done = sum(state.problem is None and not state.waits for state in states)
    return UserError(
        f"the budget is used up: {reached.spent:.6g} of {reached.budget:.6g} {reached.currency} are spent, and the "
        f"next answer could cost more than what is left; {done} of {len(states)} rows are done",
        fix="raise `budget` of the server (it is shared out evenly to a stage's jobs) and start again: every answer is "
        "in the journal",
    )


class _Progress:
    """Logs answers, rate, time to go, tokens and cost so far."""

    def __init__(self, total: int, backend: Backend) -> None:
        self.total, self.backend = total, backend
        self.done = 0
        self.usage = Usage()
        self.start = self.last = time.monotonic()

    def advance(self, replies: Iterable[Reply]) -> None:
        for reply in replies:
            self.done += 1
            self.usage = self.usage + self.backend.usage(reply)
        now = time.monotonic()
        if now - self.last < PROGRESS_SECONDS and self.done < self.total:
            return
        self.last = now
        rate = self.done / max(now - self.start, 1e-9)
        log.info(
            "%d/%d answers, %.2f/s, %.0f s to go; tokens: %d in (%d cached), %d out (%d reasoning)%s",
            *(self.done, self.total, rate, (self.total - self.done) / max(rate, 1e-9)),
            *(self.usage.input_tokens, self.usage.cached_tokens),
            *(self.usage.output_tokens, self.usage.reasoning_tokens),
            "" if self.usage.cost is None else f"; cost {self.usage.cost:.4f}",
        )
