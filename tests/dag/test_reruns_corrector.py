"""A changed key reruns exactly the rules that use it and what follows: for every key of the corrector's sections."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import stubbed
import workspace
from rerun_keys import CORRECTOR_CHANGES, CORRECTOR_PLACEMENT

from utterflow.config.load import load_config
from utterflow.config.reference import all_keys
from utterflow.targets import trainings

LEXICON = {"tokens": "tokens.txt", "lexicon": "lexicon.txt"}
ONLY_TRAIN = ("folds", "cross_fitted", "held_out")  # keys about the logits of the train partition
WILDCARDS = {
    "recordings": "recordings",
    "encoders": "encoder",
    "logits": "logits",
    "ngrams": "ngram",
    "beams": "beams",
    "datasets": "dataset",
    "trainings": "training",
    "predictions": "prediction",
    "corrections": "correction",
    "scoring": "scoring",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubbed")
    return folder, stubbed.make_stubbed(folder)


def changed(config: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    result = json.loads(json.dumps(config))
    *path, last = where.split("/")
    section: Any = result
    for part in path:
        section = section[int(part)] if isinstance(section, list) else section.setdefault(part, {})
    place: Any = int(last) if isinstance(section, list) else last
    assert (section[place] if isinstance(section, list) else section.get(place)) != value
    section[place] = value
    return result


def dry_run(folder, config: dict[str, Any], *arguments: str) -> list[workspace.Job]:
    return workspace.dry_run(
        folder, "all", "--configfile", workspace.write_config(folder, config, "changed.yaml"), *arguments
    )


def used_entries(config: dict[str, Any], job: workspace.Job) -> set[tuple[str, str]]:
    """(section, name) of the entries that a job's own settings come from."""
    names = dict(job.wildcards)
    used = {(section, names[wildcard]) for section, wildcard in WILDCARDS.items() if wildcard in names}
    if "logits" in names and (encoder := config["logits"][names["logits"]].get("encoder")):
        used.add(("encoders", encoder))
    if encoder := dict(used).get("encoders"):
        used.add(("recordings", config["encoders"][encoder]["recordings"]))
    if ("beams" in names) and (ngram := config["beams"][names["beams"]].get("ngram")):
        used.add(("ngrams", ngram))
    if "dataset" in names and (tokenizer := config["datasets"][names["dataset"]].get("tokenizer")):
        used.add(("models", tokenizer))
    if "training" in names:
        used.add(("models", config["trainings"][names["training"]]["model"]))
    if "prediction" in names:
        prediction = config["predictions"][names["prediction"]]
        training = prediction.get("training")
        used.add(("models", config["trainings"][training]["model"] if training else prediction["model"]))
    return used


def first_jobs(config: dict[str, Any], jobs: list[workspace.Job], where: str, rules: tuple[str, ...]):
    """The jobs that the documentation of a key names: its rules, for the entry (and its partition) that has changed."""
    section, name, *rest = where.split("/")
    part = rest[0] if rest and rest[0] in ("train", "val", "validation", "test") else None
    if rest and rest[0] in ONLY_TRAIN:
        part = "train"
    for job in jobs:
        if rest == ["folds"] and dict(job.wildcards).get("fold") == "full":
            continue
        rule = re.sub(r"(_full)?(_gpu)?$", "", job.rule).replace("index_logits", "save_logits")
        own_part = dict(job.wildcards).get("partition") or dict(job.wildcards).get("split")
        if rule not in rules:
            continue
        if section == "tools" or (
            (section, name) in used_entries(config, job) and (part is None or own_part in (None, part))
        ):
            yield job


def with_followers(jobs: list[workspace.Job], first: list[workspace.Job]) -> set[str]:
    """Names of these jobs and of all that need their outputs, directly or not."""
    reached = {job.name: job for job in first}
    queue = list(first)
    while queue:
        made = set(queue.pop().output)
        for job in jobs:
            if job.name not in reached and made & set(job.input):
                reached[job.name] = job
                queue.append(job)
    return set(reached)


def test_nothing_changed_nothing_reruns(place):
    folder, config = place
    assert [job.name for job in dry_run(folder, config) if job.needed] == []


@pytest.mark.parametrize("key", CORRECTOR_CHANGES, ids=lambda key: re.sub(r"\W+", "_", f"{key[0]}_{key[1] or ''}"))
def test_a_changed_key_reruns_what_uses_it_and_what_follows(place, key):
    folder, config = place
    where, value = CORRECTOR_CHANGES[key]
    other = changed(config, where, value)
    documented = next(info.reruns for info in all_keys() if (info.path, info.variant) == key)
    jobs = dry_run(folder, other)
    first = list(first_jobs(other, jobs, where, documented))
    assert first, "no job uses this key"
    first += [job for job in jobs if not all((folder / path).exists() for path in job.output)]
    if trainings(load_config(config)) != trainings(load_config(other)):
        first += [job for job in jobs if job.rule == "plot_training"]
    assert {job.name for job in jobs if job.needed} == with_followers(jobs, first)


@pytest.mark.parametrize("key", CORRECTOR_PLACEMENT, ids=lambda key: key[0])
def test_placement_reruns_nothing_but_takes_effect(place, key):
    folder, config = place
    where, value = CORRECTOR_PLACEMENT[key]
    other = changed(config, where, value)
    assert next(info.reruns for info in all_keys() if (info.path, info.variant) == key) == ()
    assert [job.name for job in dry_run(folder, other) if job.needed] == []
    before, after = (
        {
            (job.output, job.rule, job.threads, tuple(job.resources.items()))
            for job in dry_run(folder, one, "--forceall")
        }
        for one in (config, other)
    )
    assert before != after


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
