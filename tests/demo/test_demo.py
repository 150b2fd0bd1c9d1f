"""The embedded demo, run for real in a fresh copy: its numbers mean something, and a killed run resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import workspace
import yaml

from utterflow.files import read_jsonl


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    workspace.copy_workflow(folder, "resources")
    done = workspace.snakemake(folder, "demo", timeout=900)
    assert done.returncode == 0, done.stdout[-6000:]
    return folder


def scores(demo: Path) -> dict[tuple[str, str], dict]:
    config = yaml.safe_load((demo / "config/config.yaml").read_text())
    return {
        (corpus, asr): json.loads((demo / f"results/evaluate/{corpus}/{asr}/default.json").read_text())["total"]
        for corpus in config["corpora"]
        for asr in config["asr"]
    }


def test_the_numbers_mean_something(demo):
    """1-best WER of 5-35% on sentences that were not in training, oracle WER@5 at least a quarter lower."""
    commands = {asr: total for (corpus, asr), total in scores(demo).items() if corpus == "commands"}
    assert commands.keys() == {"group_beam", "beam", "pool"}
    for asr, total in commands.items():
        first, oracle = total["wer"]["value"], total["oracle"]["5"]["value"]
        assert 0.05 <= first <= 0.35, asr
        assert oracle <= 0.75 * first, asr
        assert total["wer"]["low"] < first < total["wer"]["high"], asr
        assert total["compositional_oracle"]["value"] <= oracle, asr


def test_test_sentences_are_not_in_training(demo):
    texts = {
        name: {row["sentence"] for _, row in read_jsonl(demo / f"resources/demo/slurp/{name}.jsonl")}
        for name in ("train", "test")
    }
    assert len(texts["test"]) > 200 and texts["test"].isdisjoint(texts["train"])


def test_distorted_voices_are_harder(demo):
    config = json.loads((demo / "results/evaluate/atypical/beam/default.json").read_text())
    groups = {name: values["wer"]["value"] for name, values in config["groups"].items()}
    assert groups["typical"] < min(value for name, value in groups.items() if name != "typical")


def test_all_rows_are_accounted_for(demo):
    for corpus in ("commands", "atypical"):
        rows = json.loads((demo / f"results/corpora/{corpus}/manifest.meta.json").read_text())["rows"]
        assert rows["in"] == rows["out"] + rows["rejected"] > 100
        for asr in ("group_beam", "beam", "pool"):
            counts = json.loads((demo / f"results/asr/{corpus}/{asr}/nbest.meta.json").read_text())["rows"]
            assert counts["in"] == rows["out"] == counts["out"] + counts["rejected"]


def test_a_second_run_has_nothing_to_do(demo):
    done = workspace.snakemake(demo, "demo")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, done.stdout[-2000:]


def test_the_report_holds_tables_and_figures(demo):
    done = workspace.snakemake(demo, "demo", "--report", "results/report/report.html")
    assert done.returncode == 0, done.stdout[-3000:]
    page = (demo / "results/report/report.html").read_text()
    for item in ("asr_summary.html", "asr_wer.svg", "asr_diversity.svg", "asr_throughput.svg"):
        assert item in page


def test_a_run_killed_in_mid_transcribe_resumes_with_the_same_bytes(tmp_path_factory):
    override = {
        "corpora": {"commands": {"limit": 60, "shards": 1}},
        "asr": {"beam": {"batch_size": 2}},
        "runs": [{"corpora": ["commands"], "asr": ["beam"], "scoring": ["default"]}],
    }
    folders = {}
    for name in ("undisturbed", "killed"):
        folders[name] = tmp_path_factory.mktemp(name)
        workspace.copy_workflow(folders[name], "resources")
        (folders[name] / "override.yaml").write_text(yaml.safe_dump(override))
    arguments = ["asr", "--configfile", "override.yaml"]
    done = workspace.snakemake(folders["undisturbed"], *arguments)
    assert done.returncode == 0, done.stdout[-4000:]

    killed = folders["killed"]
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=killed,
        env=workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    journal = (killed / "results/.state/transcribe").glob
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and sum(path.stat().st_size for path in journal("*/*.jsonl")) < 2000:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "results/asr/commands/beam/nbest.jsonl").exists()

    assert workspace.snakemake(killed, "--unlock", *arguments).returncode == 0
    done = workspace.snakemake(killed, *arguments)
    assert done.returncode == 0, done.stdout[-4000:]
    meta = json.loads((killed / "results/asr/commands/beam/nbest.meta.json").read_text())
    assert 0 < meta["from_journal"] < 60
    for file in ("nbest.jsonl", "nbest.rejected.jsonl"):
        one, other = ((folder / "results/asr/commands/beam" / file).read_bytes() for folder in folders.values())
        assert one == other
