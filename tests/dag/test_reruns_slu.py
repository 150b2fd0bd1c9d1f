"""A changed key reruns exactly the rules that use it and what follows: for every key of the sections about SLU."""

from __future__ import annotations

import re

import pytest
import stubbed
from rerun_keys import SLU_CHANGES, SLU_PLACEMENT
from reruns import changed, check_placement, check_reruns, dry_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubbed")
    return folder, stubbed.make_stubbed(folder, stubbed.slu_config())


@pytest.fixture(scope="module")
def jobs(place):
    folder, config = place
    return dry_run(folder, config)


def test_nothing_changed_nothing_reruns(jobs):
    assert [job.name for job in jobs if job.needed] == []


@pytest.mark.parametrize("key", SLU_CHANGES, ids=lambda key: re.sub(r"\W+", "_", f"{key[0]}_{key[1] or ''}"))
def test_a_changed_key_reruns_what_uses_it_and_what_follows(place, key):
    folder, config = place
    where, value = SLU_CHANGES[key]
    other = changed(config, where, value)
    if key[0] == "rationales.*.evidence":
        other = changed(other, "models/lm/kind", "audio")
    check_reruns(folder, config, other, key, where)


@pytest.mark.parametrize("key", SLU_PLACEMENT, ids=lambda key: key[0])
def test_placement_reruns_nothing_but_takes_effect(place, jobs, key):
    folder, config = place
    other = changed(config, *SLU_PLACEMENT[key])
    check_placement(folder, jobs, other, key)


def test_targets_follow_the_runs(place):
    folder, config = place
    longer = changed(config, "rationales/paid/nbest_values", [1, 2, 3])
    made = [job for job in dry_run(folder, longer) if job.needed]
    assert {job.rule for job in made} == {"generate_rationale", "gather_rationales", "summarize_rationales", "all"}
    assert {dict(job.wildcards).get("k") for job in made} == {"3", None}
    fewer = changed(changed(config, "runs/0/rationales", []), "runs/0/understandings", ["mixed"])
    rules = {job.rule for job in dry_run(folder, fewer) if job.needed}
    assert "summarize_slu" in rules
    assert rules <= {"summarize_slu", "summarize_rationales", "plot_training", "all"}
