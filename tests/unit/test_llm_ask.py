"""The rounds of `ask`, with a back end from a script: checks, repair, growth, the journal, same questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from utterflow.errors import UserError
from utterflow.journal import Journal
from utterflow.llm.ask import (
    STAGE,
    BudgetReachedError,
    Question,
    Reply,
    Turn,
    Usage,
    ask,
    split_thinking,
    unfenced,
)
from utterflow.records import Message

LABEL = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}


class Scripted:
    """Answers by a function of the turn; remembers what it was asked."""

    digest = "0" * 64

    def __init__(self, script: Callable[[Turn], Reply | str], stop_after: int | None = None) -> None:
        self.script, self.turns, self.counted, self.stop_after = script, [], 0, stop_after

    def asked(self, turn: Turn) -> Mapping:
        return {"messages": [m.row() for m in turn.messages], "max_tokens": turn.max_tokens, "again": turn.again}

    def grown(self, max_tokens: int) -> int | None:
        return 2 * max_tokens if max_tokens < 40 else None

    def usage(self, reply: Reply) -> Usage:
        return Usage(reply.input_tokens, 0, reply.output_tokens, reply.reasoning_tokens, reply.output_tokens / 10)

    def count(self, replies) -> None:
        self.counted += len(replies)

    def answers(self, turns, found, keep):
        problems = {}
        for key, turn in turns.items():
            if key in found:
                continue
            if self.stop_after is not None and len(self.turns) >= self.stop_after:
                raise BudgetReachedError(1.5, 2.0, "USD")
            self.turns.append(turn)
            made = self.script(turn)
            if isinstance(made, str):
                problems[key] = made
            else:
                keep({key: made})
        return problems

    def close(self) -> None: ...


def reply(content: str, finish: str = "stop", **fields) -> Reply:
    return Reply(content, None, finish, 7, 0, 10, fields.pop("reasoning_tokens", 0), **fields)


def number_in(text: str) -> int:
    return int(text)


def question(name: str, text: str | None = None, schema=None, check=number_in) -> Question:
    return Question(name, (Message(role="user", content=text or name),), schema, 10, 1, check)


def last(turn: Turn) -> str:
    return str(turn.messages[-1].content)


def run(tmp_path, questions, backend, retries=2, shard=0, shards=1, scope="s"):
    with Journal(tmp_path, STAGE, backend.digest, scope, shard, shards) as journal:
        return ask(questions, backend, journal=journal, retries=retries)


def test_outcomes_stand_in_order_with_value_text_and_usage(tmp_path):
    backend = Scripted(lambda turn: reply(last(turn)))
    found = run(tmp_path, [question("3"), question("1"), question("2")], backend)
    assert [(item.id, item.value, item.text, item.problem) for item in found] == [
        ("3", 3, "3", None), ("1", 1, "1", None), ("2", 2, "2", None)
    ]  # fmt: skip
    assert found[0].usage == Usage(7, 0, 10, 0, 1.0) and not found[0].from_journal
    assert found[0].tries[0]["messages"] == [{"role": "user", "content": "3"}]


def test_a_wrong_answer_is_repaired_with_what_was_wrong(tmp_path):
    backend = Scripted(lambda turn: reply("5" if len(turn.messages) == 5 else "five"))
    (found,) = run(tmp_path, [question("q")], backend)
    assert found.value == 5 and found.problem is None and len(found.tries) == 3
    repair = backend.turns[1].messages
    assert [item.role for item in repair] == ["user", "assistant", "user"] and repair[1].content == "five"
    assert "invalid literal for int() with base 10: 'five'" in repair[2].content
    assert [item["problem"] is None for item in found.tries] == [False, False, True]
    assert found.usage.output_tokens == 30 and found.usage.cost == pytest.approx(3.0)


def test_after_the_last_try_the_problem_stands(tmp_path):
    backend = Scripted(lambda turn: reply("five"))
    (found,) = run(tmp_path, [question("q")], backend, retries=1)
    assert found.value is None and found.text == "five" and found.problem.startswith("wrong form: invalid literal")
    assert len(backend.turns) == 2


def test_answers_that_do_not_follow_the_schema_are_asked_again_before_the_check_sees_them(tmp_path):
    answers = iter(["label: a", '{"label": "c"}', '```json\n{"label": "b"}\n```'])
    backend = Scripted(lambda turn: reply(next(answers)))
    (found,) = run(tmp_path, [question("q", schema=LABEL, check=json.loads)], backend)
    assert found.value == {"label": "b"} and found.text.startswith("```json")
    assert "not valid JSON" in found.tries[0]["problem"]
    assert "at label: 'c' is not one of ['a', 'b']" in found.tries[1]["problem"]


def test_an_empty_answer_is_asked_again_with_more_tokens(tmp_path):
    backend = Scripted(lambda turn: reply("", "length", reasoning_tokens=10) if turn.max_tokens < 40 else reply("4"))
    (found,) = run(tmp_path, [question("q")], backend)
    assert found.value == 4 and [turn.max_tokens for turn in backend.turns] == [10, 20, 40]
    assert all(len(turn.messages) == 1 for turn in backend.turns), "nothing was said that could be repaired"
    assert found.tries[0]["problem"].startswith("empty content: 10 tokens, 10 of them reasoning, ended by length")


def test_an_answer_that_no_more_tokens_are_allowed_for_is_given_up(tmp_path):
    backend = Scripted(lambda turn: reply("", "length"))
    (found,) = run(tmp_path, [question("q")], backend, retries=9)
    assert [turn.max_tokens for turn in backend.turns] == [10, 20, 40]
    assert found.problem.startswith("empty content") and "raise the most tokens" in found.problem


def test_an_empty_answer_that_ended_by_itself_is_asked_again_as_it_was(tmp_path):
    backend = Scripted(lambda turn: reply(" \n" if turn.again < 2 else "4"))
    (found,) = run(tmp_path, [question("q")], backend)
    assert found.value == 4 and [turn.again for turn in backend.turns] == [0, 1, 2]


def test_a_cut_answer_grows_and_then_is_repaired(tmp_path):
    backend = Scripted(lambda turn: reply("4" if len(turn.messages) > 1 else "four hund", "length"))
    (found,) = run(tmp_path, [question("q")], backend, retries=3)
    assert [(turn.max_tokens, len(turn.messages)) for turn in backend.turns] == [(10, 1), (20, 1), (40, 1), (40, 3)]
    assert found.value == 4 and found.tries[0]["problem"].startswith("cut off: ")


def test_what_asking_again_cannot_mend_is_asked_once(tmp_path):
    def script(turn: Turn) -> Reply | str:
        return "no answer: HTTP 400" if last(turn) == "bad" else reply("", problem="refused: no")

    backend = Scripted(script)
    found = run(tmp_path, [question("bad"), question("worse")], backend)
    assert [item.problem for item in found] == ["no answer: HTTP 400", "refused: no"] and len(backend.turns) == 2
    assert found[0].tries == () and found[0].text is None


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_rerun_asks_nothing_and_ends_with_the_same(tmp_path, shards):
    def script(turn: Turn) -> Reply | str:
        return reply("1" if len(turn.messages) > 1 or last(turn) != "q3" else "one")

    questions = [question(f"q{index}") for index in range(8)]
    first = run(tmp_path, questions, Scripted(script))
    again = Scripted(script)
    second = [run(tmp_path, questions[shard::shards], again, shard=shard, shards=shards) for shard in range(shards)]
    assert again.turns == [] and again.counted == 9
    for shard, part in enumerate(second):
        for new, old in zip(part, first[shard::shards], strict=True):
            assert (new.value, new.text, new.problem, new.usage) == (old.value, old.text, old.problem, old.usage)
            assert new.from_journal and not old.from_journal


def test_more_and_fewer_retries_use_what_is_there(tmp_path):
    backend = Scripted(lambda turn: reply("4" if len(turn.messages) > 3 else "four"))
    assert run(tmp_path, [question("q")], backend, retries=1)[0].value is None
    (found,) = run(tmp_path, [question("q")], backend, retries=2)
    assert found.value == 4 and len(backend.turns) == 3 and not found.from_journal
    (found,) = run(tmp_path, [question("q")], backend, retries=0)
    assert found.value is None and len(found.tries) == 1 and len(backend.turns) == 3


def test_questions_that_are_the_same_are_asked_and_paid_once(tmp_path):
    backend = Scripted(lambda turn: reply("4"))
    one, other = run(tmp_path, [question("x", "how many?"), question("y", "how many?")], backend)
    assert len(backend.turns) == 1 and one.value == other.value == 4
    assert one.usage == Usage(7, 0, 10, 0, 1.0) and other.usage == Usage(0, 0, 0, 0, 0.0)


def test_a_reached_budget_says_what_is_spent_and_done_and_keeps_the_answers(tmp_path):
    questions = [question(str(index)) for index in range(5)]
    with pytest.raises(UserError, match=r"1.5 of 2 USD are spent.*3 of 5 rows are done") as error:
        run(tmp_path, questions, Scripted(lambda turn: reply(last(turn)), stop_after=3))
    assert "raise `budget`" in str(error.value)
    backend = Scripted(lambda turn: reply(last(turn)))
    assert [item.value for item in run(tmp_path, questions, backend)] == [0, 1, 2, 3, 4] and len(backend.turns) == 2


def test_what_later_rounds_have_paid_is_counted_before_anything_is_asked(tmp_path):
    backend = Scripted(lambda turn: reply("4" if len(turn.messages) > 1 else "four"))
    run(tmp_path, [question("old")], backend)
    counted = []

    class Watching(Scripted):
        def answers(self, turns, found, keep):
            counted.append(self.counted)
            return super().answers(turns, found, keep)

    run(tmp_path, [question("old"), question("new")], Watching(lambda turn: reply("4")))
    assert counted[0] == 2, "first try and repair of the old question"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('```json\n{"a": 1}\n```', '{"a": 1}'),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}'),
        ("```\nx\n```", "x"),
        ('  {"a": "```"} ', '{"a": "```"}'),
        ("```json\n1\n```\n```json\n2\n```", "```json\n1\n```\n```json\n2\n```"),
        ("```python\n1\n```", "```python\n1\n```"),
    ],
)
def test_code_fences(text, expected):
    assert unfenced(text) == expected


def test_text_keeps_a_fence_without_a_label():
    assert unfenced("```\nx\n```", any_label=False) == "```\nx\n```"


@pytest.mark.parametrize(
    ("text", "thinks", "expected"),
    [
        ("<think>\nhm\n</think>\n\n4", True, ("4", "hm")),
        ("hm\n</think>4", True, ("4", "hm")),
        ("hm, still", True, ("", "hm, still")),
        ("4", False, ("4", None)),
        ("<think>hm</think>4", False, ("4", "hm")),
        ("<think>hm", False, ("", "hm")),
        ("hm</think>", True, ("", "hm")),
    ],
)
def test_thoughts_are_split_from_the_answer(text, thinks, expected):
    assert split_thinking(text, thinks=thinks) == expected
