"""The back end `api` against a fake server: requests, faults, limits, budget, keys."""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_server import FakeServer, last_text

from utterflow.audio import add_noise, load_audio
from utterflow.config.servers import Server
from utterflow.errors import UserError
from utterflow.journal import Journal
from utterflow.llm import api_round, limits
from utterflow.llm.api import open_server, server_of
from utterflow.llm.ask import STAGE, Outcome, Question, ask
from utterflow.llm.limits import Bucket, retry_after
from utterflow.llm.prices import most_input_tokens, worst_cost
from utterflow.records import Message, Noise

SECRET = "sk-f00dfeedf00dfeedf00d"
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["a", "b"]}},
    "required": ["label"],
    "additionalProperties": False,
}
PRICES = {"input": 1000.0, "cached_input": 100.0, "output": 2000.0}  # per million tokens


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(limits, "BACKOFF", 0.01)


def server(fake: FakeServer, **keys) -> Server:
    return Server.model_validate({"model": "nano", "base_url": fake.url, "concurrency": 4, **keys})


def question(name: str, content=None, schema=None, max_tokens: int = 50, check=str) -> Question:
    messages = (Message(role="system", content="Answer."), Message(role="user", content=content or name))
    return Question(name, messages, schema, max_tokens, 1, check)


def questions(count: int) -> list[Question]:
    return [question(f"question {index}") for index in range(count)]


def run(tmp_path: Path, asked: list[Question], section: Server, retries: int = 2, **keys) -> list[Outcome]:
    backend = open_server(section, **keys)
    try:
        with Journal(tmp_path / "state", STAGE, backend.digest, "scope") as journal:
            return ask(asked, backend, journal=journal, retries=retries)
    finally:
        backend.close()


def once(*faults: dict):
    """The first tries of each request fail, in this order."""
    return lambda body, before: faults[before] if before < len(faults) else None


def of_first(count: int, fault: dict):
    """The first `count` requests fail."""
    seen = []

    def plan(body, before):
        seen.append(body)
        return fault if len(seen) <= count else None

    return plan


# Requests


def test_a_request_holds_what_is_asked_and_a_reply_what_was_counted(tmp_path):
    answer = {
        "content": "yes",
        "reasoning_content": "since",
        "usage": {
            "prompt_tokens": 20,
            "prompt_tokens_details": {"cached_tokens": 5},
            "completion_tokens": 30,
            "completion_tokens_details": {"reasoning_tokens": 25},
        },
    }
    with FakeServer(lambda body: answer) as fake:
        section = server(fake, prices=PRICES, extra={"thinking": {"type": "enabled"}})
        (found,) = run(tmp_path, [question("q")], section)
    assert fake.bodies == [
        {
            "model": "nano",
            "max_tokens": 50,
            "temperature": 0.0,
            "thinking": {"type": "enabled"},
            "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": "q"}],
        }
    ]
    assert "authorization" not in fake.headers[0] and "openai-organization" not in fake.headers[0]
    assert (found.value, found.reasoning) == ("yes", "since")
    usage = found.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens) == (20, 5, 30, 25)
    assert usage.cost == pytest.approx((15 * 1000 + 5 * 100 + 30 * 2000) / 1e6)


def test_names_of_fields_follow_the_server(tmp_path):
    with FakeServer() as fake:
        section = server(fake, max_tokens_field="max_completion_tokens", send_temperature=False)
        run(tmp_path, [question("q")], section, temperature=0.7)
        run(tmp_path, [question("q")], server(fake), temperature=0.7)
    assert fake.bodies[0].keys() == {"model", "messages", "max_completion_tokens"}
    assert fake.bodies[1]["temperature"] == 0.7 and fake.bodies[1]["seed"] == 1


