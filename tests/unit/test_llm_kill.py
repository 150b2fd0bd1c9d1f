"""A client killed at any moment, of a server that fails in any way: each row comes out, each answer is paid once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asking_process import CONCURRENCY, rows
from fake_server import FakeServer, last_text

from utterflow.llm import limits

COUNT = 120
PROGRAM = Path(__file__).resolve().parents[1] / "asking_process.py"
FAULTS = (
    {"status": 429, "headers": {"retry-after-ms": "30"}},
    {"status": 429},
    {"status": 500},
    {"status": 503, "headers": {"retry-after": "0"}},
    {"what": "drop"},
    {"what": "cut"},
    {"what": "garbage"},
)


def start(url: str, state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), url, str(state), str(COUNT)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROGRAM.parents[1] / "workflow")},
    )


def draw(*seed: object) -> float:
    return random.Random(repr(seed)).random()


def answer(body) -> str | dict:
    """One in six first tries has the wrong form, one in ten is empty; every tenth row's are all wrong."""
    index, tries = int(body["messages"][1]["content"].split()[1]), len(body["messages"]) // 2
    if index % 10 == 7 or (tries == 1 and draw("form", index) < 1 / 6):
        return "no JSON"
    if body["max_tokens"] == 50 and draw("empty", index) < 0.1:
        return {"content": None, "finish_reason": "length"}
    return json.dumps({"n": index})


def fault(body, before: int) -> dict | None:
    """A third of the first two requests of each kind fails; one row is never taken."""
    if last_text(body) == "question 33":
        return {"status": 400}
    return (
        random.Random(repr((body["messages"], before))).choice(FAULTS) if before < 2 and fails(body, before) else None
    )


def fails(body, before: int) -> bool:
    return draw(body["messages"], body["max_tokens"], before) < 1 / 3


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch):
    monkeypatch.setattr(limits, "BACKOFF", 0.01)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments_each_row_comes_out_and_each_answer_is_asked_once(tmp_path, seed):
    moments = random.Random(seed)
    lost = []  # answers that were written and are not in the journal, by kill
    with FakeServer(answer, fault, latency=0.03) as fake:
        for _ in range(3):
            process = start(fake.url, tmp_path)
            enough = sum(fake.answered.values()) + moments.randint(5, 35)
            while sum(fake.answered.values()) < enough and process.poll() is None:
                time.sleep(moments.uniform(0.001, 0.02))
            process.kill()
            assert process.wait() == -signal.SIGKILL
            while fake.in_flight:
                time.sleep(0.01)
            lost.append(sum(fake.answered.values()) - len(journalled(tmp_path)) - sum(lost))
        found = rows(fake.url, tmp_path, COUNT)
        assert all(count <= CONCURRENCY for count in lost), lost
        assert sum(fake.answered.values()) - len(fake.answered) == sum(lost), "no other was answered twice"
        assert max(fake.answered.values()) <= 1 + len(lost)
        asked = sum(fake.asked.values())
        assert rows(fake.url, tmp_path, COUNT) == found
        assert sum(fake.asked.values()) == asked + 1, "only what no answer arrived for is asked again"
        thirds = [rows(fake.url, tmp_path, COUNT, shard, 3) for shard in range(3)]
        assert sum(fake.asked.values()) == asked + 2
    assert [row[0] for row in found] == [f"row{index}" for index in range(COUNT)]
    for index, (_, value, problem, _) in enumerate(found):
        if index == 33:
            assert value is None and problem.startswith("no answer: HTTP 400")
        elif index % 10 == 7:
            assert value is None and problem.startswith("wrong form: not valid JSON")
        else:
            assert value == {"n": index} and problem is None
    assert [thirds[index % 3][index // 3] for index in range(COUNT)] == found


def journalled(state: Path) -> set[str]:
    """Keys of all whole lines; each stands there once."""
    lines = [line for path in state.rglob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    keys = [key for line in lines for key in json.loads(line)["rows"]]
    assert len(keys) == len(set(keys))
    return set(keys)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal_the_journal_is_whole(tmp_path, number):
    with FakeServer(lambda body: '{"n": 1}', latency=0.05) as fake:
        process = start(fake.url, tmp_path)
        while sum(fake.answered.values()) < 20:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130, errors
        assert all(path.read_bytes().endswith(b"\n") for path in tmp_path.rglob("*.jsonl"))
        kept = len(journalled(tmp_path))
        assert 20 - CONCURRENCY <= kept < COUNT
        rows(fake.url, tmp_path, COUNT)
        assert sum(fake.answered.values()) <= COUNT + CONCURRENCY
