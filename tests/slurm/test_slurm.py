"""The workflow on a real Slurm cluster, with the profile as shipped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import workspace

from .cluster import Cluster

pytestmark = pytest.mark.slurm

QUICK_SNAKEMAKE = Path(__file__).with_name("quick_snakemake.py")
TIME_LIMIT = 300
# Only the polling differs from the profile; four jobs at a time are enough for a small machine.
QUICKER = ("--max-status-checks-per-second", "10", "--jobs", "4")
MORE_THREADS_THAN_HERE = 1 + (os.cpu_count() or 1)

# One variant on CPU nodes, one on GPU nodes; `prepare_corpus` asks for more cores than this machine has.
CONFIG = {
    "corpora": {
        "commands": {"limit": 12, "shards": 2, "threads": MORE_THREADS_THAN_HERE},
        "atypical": {"limit": 8, "shards": 1},
    },
    "asr": {
        "beam": {"mem_mb": 1500, "runtime": 20},
        "pool": {"mem_mb": 1600, "runtime": 25, "sampling_pool": 10, "gpus": 1},
    },
    "runs": [
        {"corpora": ["commands"], "asr": ["beam", "pool"], "scoring": ["default"]},
        {"corpora": ["atypical"], "asr": ["beam"], "scoring": ["default"]},
    ],
}
JOBS = {"prepare_corpus": 2, "transcribe": 3, "transcribe_gpu": 2, "gather_nbest": 3, "score_asr": 3}
FAIL_ONCE = """\
from pathlib import Path

if not Path("failed-once").exists():
    Path("failed-once").touch()
    raise SystemExit("made to fail by the test")
"""


@dataclass(frozen=True)
class Run:
    """One call of Snakemake: its exit status, what it printed, and the options of each `sbatch`."""

    status: int
    text: str
    submissions: list[Mapping[str, str]]


def rule_of(submission: Mapping[str, str]) -> str:
    return submission["--comment"].removeprefix("rule_").split("_wildcards_")[0]


def options_of(call: list[str]) -> dict[str, str]:
    """Options with their values: `--name=value`, `--name value`, or empty."""
    options: dict[str, str] = {}
    for item, following in zip(call, [*call[1:], ""], strict=True):
        if item.startswith("-"):
            name, equals, value = item.partition("=")
            options[name] = value if equals else "" if following.startswith("-") else following
    return options


def snakemake_on(cluster: Cluster, folder: Path, *arguments: str) -> Run:
    """Run Snakemake with the shipped profile; what it submitted is cancelled when it takes too long.

    The library is the copy's own: an edit in the repository meanwhile must not make jobs run again.
    """
    before = len(cluster.calls("sbatch"))
    command = [sys.executable, str(QUICK_SNAKEMAKE), *arguments, "--profile", "profiles/slurm", *QUICKER]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**cluster.environment(), "PYTHONPATH": str(folder / "workflow")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        text, _ = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        cluster.cancel_all()
        pytest.fail(f"not done after {TIME_LIMIT} s\n{text[-5000:]}\n{cluster.logs()}")
    return Run(process.returncode, text, [options_of(call) for call in cluster.calls("sbatch")[before:]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    workspace.copy_workflow(folder, "resources")
    workspace.write_config(folder, CONFIG, "small.yaml")
    return folder


@pytest.fixture(scope="module")
def run(cluster, folder) -> Run:
    """The demo's speech recognition, from audio to report, on the cluster."""
    run = snakemake_on(cluster, folder, "demo", "--configfile", "small.yaml")
    assert run.status == 0, run.text[-8000:]
    return run


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """The folder of the same run without a cluster."""
    folder = tmp_path_factory.mktemp("local")
    workspace.copy_workflow(folder, "resources")
    config = workspace.write_config(folder, CONFIG, "small.yaml")
    done = workspace.snakemake(folder, "evaluate", "--configfile", config, timeout=TIME_LIMIT)
    assert done.returncode == 0, done.stdout[-6000:]
    return folder


def test_each_job_is_submitted_once(run):
    """Tables, plots and targets are too small to be worth a job."""
    rules = [rule_of(submission) for submission in run.submissions]
    assert {rule: rules.count(rule) for rule in rules} == JOBS
    assert "localrule summarize_asr:" in run.text and "localrule plot_asr:" in run.text


