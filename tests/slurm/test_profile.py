"""What the profiles say, seen without a cluster and without Slurm's programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import workspace
import yaml

COMMENTED_KEY = re.compile(r"^( +)# (\w+: .+)$", re.MULTILINE)
# The demo's two corpora, in two shards each, once on CPU nodes and once on GPU nodes.
CONFIG = {
    "asr": {"beam": {"gpus": 1}},
    "runs": [{"corpora": ["commands", "atypical"], "asr": ["beam", "group_beam"], "scoring": ["default"]}],
}
NEEDED_PROGRAMS = ("bash", "sh", "env", "which", "uname")


def profile(name: str) -> Path:
    return workspace.REPOSITORY / "profiles" / name / "config.yaml"


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh copy in which every key that the profile offers in a comment is set."""
    folder = tmp_path_factory.mktemp("profiles")
    workspace.copy_workflow(folder, "resources")
    workspace.write_config(folder, CONFIG, "small.yaml")
    path = folder / "profiles/slurm/config.yaml"
    path.write_text(COMMENTED_KEY.sub(r"\1\2", path.read_text()))
    return folder


@pytest.fixture(scope="module")
def dry_run(clone) -> str:
    """A dry run with GPU jobs where no program of Slurm is on PATH."""
    programs = clone / "bin"
    programs.mkdir()
    for name in NEEDED_PROGRAMS:
        (programs / name).symlink_to(shutil.which(name))
    assert not shutil.which("sbatch", path=str(programs))
    arguments = ["--dry-run", "--profile", "profiles/slurm", "--configfile", "small.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=clone,
        env={**workspace.environment(), "PATH": str(programs)},
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def options(clone: Path, monkeypatch, *arguments: str):
    from snakemake.cli import parse_args

    monkeypatch.chdir(clone)
    return parse_args(list(arguments))


def resources(text: str, rule: str) -> list[dict[str, str]]:
    """The resources of each job of a rule in what a dry run prints."""
    lines = re.findall(rf"^rule {rule}:\n(?:    .*\n)*?    resources: (.*)$", text, re.MULTILINE)
    return [dict(item.split("=", 1) for item in line.split(", ")) for line in lines]


def test_a_dry_run_needs_no_slurm(dry_run):
    gpu, cpu = resources(dry_run, "transcribe_gpu"), resources(dry_run, "transcribe")
    assert len(gpu) == len(cpu) == 4
    assert all((job["slurm_partition"], job["gpu"]) == ("gpu", "1") for job in gpu)
    assert all(job["slurm_partition"] == "cpu" and "gpu" not in job for job in cpu)


def test_keys_in_comments_take_effect(clone, dry_run):
    offered = yaml.safe_load((clone / "profiles/slurm/config.yaml").read_text())
    added = yaml.safe_load(profile("slurm").read_text())
    everywhere = offered["default-resources"].keys() - added["default-resources"].keys()
    on_gpus = offered["set-resources"]["transcribe_gpu"].keys() - added["set-resources"]["transcribe_gpu"].keys()
    assert everywhere >= {"slurm_account"} and on_gpus >= {"gpu_model"}
    for job in resources(dry_run, "transcribe_gpu"):
        assert {key: job[key] for key in everywhere} == {key: offered["default-resources"][key] for key in everywhere}
        assert job["gpu_model"] == offered["set-resources"]["transcribe_gpu"]["gpu_model"]


def test_the_cluster_profile_comes_on_top_of_the_default(clone, monkeypatch):
    _, used = options(clone, monkeypatch, "--profile", "profiles/slurm")
    assert used.executor == "slurm" and used.retries == 2
    assert used.keep_going and used.rerun_incomplete and used.show_failed_logs
    assert {str(trigger) for trigger in used.rerun_triggers} == {"mtime", "input", "params", "software-env"}
    assert (used.slurm_status_command, used.slurm_no_requeue) == ("squeue", True)
    assert used.slurm_jobname_prefix == "utterflow"


def test_every_key_is_an_option_of_snakemake_and_stands_in_one_profile():
    from snakemake.cli import get_argument_parser

    known = {option.lstrip("-") for action in get_argument_parser()._actions for option in action.option_strings}
    keys = {name: yaml.safe_load(profile(name).read_text()).keys() for name in ("default", "slurm")}
    for name, used in keys.items():
        assert used <= known, name
    assert keys["default"].isdisjoint(keys["slurm"])


def test_no_profile_sets_a_key_known_to_do_harm():
    """The first two hold down the threads of cluster jobs, the others lose results or hang the run."""
    harmful = {"cores", "max-threads", "keep-incomplete", "slurm-array-jobs", "slurm-requeue"}
    for name in ("default", "slurm"):
        assert harmful.isdisjoint(yaml.safe_load(profile(name).read_text())), name


def test_every_rule_for_gpus_goes_to_the_gpu_partition():
    rules = {
        name
        for path in (workspace.REPOSITORY / "rules").glob("*.smk")
        for name in re.findall(r"as (\w+_gpu) with:", path.read_text())
    }
    asked = yaml.safe_load(profile("slurm").read_text())["set-resources"]
    assert rules == asked.keys() and len(rules) >= 7
    assert {resources["slurm_partition"] for resources in asked.values()} == {"gpu"}
