"""Training over several nodes of a real Slurm cluster; they share this machine, and their GPUs are only counted."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import workspace
from safetensors.numpy import load_file
from tiny_lm import save_tiny_lm

from utterflow.files import read_json, write_jsonl

from .cluster import Cluster
from .test_slurm import Run, rule_of, snakemake_on

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

WORDS = ("zero", "one", "two", "three", "four", "five", "six")
# Without dropout, whose random numbers fall on other rows when processes share a batch.
TRAINING = {
    "model": "tiny",
    "train": [{"dataset": "lists"}],
    "validation": [{"dataset": "lists", "split": "validation"}],
    "adapter": {"dropout": 0.0},
    "max_length": 400,
    "learning_rate": 0.01,
    "batch_size": 1,
    "accumulation": 2,
    "max_steps": 6,
    "evaluate_every": 3,
    "log_every": 2,
    "mem_mb": 4000,
    "runtime": 20,
}
CONFIG = {
    "name": "training",
    "models": {"tiny": {"model": "./pretrained"}},
    "datasets": {
        "lists": {
            "builder": "corrector",
            "train": [{"lists": "lists/train.jsonl"}],
            "validation": [{"lists": "lists/validation.jsonl"}],
        }
    },
    "trainings": {
        "two_nodes": {**TRAINING, "nodes": 2, "processes": 1},
        "one_process": {**TRAINING, "batch_size": 2},
        "crash": {**TRAINING, "nodes": 2, "processes": 1, "threads": 2, "seed": 1},
        "kill": {**TRAINING, "nodes": 2, "processes": 1, "seed": 2},
        "two_gpus": {**TRAINING, "gpus": 2},
        "two_gpu_nodes": {**TRAINING, "nodes": 2, "gpus": 2},
    },
    "predictions": {"answers": {"dataset": "lists", "training": "two_nodes", "split": "validation"}},
    "corrections": {"corrected": {"prediction": "answers"}},
    "scoring": {"default": {}},
    "runs": [{"corrections": ["corrected"], "scoring": ["default"]}],
}
# The second process stops, or is killed, while the first one waits for it: only the launcher can end that.
BREAK = """\
    if os.environ.get("RANK") == "1" and spec.name == "crash":
        raise RuntimeError("made to fail by the test")
    if os.environ.get("RANK") == "1" and spec.name == "kill":
        print("last words", flush=True)
        os.kill(os.getpid(), 9)
"""
BEFORE_TRAINING = "    start = time.monotonic()\n"
RESULTS = (*tiny_training.ADAPTER, "history.jsonl", "metrics.json", "rejected.jsonl", "training.meta.json")


def write_lists(path: Path, count: int, first: int = 0) -> None:
    rows = []
    for number in range(first, first + count):
        answer = f"say {WORDS[number % 7]} and {WORDS[number // 7 % 7]}"
        rows.append({"input": [answer.replace("say", "stay"), answer], "output": answer})
    path.parent.mkdir(exist_ok=True)
    write_jsonl(path, rows)


def outputs(*trainings: str) -> list[str]:
    return [f"results/finetune/{name}/metrics.json" for name in trainings]


def job_of(cluster: Cluster, log: str) -> dict[str, str]:
    """What Slurm knows of the job that wrote a log."""
    found = re.search(r"SLURM_JOB_ID=(\d+)", log)
    assert found, log
    told = cluster.run("scontrol", "--oneliner", "show", "job", found[1])
    return dict(item.split("=", 1) for item in told.split() if "=" in item)


def places(log: str) -> dict[int, tuple[str, str | None]]:
    """Node and visible GPUs of each process, as the processes told them."""
    pattern = r"process (\d+) of \d+ on node (\w+)(?:, CUDA_VISIBLE_DEVICES=(\S+))?"
    return {int(rank): (node, gpus or None) for rank, node, gpus in re.findall(pattern, log)}


def processes_in(folder: Path) -> list[str]:
    """Command lines of living processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


def submission(run: Run, training: str) -> Mapping[str, str]:
    (found,) = [
        call
        for call in run.submissions
        if rule_of(call).startswith("finetune") and call["--comment"].endswith(f"_wildcards_{training}")
    ]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    workspace.copy_workflow(folder)
    save_tiny_lm(folder / "pretrained")
    write_lists(folder / "lists/train.jsonl", 24)
    write_lists(folder / "lists/validation.jsonl", 5, first=40)
    workspace.write_config(folder, CONFIG, "training.yaml")
    return folder


@pytest.fixture(scope="module")
def run(cluster: Cluster, folder: Path) -> Run:
    """The same training over two nodes, and in one process with batches of twice the size."""
    targets = outputs("two_nodes", "one_process")
    run = snakemake_on(cluster, folder, *targets, "--configfile", "training.yaml", "--retries", "0")
    assert run.status == 0, run.text[-8000:]
    return run


