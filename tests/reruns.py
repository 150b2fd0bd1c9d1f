"""What a changed key should rerun, worked out from the jobs of a dry run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import workspace
from rerun_keys import Key

from utterflow.config.load import load_config
from utterflow.config.reference import all_keys
from utterflow.targets import trainings

ONLY_TRAIN = ("folds", "cross_fitted", "held_out")  # keys about the logits of the train partition
ASKED = {"servers": "server", "models": "model"}
WILDCARDS = {
    "recordings": "recordings",
    "encoders": "encoder",
    "logits": "logits",
    "ngrams": "ngram",
    "beams": "beams",
    "rationales": "rationale",
    "datasets": "dataset",
    "trainings": "training",
    "predictions": "prediction",
    "corrections": "correction",
    "understandings": "understanding",
    "scoring": "scoring",
}


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
    if "rationale" in names:
        rationale = config["rationales"][names["rationale"]]
        used |= {(section, rationale[key]) for section, key in ASKED.items() if rationale.get(key)}
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


def placed(jobs: list[workspace.Job]) -> set[tuple[Any, ...]]:
    """Rule, threads and resources of each job."""
    return {(job.output, job.rule, job.threads, tuple(job.resources.items())) for job in jobs}


def check_reruns(folder: Path, config: dict[str, Any], other: dict[str, Any], key: Key, where: str) -> None:
    """With `other`, just the rules that the documentation of the changed key names rerun, and what follows them."""
    documented = next(info.reruns for info in all_keys() if (info.path, info.variant) == key)
    jobs = dry_run(folder, other)
    first = list(first_jobs(other, jobs, where, documented))
    assert first, "no job uses this key"
    first += [job for job in jobs if not all((folder / path).exists() for path in job.output)]
    if trainings(load_config(config)) != trainings(load_config(other)):
        first += [job for job in jobs if job.rule == "plot_training"]
    assert {job.name for job in jobs if job.needed} == with_followers(jobs, first)


def check_placement(folder: Path, jobs: list[workspace.Job], other: dict[str, Any], key: Key) -> None:
    """With `other`, nothing reruns, but threads or resources of some of the jobs are others."""
    assert next(info.reruns for info in all_keys() if (info.path, info.variant) == key) == ()
    after = dry_run(folder, other)
    assert [job.name for job in after if job.needed] == []
    assert placed(after) != placed(jobs)
