"""Two processes give what one gives; a killed launcher leaves neither processes nor a broken state; ZeRO."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import Workplace, history, make_workplace, metrics, results, run_arguments

from utterflow.finetune import checkpoints

TESTS = Path(__file__).parents[1]
WEIGHTS = "adapter/adapter_model.safetensors"
# Without dropout, whose random numbers fall on other rows when processes share a batch.
SAME = {"adapter": {"dropout": 0.0}, "evaluate_every": 4, "log_every": 2, "epochs": 2, "accumulation": 2}
TWO = {**SAME, "processes": 2, "batch_size": 1}

START = """
import json, sys
from pathlib import Path
from tiny_training import run_arguments
run_arguments(json.loads(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    torch.set_num_threads(1)
    return make_workplace(tmp_path_factory.mktemp("distributed"), validation=5)


@pytest.fixture(scope="module")
def two(place: Workplace) -> Path:
    return place.run("two", **TWO)


def check_like(found: Path, expected: Path) -> None:
    """The same losses and weights but for the order of sums."""
    curves = [
        [(row["step"], row["loss"] or row["eval_loss"], row["learning_rate"]) for row in history(out)]
        for out in (found, expected)
    ]
    assert len(curves[0]) >= 9
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    weights = [load_file(out / WEIGHTS) for out in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight.float(), weights[1][name].float(), atol=2e-3, rtol=1e-2)


def test_two_processes_give_what_one_with_twice_the_batch_gives(place: Workplace, two: Path) -> None:
    one = place.run("one", **SAME, batch_size=2)
    assert metrics(two)["effective_batch"] == metrics(one)["effective_batch"] == 4
    assert (metrics(two)["processes"], metrics(one)["processes"]) == (2, 1)
    check_like(two, one)


def processes_of(spec: Path) -> list[int]:
    """Living processes that were given this file."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, state = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        if str(spec).encode() in command and state.rsplit(")", 1)[1].split()[0] != "Z":
            found.append(int(folder.name))
    return found


def test_a_killed_launcher_takes_its_processes_along_and_the_next_run_ends_alike(place: Workplace, two: Path) -> None:
    other = Workplace(place.folder / "killed")
    other.folder.mkdir()
    for name in ("pretrained", "train.jsonl", "validation.jsonl"):
        (other.folder / name).symlink_to(place.folder / name)
    arguments = {**place.arguments("two", **TWO), "state": str(other.state)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent / "workflow"), str(TESTS)])}
    command = [sys.executable, "-c", START, json.dumps(arguments), str(other.folder / "out")]
    launcher = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(other.state.glob("finetune/*/checkpoint-4/complete.json")):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    launcher.kill()
    launcher.wait()
    (own,) = (other.state / "finetune").iterdir()
    while processes_of(own / "spec.json"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (other.folder / "out").exists()
    run_arguments(arguments, other.folder / "out")
    assert results(other.folder / "out") == results(two)
    assert not checkpoints.checkpoints(own)


def test_zero_2_gives_what_plain_processes_give(place: Workplace, two: Path) -> None:
    """Its best checkpoint is read again at the end, through the loader that executes no pickle."""
    zero = place.run("zero", **TWO, deepspeed={"stage": 2})
    check_like(zero, two)
