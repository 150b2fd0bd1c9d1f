"""Rationales of a server through Snakemake: kills, other shards, other settings; what was paid for is not asked again,
and the server's key is written nowhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workspace
from fake_server import Body, FakeServer, last_text

pytestmark = pytest.mark.timeout(600)

KEY = "sk-planted-0123456789abcdef"
ROWS = 20
INTENTS = ("alarm_set", "alarm_remove", "music_play", "lists_query", "email_send", "weather_query")
TARGETS = ("rationales", "results/sft/mixed/train.jsonl")
OWN = ("logs", "benchmarks", ".state")  # what differs from run to run


def rationale(body: Body) -> str:
    """A good answer to the question, made from the prompt."""
    text = last_text(body)
    reference = re.findall(r"Reference intent: (\w+)", text)[-1]
    topk = [reference, *(name for name in INTENTS if name != reference)][:5]
    return json.dumps(
        {
            "topk_intents": topk,
            "intent_elimination": [{"intent": name, "reason": "no word of it"} for name in topk[1:]],
            "final_prediction": reference,
            "intent_rationalization": f"the words say {reference}",
            "slot_grounding": [],
            "slot_rationalization": "no slots are named",
        }
    )


def write_lists(path: Path) -> None:
    rows = []
    for number in range(ROWS):
        scenario, action = INTENTS[number % len(INTENTS)].split("_")
        texts = [f"command {number} as heard {rank}" for rank in range(3)]
        labels = {"slurp_id": number, "scenario": scenario, "action": action, "entities": []}
        rows.append({**labels, "asr_hypotheses": [{"text": text, "score": 0.0} for text in texts]})
    path.write_text("".join(json.dumps({**row, "sentence": "said"}) + "\n" for row in rows))


def config(url: str, **rationale_keys: Any) -> dict[str, Any]:
    labels = {"lists": "lists.jsonl", "labels": ["lists.jsonl"], "server": "fake"}
    return {
        "name": "paid",
        "servers": {
            "fake": {
                "model": "fake-1",
                "base_url": url,
                "key_env": "PLANTED_KEY",
                "prices": {"input": 1.0, "output": 2.0},
                "concurrency": 2,
            }
        },
        "rationales": {"paid": {**labels, "nbest_values": [3], "shards": 2, **rationale_keys}},
        "datasets": {"mixed": {"builder": "slu", "train": [{"rationale": "paid", "k": 3}], "ras": True}},
        "runs": [{"rationales": ["paid"]}],
    }


def make_place(folder: Path) -> Path:
    workspace.copy_workflow(folder)
    write_lists(folder / "lists.jsonl")
    return folder


def run(folder: Path, settings: dict[str, Any]) -> None:
    done = workspace.snakemake(folder, *TARGETS, "--configfile", workspace.write_config(folder, settings))
    assert done.returncode == 0, done.stdout[-4000:]


def results(folder: Path) -> dict[str, bytes]:
    """The rows of all results; side files tell times."""
    files = (path for path in (folder / "results").rglob("*.jsonl") if path.relative_to(folder).parts[1] not in OWN)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "shards" not in path.parts}


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with pytest.MonkeyPatch.context() as patch, FakeServer(answer=rationale, latency=0.1, key=KEY) as fake:
        patch.setenv("PLANTED_KEY", KEY)
        yield fake


@pytest.fixture(scope="module")
def undisturbed(server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_place(tmp_path_factory.mktemp("undisturbed"))
    run(folder, config(server.url))
    assert sum(server.asked.values()) == len(server.asked) == ROWS
    return folder


def test_every_row_has_its_rationale_and_its_training_rows(undisturbed: Path) -> None:
    folder = undisturbed / "results/rationale/paid/k3"
    rows = [json.loads(line) for line in (folder / "rationale.jsonl").read_text().splitlines()]
    assert [row["slurp_id"] for row in rows] == list(range(ROWS))
    assert all(row["topk_valid"] and row["nbest_k"] == 3 and row["sees_gold"] for row in rows)
    assert not (folder / "rationale.rejected.jsonl").read_text()
    tasks = [json.loads(line)["task"] for line in (undisturbed / "results/sft/mixed/train.jsonl").open()]
    assert sorted(tasks) == ["ras"] * ROWS + ["slu"] * ROWS


def test_other_settings_ask_nothing_that_was_paid_for(server: FakeServer, undisturbed: Path) -> None:
    before = sum(server.asked.values())
    first = results(undisturbed)
    run(undisturbed, config(server.url, shards=3, max_rejected=0.5, format_retries=1, output_mode="full"))
    assert sum(server.asked.values()) == before
    run(undisturbed, config(server.url))
    assert results(undisturbed) == first
    assert sum(server.asked.values()) == before


def test_a_killed_run_ends_with_the_same_rows_and_pays_once(
    server: FakeServer, undisturbed: Path, tmp_path: Path
) -> None:
    folder = make_place(tmp_path)
    settings = workspace.write_config(folder, config(server.url))
    before = dict(server.asked)
    arrived = sum(server.answered.values())
    for answers in (3, 8):
        workspace.kill_when(
            folder, lambda n=answers: sum(server.answered.values()) >= arrived + n, *TARGETS, "--configfile", settings
        )
    run(folder, config(server.url))
    assert results(folder) == results(undisturbed)
    repeated = sum(server.asked[body] - before[body] - 1 for body in before)
    assert server.asked.keys() == before.keys()
    assert repeated <= 2 * 2, "more than the requests in flight at two kills"


def test_the_key_is_written_nowhere(server: FakeServer, undisturbed: Path) -> None:
    settings = workspace.write_config(undisturbed, config(server.url))
    report = (*TARGETS, "--configfile", settings, "--report", "report.html")
    done = workspace.snakemake(undisturbed, *report)
    assert done.returncode == 0, done.stdout[-2000:]
    files = [path for path in undisturbed.rglob("*") if path.is_file()]
    assert any(".snakemake" in path.parts for path in files) and (undisturbed / "report.html").is_file()
    assert any("llm" in path.parts for path in files), "no journal"
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_missing_key_is_a_plain_error(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PLANTED_KEY")
    folder = make_place(tmp_path)
    settings = workspace.write_config(folder, config(server.url))
    done = workspace.snakemake(folder, "rationales", "--configfile", settings)
    assert done.returncode != 0
    assert "the environment variable PLANTED_KEY is not set" in done.stdout
    assert "Traceback" not in done.stdout
