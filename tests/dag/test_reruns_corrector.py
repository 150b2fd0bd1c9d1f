"""A changed key reruns exactly the rules that use it and what follows: for every key of the corrector's sections."""

from __future__ import annotations

import re

import pytest
import stubbed
from rerun_keys import CORRECTOR_CHANGES, CORRECTOR_PLACEMENT
from reruns import changed, check_placement, check_reruns, dry_run, with_followers

LEXICON = {"tokens": "tokens.txt", "lexicon": "lexicon.txt"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubbed")
    return folder, stubbed.make_stubbed(folder, stubbed.corrector_config())


@pytest.fixture(scope="module")
def jobs(place):
    folder, config = place
    return dry_run(folder, config)


def test_nothing_changed_nothing_reruns(jobs):
    assert [job.name for job in jobs if job.needed] == []


@pytest.mark.parametrize("key", CORRECTOR_CHANGES, ids=lambda key: re.sub(r"\W+", "_", f"{key[0]}_{key[1] or ''}"))
def test_a_changed_key_reruns_what_uses_it_and_what_follows(place, key):
    folder, config = place
    where, value = CORRECTOR_CHANGES[key]
    other = changed(config, where, value)
    check_reruns(folder, config, other, key, where)


@pytest.mark.parametrize("key", CORRECTOR_PLACEMENT, ids=lambda key: key[0])
def test_placement_reruns_nothing_but_takes_effect(place, jobs, key):
    folder, config = place
    where, value = CORRECTOR_PLACEMENT[key]
    other = changed(config, where, value)
    check_placement(folder, jobs, other, key)


def test_targets_follow_the_runs(place):
    folder, config = place
    fewer = changed(config, "runs/0/corrections", ["real"])
    assert {job.rule for job in dry_run(folder, fewer) if job.needed} <= {
        "summarize_corrections",
        "plot_training",
        "all",
    }
    merged = changed(config, "trainings/real/merge", True)
    assert {job.rule for job in dry_run(folder, merged) if job.needed} == {"merge_adapter", "all"}


def test_another_decoder_decodes_again(place):
    folder, config = place
    other = changed(config, "beams/heard", {"logits": "heard", "decoder": "lexicon", **LEXICON, "ngram": "given"})
    jobs = dry_run(folder, other)
    first = [job for job in jobs if job.rule == "dump_beams" and ("beams", "heard") in job.wildcards]
    assert {job.name for job in jobs if job.needed} == with_followers(jobs, first)


def test_another_source_of_logits_computes_them_again(place):
    folder, config = place
    other = changed(config, "logits/stored", {"source": "encoder", "encoder": "toy"})
    jobs = dry_run(folder, other)
    first = [job for job in jobs if job.rule == "save_logits" and ("logits", "stored") in job.wildcards]
    assert {job.name for job in jobs if job.needed} == with_followers(jobs, first)


def test_another_source_of_recordings_trains_again(place):
    folder, config = place
    other = changed(config, "recordings/simulated", config["recordings"]["trials"])
    jobs = dry_run(folder, other)
    first = [job for job in jobs if job.rule == "train_ctc" and ("encoder", "toy") in job.wildcards]
    assert {job.name for job in jobs if job.needed} == with_followers(jobs, first)