@pytest.fixture(scope="module")
def failed(cluster: Cluster, folder: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """Trainings that cannot work: one process crashes, and there is no GPU behind those that Slurm counts."""
    copy = tmp_path_factory.mktemp("failed") / "copy"
    shutil.copytree(folder, copy)
    train = copy / "workflow/utterflow/finetune/train.py"
    before, found, after = train.read_text().partition(BEFORE_TRAINING)
    assert found
    train.write_text(before + BREAK + found + after)
    targets = outputs("crash", "kill", "two_gpus", "two_gpu_nodes")
    failed = snakemake_on(cluster, copy, *targets, "--configfile", "training.yaml", "--retries", "0")
    assert failed.status, failed.text[-8000:]
    return copy, failed


def log_of(folder: Path, training: str) -> str:
    return (folder / f"results/logs/finetune/{training}.log").read_text()


def test_both_processes_run_and_on_different_nodes(cluster: Cluster, folder: Path, run: Run) -> None:
    log = log_of(folder, "two_nodes")
    job = job_of(cluster, log)
    assert (job["NumNodes"], job["JobState"], job["Partition"]) == ("2", "COMPLETED", "cpu")
    assert places(log) == {0: ("c1", None), 1: ("c2", None)}
    step = next(call for call in cluster.calls("srun") if "torch.distributed.run" in call)
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(step)


def test_two_nodes_give_what_one_process_with_twice_the_batch_gives(folder: Path, run: Run) -> None:
    two, one = (folder / "results/finetune" / name for name in ("two_nodes", "one_process"))
    assert [path for path in RESULTS for out in (two, one) if not (out / path).is_file()] == []
    told: list[dict[str, Any]] = [read_json(out / "metrics.json") for out in (two, one)]
    assert [(item["processes"], item["effective_batch"], item["steps"]) for item in told] == [(2, 4, 6), (1, 4, 6)]
    curves = [
        [(row["step"], row["loss"] or row["eval_loss"]) for row in tiny_training.history(out)] for out in (two, one)
    ]
    assert len(curves[0]) >= 5 and curves[0][-1][1] < curves[0][0][1]
    assert [step for step, _ in curves[0]] == [step for step, _ in curves[1]]
    assert [loss for _, loss in curves[0]] == pytest.approx([loss for _, loss in curves[1]], abs=1e-4)
    weights = [load_file(out / tiny_training.ADAPTER[0]) for out in (two, one)]
    assert weights[0].keys() == weights[1].keys()
    assert any(abs(weight).max() > 0.01 for name, weight in weights[0].items() if "lora_B" in name)
    for name, weight in weights[0].items():
        assert weight == pytest.approx(weights[1][name], abs=2e-3), name


def test_what_a_training_over_nodes_asks_for(run: Run) -> None:
    asked = submission(run, "two_nodes")
    options = ("-p", "--nodes", "--ntasks", "--cpus-per-task", "--mem", "-t")
    assert [asked.get(name) for name in options] == ["cpu", "2", "2", "1", "4000", "20"]
    assert not asked.keys() & {"--gpus", "--gres", "--ntasks-per-gpu", "--ntasks-per-node"}


def test_no_job_and_no_process_is_left(cluster: Cluster, folder: Path, run: Run) -> None:
    assert cluster.queue() == []
    assert processes_in(folder / "results/.state") == []


@pytest.mark.parametrize(
    ("training", "reason"),
    [("crash", "RuntimeError: made to fail by the test"), ("kill", "failed (exitcode: -9)")],
)
def test_a_process_that_fails_ends_the_job_with_its_last_lines(
    cluster: Cluster, failed: tuple[Path, Run], training: str, reason: str
) -> None:
    copy, run = failed
    log = log_of(copy, training)
    assert len(places(log)) == 2
    told = log[log.index("ERROR a training process failed with code") :]
    assert reason in told and told.count("\n") < 50
    assert reason in run.text
    job = job_of(cluster, log)
    assert (job["NumNodes"], job["JobState"]) == ("2", "FAILED")
    assert not (copy / f"results/finetune/{training}/metrics.json").exists()


def test_after_a_failure_no_job_and_no_process_is_left(cluster: Cluster, failed: tuple[Path, Run]) -> None:
    copy, _ = failed
    assert cluster.queue() == []
    end = time.monotonic() + 10
    while processes_in(copy) and time.monotonic() < end:
        time.sleep(0.2)
    assert processes_in(copy) == []


def test_gpu_trainings_go_to_the_gpu_nodes(cluster: Cluster, failed: tuple[Path, Run]) -> None:
    copy, run = failed
    names = ("-p", "--nodes", "--gpus", "--gres", "--ntasks", "--ntasks-per-gpu", "--cpus-per-task")
    asked = {name: [submission(run, name).get(option) for option in names] for name in ("two_gpus", "two_gpu_nodes")}
    assert asked["two_gpus"] == ["gpu", "1", "2", None, None, None, "2"]
    assert asked["two_gpu_nodes"] == ["gpu", "2", None, "gpu:2", "2", None, "2"]
    for name, nodes in (("two_gpus", "1"), ("two_gpu_nodes", "2")):
        job = job_of(cluster, log_of(copy, name))
        assert (job["NumNodes"], job["Partition"]) == (nodes, "gpu")


def test_each_process_sees_the_gpus_of_its_node_and_says_what_is_missing(failed: tuple[Path, Run]) -> None:
    copy, _ = failed
    one, two = (places(log_of(copy, name)) for name in ("two_gpus", "two_gpu_nodes"))
    assert [gpus for _, gpus in one.values()] == ["0,1"] * 2 and len(set(one.values())) == 1
    assert two == {0: ("g1", "0,1"), 1: ("g1", "0,1"), 2: ("g2", "0,1"), 3: ("g2", "0,1")}
    for name in ("two_gpus", "two_gpu_nodes"):
        assert "PyTorch sees no GPU" in log_of(copy, name).rpartition("ERROR")[2]
