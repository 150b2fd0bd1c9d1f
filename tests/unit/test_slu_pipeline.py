"""Rationales of a server through Snakemake: kills, other shards, other settings; what was paid for is not asked again,
and the server's key is written nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workspace
from fake_server import FakeServer
from paid_rationales import KEY, ROWS, config, rationale, write_lists

pytestmark = pytest.mark.timeout(600)

TARGETS = ("rationales", "results/sft/mixed/train.jsonl")
OWN = ("logs", "benchmarks", ".state")  # what differs from run to run


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
