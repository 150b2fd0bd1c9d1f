"""The corrector's costly stages killed one after the other: the results are those of a run that nobody disturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import workspace
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# One encoder and no validation sets: fewer jobs, the same stages.
SMALL: dict[str, Any] = {
    "recordings": {
        "implant": {"train": {"limit": 60}, "val": {"limit": 10}, "test": {"limit": 16}, "channels": 64, "noise": 0.3}
    },
    "encoders": {
        "phones": {"folds": 0, "steps": 60, "batch_size": 8, "evaluate_every": 15, "dim": 64, "feedforward": 128}
    },
    "logits": {"phones": {"cross_fitted": False}},
    "beams": {"phones": {"batch_size": 2}},
    "datasets": {"decoded": {"validation": []}},
    "trainings": {
        "decoded": {"validation": [], "max_steps": 12, "batch_size": 4, "warmup_ratio": 0.2, "evaluate_every": 3}
    },
    "predictions": {"decoded": {"batch_size": 4, "max_new_tokens": 16}},
    "runs": [{"corrections": ["decoded"], "scoring": ["default"]}],
}
ARGUMENTS = ("predictions", "--configfile", "small.yaml")
OWN = ("logs", "benchmarks", ".state")  # what differs from run to run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_copy(tmp_path_factory.mktemp("undisturbed"))
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in train_ctc, in dump_beams and in finetune, each time as soon as there is something to lose."""
    folder = make_copy(tmp_path_factory.mktemp("killed"))
    state = folder / "results/.state"
    saved = {
        "train_ctc": lambda: any(state.glob("train_ctc/*/checkpoint.pt")),
        "dump_beams": lambda: lines(state / "dump_beams") >= 2,
        "finetune": lambda: any(state.glob("finetune/*/checkpoint-*/complete.json")),
    }
    for stage, ready in saved.items():
        workspace.kill_when(folder, ready, *ARGUMENTS)
        assert not list(folder.glob(f"results/{OUTPUTS[stage]}")), f"{stage} was done already"
    finish(folder)
    return folder


# What each stage must not have finished when it is killed.
OUTPUTS = {
    "train_ctc": "encoders/*/*/model.safetensors",
    "dump_beams": "beams/*/*/beams.jsonl",
    "finetune": "finetune/decoded/adapter/*",
}


def make_copy(folder: Path) -> Path:
    workspace.copy_workflow(folder, "resources")
    workspace.copy_tools(folder)
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return folder


def finish(folder: Path) -> None:
    done = workspace.snakemake(folder, *ARGUMENTS)
    assert done.returncode == 0, done.stdout[-5000:]


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/*.jsonl"))


def results(folder: Path) -> dict[str, bytes]:
    """Every file that has to be the same, by its path."""
    root = folder / "results"
    found = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in found.items()
        if name.parts[0] not in OWN and not path.name.endswith(".meta.json")
    }


def test_after_three_kills_every_file_has_the_same_bytes(undisturbed: Path, killed: Path) -> None:
    one, other = results(undisturbed), results(killed)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    for name in (
        "beams/phones/train/beams.jsonl",
        "encoders/phones/full/model.safetensors",
        "finetune/decoded/adapter/adapter_model.safetensors",
        "generate/decoded/predictions.jsonl",
    ):
        assert one[name], name


def test_what_was_done_before_a_kill_was_not_done_again(undisturbed: Path, killed: Path) -> None:
    for folder, resumed in ((undisturbed, False), (killed, True)):
        shards = (folder / "results/beams").rglob("shards/*.meta.json")
        assert any(json.loads(path.read_text())["rows"]["from_journal"] for path in shards) == resumed
        meta = json.loads((folder / "results/finetune/decoded/training.meta.json").read_text())
        assert (0 < meta["steps_of_this_run"] < 12) == resumed
        logs = "".join(path.read_text() for path in (folder / "results/logs/train_ctc/phones").glob("*.log"))
        assert ("going on from step" in logs) == resumed


def test_nothing_is_left_to_do(killed: Path) -> None:
    done = workspace.snakemake(killed, *ARGUMENTS)
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, done.stdout[-2000:]