def test_jobs_ask_for_what_their_rule_needs(run):
    for submission in run.submissions:
        rule = rule_of(submission)
        asked = (submission["-p"], submission.get("--gpus"))
        assert asked == (("gpu", "1") if rule == "transcribe_gpu" else ("cpu", None)), rule
        assert int(submission["--mem"]) >= 1000 and int(submission["-t"]) >= 20, rule
        assert submission["--job-name"].startswith("utterflow_"), rule
        assert "--no-requeue" in submission and "--requeue" not in submission, rule
        assert "--array" not in submission and "-a" not in submission, rule
        assert submission["--output"].startswith(f"{submission['-D']}/results/logs/slurm/"), rule


def test_memory_and_time_come_from_the_config(run):
    sizes = {rule_of(submission): (submission["--mem"], submission["-t"]) for submission in run.submissions}
    assert sizes["transcribe"] == ("1500", "20")
    assert sizes["transcribe_gpu"] == ("1600", "25")


def test_threads_are_not_held_down_to_the_login_node(run):
    cores = {s["--comment"]: int(s["--cpus-per-task"]) for s in run.submissions if rule_of(s) == "prepare_corpus"}
    assert cores["rule_prepare_corpus_wildcards_commands"] == MORE_THREADS_THAN_HERE


def test_gpu_jobs_see_their_gpu_and_no_other_job_sees_one(run, cluster, folder):
    jobs = cluster.run("squeue", "--states=all", "--noheader", "--format=%A|%P|%N").splitlines()
    places = {job: (partition, node) for job, partition, node in (line.split("|") for line in jobs)}
    logs = sorted((folder / "results/logs").glob("*/**/*.log"))
    gpu_jobs = 0
    for log in logs:
        first = log.read_text().splitlines()[0]
        job = re.search(r"SLURM_JOB_ID=(\d+)", first)
        assert job, f"{log}: {first}"
        partition, node = places[job[1]]
        device = re.search(r"CUDA_VISIBLE_DEVICES=([^,]*)", first)
        if log.is_relative_to(folder / "results/logs/transcribe/commands/pool"):
            gpu_jobs += 1
            assert partition == "gpu" and node in ("g1", "g2"), log
            assert device and device[1] in ("0", "1"), f"{log}: {first}"
        else:
            assert partition == "cpu" and not device, f"{log}: {first}"
    assert gpu_jobs == JOBS["transcribe_gpu"] and len(logs) == sum(JOBS.values())


def test_no_job_is_left(run, cluster):
    assert cluster.queue() == []


def test_results_are_those_of_a_local_run(run, folder, local):
    patterns = ("corpora/*/manifest*.jsonl", "asr/*/*/nbest*.jsonl", "evaluate/*/*/default.*")
    files = [path.relative_to(local) for pattern in patterns for path in (local / "results").glob(pattern)]
    results = [path for path in files if not path.name.endswith(".meta.json")]
    assert len(results) == 2 * 2 + 2 * 3 + 4 * 3
    for path in results:
        assert (folder / path).read_bytes() == (local / path).read_bytes(), path


def test_a_second_run_submits_nothing(run, cluster, folder):
    again = snakemake_on(cluster, folder, "demo", "--configfile", "small.yaml")
    assert again.status == 0 and "Nothing to be done" in again.text, again.text[-3000:]
    assert again.submissions == []


def test_a_failed_job_comes_back_with_more_memory_and_time(run, cluster, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    script = copy / "workflow/scripts/transcribe.py"
    script.write_text(FAIL_ONCE + script.read_text())
    shard = "results/asr/commands/beam/shards/0-of-2.jsonl"
    retried = snakemake_on(cluster, copy, shard, "--configfile", "small.yaml")
    assert retried.status == 0, retried.text[-8000:]
    assert "SLURM status is: 'FAILED'" in retried.text
    sizes = [(rule_of(s), s["--mem"], s["-t"]) for s in retried.submissions]
    assert sizes == [("transcribe", "1500", "20"), ("transcribe", "3000", "40")]
    assert (copy / shard).read_bytes() == (folder / shard).read_bytes()
    kept = list((copy / "results/logs/slurm").glob("rule_transcribe/*/*.log"))
    assert len(kept) == 1 and "transcribe.py' returned non-zero exit status 1" in kept[0].read_text()
