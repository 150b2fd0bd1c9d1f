"""Tests take over what their checkout has computed, but only where it is what the workflow would compute now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import workspace

SNAKEFILE = """
configfile: "config/config.yaml"


rule demo:
    input:
        "results/report/words.txt",
    localrule: True


rule count:
    input:
        "resources/text.txt",
    output:
        "results/words.txt",
    params:
        cfg=dict(config),
    shell:
        "mkdir -p results/.state && touch results/.state/journal && wc -w < {input} > {output}"


rule report:
    input:
        "results/words.txt",
    output:
        "results/report/words.txt",
    shell:
        "cp {input} {output}"
"""
PROFILE = "rerun-triggers: [mtime, input, params, software-env]\n"
RESULTS = (Path("results/words.txt"), Path("results/report/words.txt"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small workflow in the layout of this one, run once."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("rules", "workflow", "config", "profiles/default", "envs", "resources", "results"):
        (folder / name).mkdir(parents=True)
    (folder / "Snakefile").write_text(SNAKEFILE)
    (folder / "config/config.yaml").write_text("name: small\n")
    (folder / "profiles/default/config.yaml").write_text(PROFILE)
    (folder / "resources/text.txt").write_text("one two three\n")
    done = workspace.snakemake(folder, "demo")
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture
def checkout(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(workspace, "REPOSITORY", folder)
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "copy").mkdir()
    return tmp_path / "copy"


def take_over(copy: Path) -> bool:
    workspace.copy_workflow(copy, "resources")
    return workspace.copy_results(copy, "demo")


def test_finished_results_are_taken_over_and_the_checkout_is_left_alone(checkout: Path, copy: Path) -> None:
    assert take_over(copy)
    for path in RESULTS:
        assert (copy / path).read_text().split() == ["3"]
        assert (copy / path).stat().st_mtime_ns == (checkout / path).stat().st_mtime_ns
    assert (checkout / "results/.state/journal").exists() and not (copy / "results/.state").exists()
    (copy / "resources/text.txt").write_text("one two\n")
    done = workspace.snakemake(copy, "demo")
    assert done.returncode == 0, done.stdout
    assert [(copy / path).read_text().split() for path in RESULTS] == [["2"]] * 2
    assert [(checkout / path).read_text().split() for path in RESULTS] == [["3"]] * 2


def change_a_setting(checkout: Path) -> None:
    (checkout / "config/config.yaml").write_text("name: other\n")


def change_an_input(checkout: Path) -> None:
    (checkout / "resources/text.txt").write_text("one two\n")


def break_the_workflow(checkout: Path) -> None:
    (checkout / "Snakefile").write_text("rule demo\n")


@pytest.mark.parametrize("damage", [change_a_setting, change_an_input, break_the_workflow])
def test_results_that_are_not_up_to_date_are_refused(
    checkout: Path, copy: Path, damage: Callable[[Path], None]
) -> None:
    damage(checkout)
    assert not take_over(copy)


def clean(checkout: Path) -> None:
    shutil.rmtree(checkout / ".snakemake")


def remove_results(checkout: Path) -> None:
    shutil.rmtree(checkout / "results")


def run_still(checkout: Path) -> None:
    (checkout / ".snakemake/locks").mkdir(exist_ok=True)
    (checkout / ".snakemake/locks/0.output.lock").touch()


@pytest.mark.parametrize("state", [clean, remove_results, run_still])
def test_without_finished_results_nothing_is_copied(checkout: Path, copy: Path, state: Callable[[Path], None]) -> None:
    state(checkout)
    assert not take_over(copy)
    assert not (copy / "results").exists() and not (copy / ".snakemake").exists()
