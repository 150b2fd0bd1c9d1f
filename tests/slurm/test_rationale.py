"""Jobs of a cluster ask a server: they get its key from the environment, and nothing of Slurm's or ours holds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import workspace
from fake_server import FakeServer
from paid_rationales import KEY, ROWS, config, rationale, write_lists

from .cluster import Cluster
from .test_slurm import Run, rule_of, snakemake_on

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def asked(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, FakeServer]:
    folder = tmp_path_factory.mktemp("asking")
    workspace.copy_workflow(folder)
    write_lists(folder / "lists.jsonl")
    with pytest.MonkeyPatch.context() as patch, FakeServer(answer=rationale, key=KEY) as server:
        patch.setenv("PLANTED_KEY", KEY)
        settings = config(server.url)
        settings["servers"]["fake"] |= {"base_url_env": ["NOT_SET", "NOT_SET_EITHER"], "budget": 5.0, "timeout": 30.5}
        workspace.write_config(folder, settings, "asking.yaml")
        run = snakemake_on(cluster, folder, "rationales", "--configfile", "asking.yaml")
        assert run.status == 0, f"{run.text[-4000:]}\n{cluster.logs()}"
        return folder, run, server


def test_each_row_is_asked_once_by_the_jobs_of_the_cluster(asked: tuple[Path, Run, FakeServer]) -> None:
    folder, run, server = asked
    assert [rule_of(item) for item in run.submissions].count("generate_rationale") == 2
    rows = [json.loads(line) for line in (folder / "results/rationale/paid/k3/rationale.jsonl").open()]
    assert [row["slurp_id"] for row in rows] == list(range(ROWS)) and all(row["topk_valid"] for row in rows)
    assert sum(server.asked.values()) == len(server.asked) == ROWS


def test_no_file_and_no_submission_holds_the_key(asked: tuple[Path, Run, FakeServer], cluster: Cluster) -> None:
    folder, run, _ = asked
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any("slurm" in path.parts for path in files), "no logs of Slurm"
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []
    assert all(KEY not in argument for call in cluster.calls("sbatch") for argument in call)
    assert KEY not in run.text