@pytest.mark.parametrize("structured", ["json_schema", "json_object", "none"])
def test_a_schema_goes_the_way_that_the_server_takes(tmp_path, structured):
    with FakeServer(lambda body: '```json\n{"label": "b"}\n```') as fake:
        asked = [question("q", schema=SCHEMA, check=json.loads)]
        (found,) = run(tmp_path, asked, server(fake, structured=structured))
    assert found.value == {"label": "b"}
    body = fake.bodies[0]
    form, words = body.get("response_format"), body["messages"][0]["content"]
    if structured == "json_schema":
        assert form["json_schema"]["schema"] == SCHEMA and form["json_schema"]["strict"] and words == "Answer."
    else:
        assert form == ({"type": "json_object"} if structured == "json_object" else None)
        assert words.startswith("Answer.\n\n") and json.dumps(SCHEMA) in words


def test_deepseeks_counts_and_thoughts_within_the_text(tmp_path):
    answer = {"content": "<think>hm</think>4", "usage": {"prompt_tokens": 9, "prompt_cache_hit_tokens": 4}}
    with FakeServer(lambda body: answer) as fake:
        (found,) = run(tmp_path, [question("q")], server(fake))
    assert (found.text, found.reasoning, found.usage.cached_tokens) == ("4", "hm", 4)


def test_halves_of_characters_and_answers_in_parts_can_be_kept(tmp_path):
    parts = [{"type": "text", "text": "half \ud83d of"}, {"type": "text", "text": " a smile"}]
    with FakeServer(lambda body: {"content": parts, "reasoning": "\udc00"}) as fake:
        (found,) = run(tmp_path, [question("q")], server(fake))
    assert (found.text, found.reasoning) == ("half ? of a smile", "?")


def test_tokens_that_the_server_does_not_count_are_taken_for_the_most(tmp_path):
    with FakeServer(lambda body: {"content": "4", "usage": {"prompt_tokens": None, "completion_tokens": None}}) as fake:
        (found,) = run(tmp_path, [question("q")], server(fake))
    assert found.usage.output_tokens == 50 and found.usage.input_tokens > 20


def test_a_thinking_model_is_given_more_tokens_up_to_the_limit(tmp_path):
    def answer(body):
        if body["max_tokens"] >= 120:
            return "done"
        usage = {"completion_tokens": body["max_tokens"], "completion_tokens_details": {"reasoning_tokens": 50}}
        return {"content": None, "reasoning_content": "hm", "finish_reason": "length", "usage": usage}

    with FakeServer(answer) as fake:
        (found,) = run(tmp_path, [question("q")], server(fake, grow_on_empty=2, max_tokens_limit=120))
        assert found.value == "done" and [body["max_tokens"] for body in fake.bodies] == [50, 100, 120]
        (found,) = run(tmp_path / "other", [question("q")], server(fake, max_tokens_limit=100), retries=5)
    assert found.problem.startswith("empty content: 100 tokens") and len(fake.bodies) == 5


def test_a_refusal_is_the_rows_problem_and_is_not_repeated(tmp_path):
    with FakeServer(lambda body: {"content": None, "refusal": "I can't."}) as fake:
        (found,) = run(tmp_path, [question("q")], server(fake))
    assert found.problem == "refused: I can't." and len(fake.bodies) == 1


# Recordings and images


@pytest.fixture
def recording(tmp_path) -> Path:
    time_axis = np.arange(24_000) / 48_000
    path = tmp_path / "tone.flac"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * time_axis), 48_000)
    return path


def test_recordings_are_sent_as_they_are_heard(tmp_path, recording):
    noise = Noise(snr_db=3.0, color=1.0, seed=7)
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG dots")
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "audio", "path": str(recording), "noise": noise.row()},
        {"type": "image", "path": str(picture)},
    ]
    with FakeServer() as fake:
        run(tmp_path, [question("q", parts)], server(fake, accepts=["audio", "image"]))
    text, audio, image = fake.bodies[0]["messages"][1]["content"]
    assert text == {"type": "text", "text": "What is this?"} and audio["input_audio"]["format"] == "wav"
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(audio["input_audio"]["data"])), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(heard, add_noise(load_audio(recording), noise), atol=1 / 32_000)
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG dots").decode()


