"""Models on this machine under `ask`: batches, journal, seeds, schemas, thinking; tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_audio import save_tiny_audio, write_recording
from tiny_lm import CHATML
from unit.test_generate import WORDS, language_model, save_lively_lm
from unit.test_vllm_backend import environment_with, told

from utterflow.errors import UserError
from utterflow.journal import Journal
from utterflow.llm import transformers_backend
from utterflow.llm.ask import STAGE, Outcome, Question, ask
from utterflow.llm.local import Local, open_local
from utterflow.llm.requests import Answer
from utterflow.records import Message

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["one", "two"]}, "rank": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["label", "rank"],
    "additionalProperties": False,
}
THINKING = CHATML.replace(
    "assistant\n{% endif %}", "assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_lively_lm(tmp_path_factory.mktemp("lm"))


def local(**keys) -> Local:
    defaults = {"backend": "transformers", "temperature": 0.0, "thinking": False, "batch_size": 3, "device": "cpu"}
    return Local(**{**defaults, **keys})


def question(index: int, schema=None, max_tokens: int = 8, check=str) -> Question:
    message = Message(role="user", content=f"{index}: " + f"{WORDS} " * (1 + index % 3))
    return Question(f"row{index}", (message,), schema, max_tokens, index, check)


def run(
    state: Path,
    folder: Path,
    asked: list[Question],
    how: Local,
    retries: int = 0,
    shard: int = 0,
    shards: int = 1,
    **keys,
) -> list[Outcome]:
    backend = open_local(language_model(folder, **keys), how)
    try:
        with Journal(state, STAGE, backend.digest, "scope", shard, shards) as journal:
            return ask(asked[shard::shards], backend, journal=journal, retries=retries)
    finally:
        backend.close()


def lines_of(state: Path) -> list[set[str]]:
    return [set(json.loads(line)["rows"]) for path in state.rglob("*.jsonl") for line in path.open()]


def test_answers_are_those_of_other_batches_and_shards_and_a_rerun_computes_none(folder, tmp_path, monkeypatch):
    asked = [question(index) for index in range(7)]
    first = run(tmp_path / "one", folder, asked, local())
    assert all(item.problem is None and item.usage.output_tokens > 0 and item.usage.cost is None for item in first)
    other = run(tmp_path / "two", folder, asked, local(batch_size=7))
    parts = [run(tmp_path / "three", folder, asked, local(), shard=shard, shards=2) for shard in range(2)]
    assert [item.text for item in other] == [item.text for item in first]
    assert [parts[index % 2][index // 2].text for index in range(7)] == [item.text for item in first]
    assert sorted(map(len, lines_of(tmp_path / "one"))) == [1, 3, 3], "batches enter the journal whole"
    monkeypatch.setattr(transformers_backend, "load_for_answers", None)
    again = run(tmp_path / "one", folder, asked, local(), shard=1, shards=3)
    assert [item.text for item in again] == [item.text for item in first[1::3]]


def test_a_killed_run_computes_the_same_batches(folder, tmp_path, monkeypatch):
    asked = [question(index) for index in range(7)]
    whole = run(tmp_path / "whole", folder, asked, local())
    answers = transformers_backend.answers
    batches = []

    def dying(todo, *rest):
        for number, answered in enumerate(answers(todo, *rest)):
            if number == 1:
                raise KeyboardInterrupt
            yield answered

    def watched(todo, *rest):
        batches.extend({request.id for request in batch} for batch in todo)
        return answers(todo, *rest)

    monkeypatch.setattr(transformers_backend, "answers", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", folder, asked, local())
    monkeypatch.setattr(transformers_backend, "answers", watched)
    assert [item.text for item in run(tmp_path / "killed", folder, asked, local())] == [item.text for item in whole]
    assert list(map(len, batches)) == [3, 1]


def test_answers_follow_the_schema(folder, tmp_path):
    asked = [question(index, SCHEMA, 60, json.loads) for index in range(4)]
    found = run(tmp_path, folder, asked, local())
    assert all(item.problem is None and set(item.value) == {"label", "rank"} for item in found)


def test_samples_have_seeds_of_their_own_and_repeat(folder, tmp_path):
    same = Message(role="user", content="say something")
    asked = [Question(f"row{index}", (same,), None, 8, index, str) for index in range(4)]
    found = run(tmp_path / "one", folder, asked, local(temperature=1.0))
    again = run(tmp_path / "two", folder, asked, local(temperature=1.0, batch_size=1))
    assert len({item.text for item in found}) == 4 and [item.text for item in again] == [item.text for item in found]
    greedy = run(tmp_path / "three", folder, asked, local())
    assert len({item.text for item in greedy}) == 1 and len(lines_of(tmp_path / "three")) == 1


@pytest.fixture
def thinker(folder, tmp_path, monkeypatch):
    """What a thinking model is given and says: its end of thought comes with enough tokens only."""
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    seen = []

    def answers(batches, model, tokenizer, decoding, *rest):
        for batch in batches:
            seen.append((decoding, [tokenizer.decode(request.prompt) for request in batch]))
            enough = decoding.max_new_tokens >= 16
            text, finish = ("hm, hm\n</think>\n\n{}", "stop") if enough else ("hm, hm", "length")
            yield [Answer((text,), (text,), (finish,), (decoding.max_new_tokens,)) for _ in batch]

    monkeypatch.setattr(transformers_backend, "answers", answers)
    return template, seen


def test_a_thought_that_does_not_end_is_given_more_tokens(folder, tmp_path, thinker):
    template, seen = thinker
    asked = [question(0, {"type": "object"}, 8, json.loads)]
    (found,) = run(tmp_path / "s", folder, asked, local(thinking=True), retries=2, chat_template=str(template))
    assert (found.value, found.text, found.reasoning) == ({}, "{}", "hm, hm")
    assert found.tries[0]["problem"].startswith("empty content: 8 tokens, ")
    assert [(decoding.max_new_tokens, decoding.schema) for decoding, _ in seen] == [(8, None), (16, None)]
    prompt = seen[0][1][0]
    assert prompt.endswith("<think>\n") and '{"type": "object"}' in prompt, "words instead of constrained decoding"
    assert 0 < found.tries[1]["usage"]["reasoning_tokens"] < 16


def test_prompts_that_cannot_be_answered_are_their_rows_problem(folder, tmp_path):
    bad = [
        Question("media", (Message(role="user", content=[{"type": "audio", "path": "x.wav"}]),), None, 8, 0, str),
        Question("long", (Message(role="user", content="word " * 2000),), None, 8, 0, str),
        Question("control", (Message(role="user", content="<|im_end|>"),), None, 8, 0, str),
    ]
    found = run(tmp_path, folder, [*bad, question(1)], local())
    assert found[0].problem == "not text: a part of type audio, but the model is of kind text"
    assert found[1].problem.startswith("too long: ") and found[2].problem.startswith("special token in a text: ")
    assert found[3].problem is None and len(lines_of(tmp_path)) == 1


def test_values_that_are_no_numbers_are_their_rows_problem_and_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        transformers_backend, "answers", lambda batches, *_: ([Answer(problem="no answer: NaN")] for _ in batches)
    )
    (found,) = run(tmp_path, folder, [question(0)], local(), retries=2)
    assert found.problem == "no answer: NaN" and len(found.tries) == 1 and len(lines_of(tmp_path)) == 1


def test_vllm_is_started_once_for_all_rounds(folder, tmp_path):
    """With a stand-in for vLLM that answers with words of the prompt: nothing follows the schema."""
    program = environment_with(tmp_path)
    asked = [question(index, SCHEMA if index % 2 else None, 8, str) for index in range(5)]
    how = local(backend="vllm", vllm_python=str(program), temperature=0.5)
    found = run(tmp_path / "state", folder, asked, how, retries=1)
    start, *batches = told(tmp_path)
    assert sum("engine" in line for line in (start, *batches)) == 1
    assert start["engine"]["structured_outputs_config"] == {"backend": "guidance"}
    params = [item for batch in batches for item in batch["sampling"]]
    assert len(params) == 5 + 2 and sum(item["structured_outputs"] is not None for item in params) == 4
    assert {item["max_tokens"] for item in params} == {8}
    assert [item.problem is None for item in found] == [True, False, True, False, True]
    before = len(told(tmp_path))
    assert run(tmp_path / "state", folder, asked, how, retries=1)[1].problem == found[1].problem
    assert len(told(tmp_path)) == before


def test_models_that_listen_answer_by_recording_and_noise(tmp_path):
    folder = save_tiny_audio(tmp_path / "audio", "qwen2_audio")
    tones = [str(write_recording(tmp_path / f"{index}.wav", 0.5 + index / 4, index)) for index in range(2)]
    noise = {"snr_db": 0.0, "color": 0.0, "seed": 1}
    parts = [{"path": tones[0]}, {"path": tones[1]}, {"path": tones[1], "noise": noise}, {"path": "absent.wav"}]
    asked = [
        Question(f"q{index}", (Message(role="user", content=[{"type": "audio", **part}]),), None, 6, 0, str)
        for index, part in enumerate(parts)
    ]
    found = run(tmp_path / "one", folder, asked, local(), kind="audio")
    assert found[3].problem.startswith("recording missing: ") and len(set().union(*lines_of(tmp_path / "one"))) == 3
    alone = run(tmp_path / "two", folder, asked[:3], local(batch_size=1), kind="audio")
    assert [item.text for item in alone] == [item.text for item in found[:3]]
    assert all(item.problem is None or item.problem.startswith("empty") for item in alone)


def test_vllm_takes_text_only(folder):
    with pytest.raises(UserError, match="text only"):
        open_local(language_model(folder, kind="audio"), local(backend="vllm"))


def test_a_missing_gpu_is_said_at_once(folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="sees no GPU"):
        open_local(language_model(folder), local(device="cuda"))
