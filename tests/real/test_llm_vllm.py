"""A real server of OpenAI's protocol: vLLM's, on CPUs, with a tiny random model; by schema, by words, with a key."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from unit.test_generate import save_lively_lm

from utterflow.config.servers import Server
from utterflow.errors import UserError
from utterflow.journal import Journal
from utterflow.llm.api import open_server
from utterflow.llm.ask import STAGE, Outcome, Question, ask
from utterflow.llm.vllm_backend import worker_environment
from utterflow.records import Message

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("UTTERFLOW_VLLM_PYTHON", REPOSITORY / ".venv-vllm/bin/python"))
KEY = "sk-of-the-local-server"
SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["one", "two"]}, "rank": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["label", "rank"],
    "additionalProperties": False,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no vLLM: {PYTHON} is missing (`make setup-vllm` makes it)"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("vllm")
    folder = save_lively_lm(place / "lm", hidden_size=128)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "nano", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--dtype", "float32", "--max-model-len", "1024", "--generation-config", "vllm"]
    no_filling = {"backend": "xgrammar", "disable_any_whitespace": True}
    command += ["--structured-outputs-config", json.dumps(no_filling), "--disable-uvicorn-access-log"]
    environment = {name: value for name, value in worker_environment(os.environ, 1).items() if name != "PYTHONPATH"}
    log = place / "log"
    with log.open("w") as handle:
        process = subprocess.Popen(command, env=environment, stdout=handle, stderr=handle, cwd=place)
        try:
            _await(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.wait(60)


def _await(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(900):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def server(url: str, **keys) -> Server:
    return Server.model_validate(
        {"model": "nano", "base_url": url, "key_env": "VLLM_KEY", "structured": "json_schema", **keys}
    )


def question(index: int, schema=SCHEMA, max_tokens: int = 64) -> Question:
    message = Message(role="user", content=f"the quick brown fox {index}")
    return Question(f"row{index}", (message,), schema, max_tokens, index, str if schema is None else json.loads)


def run(state: Path, asked: list[Question], section: Server, key: str = KEY, **keys) -> list[Outcome]:
    backend = open_server(section, environ={"VLLM_KEY": key}, **keys)
    try:
        with Journal(state, STAGE, backend.digest, "scope") as journal:
            return ask(asked, backend, journal=journal, retries=1)
    finally:
        backend.close()


def test_answers_follow_the_schema_and_a_rerun_asks_nothing(url, tmp_path):
    asked = [question(index) for index in range(12)]
    found = run(tmp_path, asked, server(url, prices={"input": 1, "output": 2}))
    assert [item.problem for item in found] == [None] * 12
    assert all(set(item.value) == {"label", "rank"} for item in found)
    assert all(item.usage.input_tokens > 5 and item.usage.output_tokens > 2 and item.usage.cost for item in found)
    again = run(tmp_path, asked, server("http://127.0.0.1:9/v1"))
    assert [item.value for item in again] == [item.value for item in found] and all(item.from_journal for item in again)


def test_greedy_text_is_the_same_at_any_concurrency_and_samples_follow_their_seeds(url, tmp_path):
    asked = [question(index, None, 12) for index in range(8)]
    one = run(tmp_path / "1", asked, server(url, concurrency=1))
    many = run(tmp_path / "8", asked, server(url, concurrency=8))
    assert sum(left.text == right.text for left, right in zip(one, many, strict=True)) >= 7, "near ties may differ"
    drawn = [run(tmp_path / name, asked, server(url, concurrency=1), temperature=1.0)[3].text for name in ("a", "b")]
    assert drawn[0] == drawn[1] != one[3].text


def test_a_wrong_form_is_asked_again_and_then_its_rows_problem(url, tmp_path):
    """A random model without constraint writes no JSON; told in words, it still does not."""
    (found,) = run(tmp_path, [question(0)], server(url, structured="none", max_tokens_limit=64))
    assert len(found.tries) == 2 and found.problem.split(":")[0] in ("wrong form", "cut off", "empty content")


def test_a_prompt_that_is_too_long_is_its_rows_problem(url, tmp_path):
    long = Question("long", (Message(role="user", content="fox " * 3000),), None, 16, 0, str)
    found = run(tmp_path, [long, question(1)], server(url))
    assert found[0].problem.startswith("no answer: HTTP 400") and found[1].problem is None


def test_a_wrong_key_or_model_ends_the_job(url, tmp_path):
    with pytest.raises(UserError, match="HTTP 401") as error:
        run(tmp_path, [question(0)], server(url), key="sk-of-somebody-else")
    assert "sk-of-somebody-else" not in str(error.value)
    with pytest.raises(UserError, match="HTTP 404"):
        run(tmp_path, [question(0)], server(url, model="mini"))