def test_the_journal_knows_a_recording_by_its_content_and_noise(tmp_path, recording):
    copy = tmp_path / "copy.flac"
    copy.write_bytes(recording.read_bytes())
    noise = Noise(snr_db=3.0, color=1.0, seed=7).row()
    with FakeServer() as fake:
        for part in ({"path": str(recording)}, {"path": str(copy)}, {"path": str(copy), "noise": noise}):
            run(tmp_path, [question("q", [{"type": "audio", **part}])], server(fake, accepts=["audio"]))
    assert len(fake.bodies) == 2


@pytest.mark.parametrize("kind", ["audio", "image"])
def test_a_server_that_does_not_take_a_part_is_not_asked(tmp_path, kind):
    asked = [question("first"), question("q7", [{"type": kind, "path": "x.wav"}])]
    with FakeServer() as fake, pytest.raises(UserError, match=f"takes no {kind}") as error:
        run(tmp_path, asked, server(fake))
    assert "q7" in str(error.value) and f"accepts: [{kind}]" in str(error.value) and fake.bodies == []


def test_a_broken_recording_is_its_rows_problem(tmp_path, recording):
    (tmp_path / "notes.txt").write_text("no picture")
    parts = [
        {"type": "audio", "path": str(tmp_path / "absent.wav")},
        {"type": "audio", "path": str(recording)},
        {"type": "image", "path": str(tmp_path / "notes.txt")},
    ]
    asked = [question(f"q{index}", [part]) for index, part in enumerate(parts)]
    with FakeServer() as fake:
        found = run(tmp_path, asked, server(fake, accepts=["audio", "image"]))
    assert found[0].problem.startswith("missing: ") and found[1].problem is None
    assert found[2].problem.startswith("not an image that can be sent: ") and len(fake.bodies) == 1


# Faults


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503},
        {"status": 408},
        {"status": 409},
        {"what": "drop"},
        {"what": "cut"},
        {"what": "cut", "whole_length": True},
        {"what": "garbage"},
        {"what": "hang", "seconds": 5},
    ],
    ids=lambda fault: "-".join(map(str, fault.values())),
)
def test_passing_faults_are_waited_out(tmp_path, fault):
    with FakeServer(fault=once(fault, fault)) as fake:
        found = run(tmp_path, questions(3), server(fake, timeout=1 if fault.get("seconds") else 30, retries=2))
        assert [item.value for item in found] == [f"re: question {index}" for index in range(3)]
        assert set(fake.asked.values()) == {3} and set(fake.answered.values()) == {1}


def test_a_lasting_fault_is_its_rows_problem_and_asked_again_by_the_next_run(tmp_path):
    broken = {"on": True}

    def plan(body, before):
        return {"status": 500} if broken["on"] and last_text(body) == "question 1" else None

    with FakeServer(fault=plan) as fake:
        found = run(tmp_path, questions(4), server(fake, retries=1))
        assert found[1].problem == "no answer: HTTP 500: injected, asked 2 times"
        assert [item.problem is None for item in found] == [True, False, True, True]
        broken["on"] = False
        assert all(item.problem is None for item in run(tmp_path, questions(4), server(fake)))
        assert sum(fake.asked.values()) == 3 + 2 + 1


def test_a_request_that_the_server_does_not_take_is_its_rows_problem(tmp_path):
    plan = lambda body, before: {"status": 400, "body": {"error": {"message": "too\nlong"}}}  # noqa: E731
    with FakeServer(fault=plan) as fake:
        (found,) = run(tmp_path, questions(1), server(fake))
    assert found.problem == "no answer: HTTP 400: too long, asked 1 times" and len(fake.bodies) == 1


@pytest.mark.parametrize(
    ("status", "body", "advice"),
    [
        (401, {"error": {"message": f"Incorrect key {SECRET}"}}, "set the right one in THE_KEY"),
        (402, {"error": {"message": "Insufficient Balance"}}, "top it up"),
        (403, {"error": {"message": "not allowed"}}, "rights"),
        (404, {"detail": "Not Found"}, "base_url"),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, "mend"),
    ],
)
def test_what_no_repetition_mends_ends_the_job_at_once(tmp_path, status, body, advice):
    with FakeServer(fault=lambda *_: {"status": status, "body": body}) as fake:
        with pytest.raises(UserError, match=f"HTTP {status}") as error:
            run(tmp_path, questions(50), server(fake, key_env="THE_KEY"), environ={"THE_KEY": SECRET})
        assert len(fake.bodies) <= 4
    assert advice in str(error.value) and SECRET not in str(error.value)


