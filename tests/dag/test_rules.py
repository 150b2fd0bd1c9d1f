"""Every rule keeps the house's form, in every shipped configuration."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import workspace

CONFIGS = [
    "config/config.yaml",
    *sorted(
        str(p.relative_to(workspace.REPOSITORY)) for p in (workspace.REPOSITORY / "config/experiments").glob("*.yaml")
    ),
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A fresh copy: no results, no data from anywhere."""
    folder = tmp_path_factory.mktemp("clone")
    workspace.copy_workflow(folder, "resources")
    return folder


@pytest.fixture(scope="module", params=CONFIGS)
def jobs(clone, request) -> list[workspace.Job]:
    return workspace.dry_run(clone, "all", "fetch", "--configfile", request.param)


def test_params_are_one_dict_and_the_code(jobs):
    scripted = [job for job in jobs if job.scripted]
    assert scripted
    for job in scripted:
        assert job.params.keys() == {"cfg", "code", ""} and job.params[""] == [], job.name
        assert isinstance(job.params["cfg"], dict), job.name
        assert json.loads(json.dumps(job.params["cfg"])) == job.params["cfg"], job.name
        assert re.fullmatch(r"[0-9a-f]{64}", job.params["code"]), job.name


def test_rules_leave_log_benchmark_environment_and_side_file(jobs):
    for job in jobs:
        if job.scripted and job.rule != "missing_file":
            assert job.documented, job.name
            assert [path for path in job.output if path.endswith(".meta.json")], job.name
            assert int(float(job.resources["mem_mb"])) > 0 and int(float(job.resources["runtime"])) > 0, job.name


def test_stage_targets_exist(clone):
    stages = ("demo", "corpora", "asr", "beams", "trainings", "predictions", "evaluate", "report", "fetch")
    assert {job.rule for job in workspace.dry_run(clone, *stages)} >= set(stages)


def test_rules_are_named_like_their_scripts():
    scripts = {path.stem for path in (workspace.REPOSITORY / "workflow/scripts").glob("*.py")}
    text = "".join(path.read_text() for path in (workspace.REPOSITORY / "rules").glob("*.smk"))
    rules = set(re.findall(r"^rule (\w+):", text, re.MULTILINE))
    assert scripts == rules


def test_the_house_stays_small():
    assert len((workspace.REPOSITORY / "Snakefile").read_text().splitlines()) <= 80
    assert len((workspace.REPOSITORY / "rules/common.smk").read_text().splitlines()) <= 150


@pytest.mark.parametrize(
    "path",
    sorted((workspace.REPOSITORY / "workflow").rglob("*.py")),
    ids=lambda path: path.relative_to(workspace.REPOSITORY).as_posix(),
)
def test_code_has_no_hidden_inputs(path):
    """No config read in a script, no import by computed name: both would escape the rerun triggers."""
    tree = ast.parse(path.read_text())
    script = path.parent.name == "scripts"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not (node.value.id == "snakemake" and node.attr == "config")
            assert (node.value.id, node.attr) != ("importlib", "import_module")
        if isinstance(node, ast.Name):
            assert node.id != "__import__"
            assert script or node.id != "snakemake"


def test_errors_of_the_config_are_plain(clone):
    (clone / "bad.yaml").write_text("asr: {beam: {num_beems: 5}}\n")
    done = workspace.snakemake(clone, "--dry-run", "--configfile", "bad.yaml")
    assert done.returncode == 1
    assert "num_beems" in done.stdout and "num_beams" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_copys_own_library_runs(tmp_path):
    workspace.copy_workflow(tmp_path, "resources")
    with (tmp_path / "workflow/utterflow/__init__.py").open("a") as handle:
        handle.write('__version__ = "copy"\n')
    (tmp_path / "small.yaml").write_text("corpora: {commands: {limit: 2}}\n")
    done = workspace.snakemake(tmp_path, "results/corpora/commands/manifest.jsonl", "--configfile", "small.yaml")
    assert done.returncode == 0, done.stdout[-3000:]
    meta = json.loads((tmp_path / "results/corpora/commands/manifest.meta.json").read_text())
    assert meta["packages"]["utterflow"] == "copy"