def test_a_server_that_is_down_ends_the_job_and_not_every_row(tmp_path):
    with FakeServer() as fake:
        section = server(fake, retries=0)
    with pytest.raises(UserError, match="20 questions in a row got no answer; the last reason: connection"):
        run(tmp_path, questions(500), section)


def test_answers_between_faults_keep_the_job_alive(tmp_path):
    plan = lambda body, before: {"status": 400} if int(last_text(body).split()[1]) % 2 else None  # noqa: E731
    with FakeServer(fault=plan) as fake:
        found = run(tmp_path, questions(100), server(fake, concurrency=1))
    assert sum(item.problem is None for item in found) == 50


# Limits


@pytest.mark.parametrize("form", ["seconds", "ms", "date"])
def test_a_wanted_pause_stops_all_requests_and_uses_up_no_try(tmp_path, form):
    def headers() -> dict[str, str]:
        if form == "date":
            return {"retry-after": format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)}
        return {"retry-after": "1"} if form == "seconds" else {"retry-after-ms": "900"}

    with FakeServer(fault=of_first(4, {"status": 429, "headers": headers()}), latency=0.05) as fake:
        found = run(tmp_path, questions(12), server(fake, retries=0))
        assert all(item.problem is None for item in found)
        before, after = fake.times[:4], fake.times[4:]
    assert min(after) - max(before) > 0.5, "nobody asks during the pause"
    assert sum(fake.asked.values()) == 16


def test_429_without_a_time_pauses_all_with_growing_pauses(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "BACKOFF", 0.1)
    with FakeServer(fault=of_first(6, {"status": 429})) as fake:
        found = run(tmp_path, questions(8), server(fake, concurrency=2, retries=0))
    assert all(item.problem is None for item in found) and sum(fake.asked.values()) == 14
    assert fake.times[-1] - fake.times[0] > 0.3


def test_a_server_that_only_wants_pauses_ends_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr(api_round, "MAX_PAUSES", 3)
    plan = lambda *_: {"status": 429, "headers": {"retry-after-ms": "10"}}  # noqa: E731
    with FakeServer(fault=plan) as fake, pytest.raises(UserError, match="3 pauses in a row"):
        run(tmp_path, questions(50), server(fake))


def test_a_row_that_always_wants_pauses_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(api_round, "MAX_WAITS", 2)
    fault = {"status": 503, "headers": {"retry-after-ms": "1"}}
    with FakeServer(fault=lambda body, before: fault if last_text(body) == "question 3" else None) as fake:
        found = run(tmp_path, questions(8), server(fake))
    assert [item.id for item in found if item.problem] == ["question 3"]


def test_no_more_requests_at_a_time_than_allowed(tmp_path):
    with FakeServer(latency=0.2) as fake:
        run(tmp_path, questions(15), server(fake, concurrency=5))
        assert fake.most_in_flight == 5


def test_requests_per_minute(tmp_path):
    with FakeServer() as fake:
        run(tmp_path, questions(21), server(fake, requests_per_minute=600))
    assert fake.times[-1] - fake.times[0] > 1.0, "10 per second, but for a quarter of a second's at once"


def test_tokens_per_minute_are_corrected_by_what_was_used(tmp_path):
    answer = {"content": "x", "usage": {"prompt_tokens": 500, "completion_tokens": 500}}
    with FakeServer(lambda body: answer) as fake:
        run(tmp_path, questions(5), server(fake, concurrency=1, tokens_per_minute=240_000))
    assert fake.times[-1] - fake.times[0] > 0.5, "1,000 tokens each at 4,000 per second; far fewer were estimated"


def test_a_bucket_admits_no_more_than_its_rate(monkeypatch):
    import asyncio

    clock = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: clock[0])

    async def sleep(seconds):
        clock[0] += seconds

    async def admitted() -> list[float]:
        bucket = Bucket(30)
        times = []
        for index in range(200):
            await bucket.take(1)
            times.append(clock[0])
            clock[0] += 40.0 if index == 100 else 0.0
        return times

    monkeypatch.setattr(limits.asyncio, "sleep", sleep)
    times = np.array(asyncio.run(admitted()))
    assert max(((times >= start) & (times < start + 59.99)).sum() for start in times) == 30
    assert times[99] < 99 * 2.0 * 1.02


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
    ],
)
def test_how_long_a_server_wants_to_wait(headers, seconds):
    assert retry_after(headers) == seconds


# Budget


def priced(count: int):
    return {"content": "word", "usage": {"prompt_tokens": 100, "completion_tokens": count}}


def test_the_budget_stops_before_it_is_passed(tmp_path):
    most = most_input_tokens(question("question 10").messages, None, 0)
    with FakeServer(lambda body: priced(50), latency=0.02) as fake:
        section = server(fake, prices=PRICES, concurrency=3)
        worst = worst_cost(most, 50, section.prices)
        assert worst == pytest.approx(0.1 + most / 1000) and worst > 0.2
        with pytest.raises(UserError, match=r"0.8 of 1 USD are spent.*4 of 10 rows are done"):
            run(tmp_path, questions(10), section, budget=1.0)
        assert sum(fake.answered.values()) == 4, "0.2 each; a fifth could have cost more than 0.2"
        with pytest.raises(UserError, match=r"0.8 of 0.9 USD"):
            run(tmp_path, questions(10), section, budget=0.9)
        assert sum(fake.asked.values()) == 4, "the journal's answers count"
        found = run(tmp_path, questions(10), section, budget=10.0)
        assert sum(fake.asked.values()) == 10 and sum(item.usage.cost for item in found) == pytest.approx(2.0)


def test_the_budget_counts_requests_that_may_have_been_billed(tmp_path):
    with FakeServer(fault=lambda *_: {"what": "drop"}) as fake, pytest.raises(UserError, match="budget"):
        run(tmp_path, questions(10), server(fake, prices=PRICES, retries=9), budget=1.0)
    assert 1 <= len(fake.bodies) <= 6


def test_errors_that_are_not_billed_do_not_count_against_the_budget(tmp_path):
    with FakeServer(lambda body: priced(50), once({"status": 500}, {"status": 500})) as fake:
        found = run(tmp_path, questions(3), server(fake, prices=PRICES), budget=0.75)
    assert all(item.problem is None for item in found) and sum(fake.asked.values()) == 9


def test_other_prices_change_the_cost_and_ask_nothing(tmp_path):
    with FakeServer(lambda body: priced(50)) as fake:
        first = run(tmp_path, questions(2), server(fake, prices=PRICES))
        doubled = {name: 2 * price for name, price in PRICES.items()}
        second = run(tmp_path, questions(2), server(fake, prices=doubled))
        third = run(tmp_path, questions(2), server(fake))
    assert len(fake.bodies) == 2 and second[0].usage.cost == pytest.approx(2 * first[0].usage.cost)
    assert third[0].usage.cost is None


# Journal, keys, addresses


def test_placement_is_no_part_of_what_is_asked(tmp_path):
    with FakeServer() as fake, FakeServer() as other:
        run(tmp_path, questions(5), server(fake))
        placed = {"concurrency": 1, "timeout": 9, "retries": 0, "requests_per_minute": 100, "accepts": ["audio"]}
        again = run(tmp_path, questions(5), server(other, **placed))
        assert other.bodies == [] and all(item.from_journal for item in again)
        run(tmp_path, questions(5), server(other), temperature=0.5)
    assert len(other.bodies) == 5


def test_a_replay_needs_neither_server_nor_key(tmp_path):
    with FakeServer(key=SECRET) as fake:
        section = server(fake, key_env="THE_KEY")
        first = run(tmp_path, questions(3), section, environ={"THE_KEY": SECRET})
    again = run(tmp_path, questions(3), section, environ={})
    assert [item.value for item in again] == [item.value for item in first]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_named_before_anything_is_sent(tmp_path, value):
    environ = {} if value is None else {"THE_KEY": value}
    with FakeServer() as fake, pytest.raises(UserError, match="THE_KEY is not set"):
        run(tmp_path, questions(3), server(fake, key_env="THE_KEY"), environ=environ)
    assert fake.bodies == []


def test_a_key_that_no_header_can_hold_is_not_shown(tmp_path):
    with FakeServer() as fake, pytest.raises(UserError, match="THE_KEY holds characters") as error:
        run(tmp_path, questions(3), server(fake, key_env="THE_KEY"), environ={"THE_KEY": f"{SECRET}\nx"})
    assert SECRET not in str(error.value)


def test_the_key_stands_nowhere(tmp_path, caplog, monkeypatch):
    """A server that repeats the key in everything it says: answers, errors, bodies that are no JSON."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    kinds = ({"status": 500, "body": {"error": {"message": f"key {SECRET} is busy"}}}, {"what": "garbage"})
    plan = lambda body, before: kinds[before] if before < 2 else None  # noqa: E731
    caplog.set_level(logging.DEBUG)
    with FakeServer(lambda body: f"your key is {SECRET}", plan, key=SECRET) as fake:
        section = server(fake, key_env="THE_KEY")
        backend = open_server(section, environ={"THE_KEY": SECRET})
        with Journal(tmp_path / "state", STAGE, backend.digest, "scope") as journal:
            found = ask(questions(3), backend, journal=journal, retries=1)
        assert {head["authorization"] for head in fake.headers} == {f"Bearer {SECRET}"}
        shown = f"{backend!r} {found!r} {section!r}"
        backend.close()
        with pytest.raises(UserError) as error:
            run(tmp_path, [question("new")], section, environ={"THE_KEY": "sk-f00dfeedf00dfeedbad0"})
    assert found[0].value == "your key is ***"
    kept = "".join(path.read_text() for path in (tmp_path / "state").rglob("*.jsonl"))
    for text in (shown, caplog.text, kept, str(error.value)):
        assert SECRET not in text and "sk-f00dfeedf00dfeedbad0" not in text and text


def test_the_environment_may_hold_the_address(tmp_path):
    with FakeServer() as fake:
        section = server(fake, base_url="http://127.0.0.1:9/", base_url_env=["FIRST", "SECOND"])
        run(tmp_path, questions(1), section, environ={"FIRST": "", "SECOND": fake.url})
    assert len(fake.bodies) == 1
    for url in ("http://user:secret@host/v1", "http://host/v1?key=secret", "host"):
        with pytest.raises(UserError, match="SECOND") as error:
            run(tmp_path, questions(2), section, environ={"SECOND": url})
        assert "secret" not in str(error.value)


def test_a_server_from_its_two_parts():
    cfg = Server.model_validate({"model": "m", "base_url": "http://host/v1", "concurrency": 3}).model_dump(mode="json")
    placed = server_of(cfg, {"concurrency": 7, "requests_per_minute": "", "budget": None, "base_url": "http://b/v1"})
    assert (placed.concurrency, placed.requests_per_minute, placed.base_url) == (7, None, "http://b/v1")


def test_progress_has_rate_tokens_and_cost(tmp_path, caplog):
    caplog.set_level(logging.INFO, "utterflow")
    with FakeServer(lambda body: priced(50)) as fake:
        run(tmp_path, questions(2), server(fake, prices=PRICES))
    assert "2/2 answers" in caplog.text and "tokens: 200 in" in caplog.text and "cost 0.4000" in caplog.text


def test_interruption_keeps_what_arrived(tmp_path):
    """Ctrl-C while half of the answers are still awaited."""
    import _thread
    import threading

    def plan(body, before):
        return {"what": "hang", "seconds": 30} if int(last_text(body).split()[1]) >= 4 and before == 0 else None

    with FakeServer(fault=plan) as fake:
        section = server(fake, concurrency=8)

        def interrupt() -> None:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and sum(fake.answered.values()) < 4:
                time.sleep(0.01)
            time.sleep(0.2)
            _thread.interrupt_main()

        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, questions(8), section)
        assert all(item.problem is None for item in run(tmp_path, questions(8), section))
        assert set(fake.answered.values()) == {1} and sum(fake.asked.values()) == 12
