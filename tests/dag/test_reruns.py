"""A changed key reruns exactly the rules that use it and what follows: for every key of the configuration."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import workspace
from rerun_keys import (
    CORRECTOR_CHANGES,
    CORRECTOR_OTHERS,
    CORRECTOR_PLACEMENT,
    SLU_CHANGES,
    SLU_OTHERS,
    SLU_PLACEMENT,
)

from utterflow.config.reference import all_keys

CORPORA = ("spoken", "ocean", "tree", "table")
SCORED = {"score_asr", "summarize_asr", "plot_asr", "all"}
GATHERED = {"gather_nbest", *SCORED}
TRANSCRIBED = {"transcribe", *GATHERED}
FOLLOWS = {
    "fetch_file": {"fetch_file"},
    "unpack_archive": {"unpack_archive", "prepare_corpus", *TRANSCRIBED},
    "prepare_corpus": {"prepare_corpus", *TRANSCRIBED},
    "transcribe": TRANSCRIBED,
    "score_asr": SCORED,
    "score_corrections": set(),
    "summarize_asr": {"summarize_asr", "all"},
}

# Path of a key (with the adapter where only one has it) -> where it stands in the workspace's config and its new value.
CHANGES: dict[tuple[str, str | None], tuple[str, Any]] = {
    ("name", None): ("name", "other"),
    ("title", None): ("title", "Other"),
    ("downloads.*.url", None): ("downloads/data:words.tsv/url", "http://127.0.0.1:9/words.tsv"),
    ("downloads.*.sha256", None): ("downloads/data:words.tsv/sha256", "0" * 64),
    ("downloads.*.md5", None): ("downloads/data:words.tsv/md5", "0" * 32),
    ("downloads.*.unpack_to", None): ("downloads/data:words.tar/unpack_to", "data/words/"),
    ("corpora.*.shards", None): ("corpora/spoken/shards", 2),
    ("corpora.*.limit", None): ("corpora/spoken/limit", 2),
    ("corpora.*.smoke", None): ("corpora/spoken/smoke", True),
    ("corpora.*.sample.method", None): ("corpora/spoken/sample/method", "stratified"),
    ("corpora.*.sample.percent", None): ("corpora/spoken/sample/percent", 50),
    ("corpora.*.sample.max_samples", None): ("corpora/spoken/sample/max_samples", 1),
    ("corpora.*.sample.seed", None): ("corpora/spoken/sample/seed", 7),
    ("corpora.*.min_seconds", None): ("corpora/spoken/min_seconds", 0.1),
    ("corpora.*.max_seconds", None): ("corpora/spoken/max_seconds", 9),
    ("corpora.*.noise.snr_db", None): ("corpora/spoken/noise/snr_db", [0, 5]),
    ("corpora.*.noise.color", None): ("corpora/spoken/noise/color", [1, 1]),
    ("corpora.*.noise.seed", None): ("corpora/spoken/noise/seed", 7),
    ("corpora.*.max_rejected", None): ("corpora/spoken/max_rejected", 0.5),
    ("corpora.*.annotations", "slurp"): ("corpora/spoken/annotations", "corpora/spoken/devel.jsonl"),
    ("corpora.*.audio_dir", "slurp"): ("corpora/spoken/audio_dir", "corpora/spoken/audio2"),
    ("corpora.*.metadata", "slurp"): ("corpora/spoken/metadata", "corpora/spoken/metadata2.json"),
    ("corpora.*.recordings", "slurp"): ("corpora/spoken/recordings", "all"),
    ("corpora.*.recording_index", "slurp"): ("corpora/spoken/recording_index", 1),
    ("corpora.*.group", "slurp"): ("corpora/spoken/group", "native"),
    ("corpora.*.root", "speechocean762"): ("corpora/ocean/root", "corpora/ocean2"),
    ("corpora.*.split", "speechocean762"): ("corpora/ocean/split", "train"),
    ("corpora.*.group", "speechocean762"): ("corpora/ocean/group", "age"),
    ("corpora.*.root", "speaker_tree"): ("corpora/tree/root", "corpora/tree2"),
    ("corpora.*.split", "speaker_tree"): ("corpora/tree/split", "Train"),
    ("corpora.*.path", "manifest"): ("corpora/table/path", "corpora/words2.tsv"),
    ("corpora.*.audio_dir", "manifest"): ("corpora/table/audio_dir", "corpora/words2"),
    ("corpora.*.columns.id", "manifest"): ("corpora/table/columns/id", "id2"),
    ("corpora.*.columns.audio", "manifest"): ("corpora/table/columns/audio", "audio2"),
    ("corpora.*.columns.text", "manifest"): ("corpora/table/columns/text", "text2"),
    ("corpora.*.columns.speaker", "manifest"): ("corpora/table/columns/speaker", "speaker2"),
    ("corpora.*.columns.group", "manifest"): ("corpora/table/columns/group", "group2"),
    ("asr.*.model", None): ("asr/main/model", "./model2"),
    ("asr.*.revision", None): ("asr/main/revision", "abc"),
    ("asr.*.device", None): ("asr/main/device", "cpu"),
    ("asr.*.dtype", None): ("asr/main/dtype", "float32"),
    ("asr.*.language", None): ("asr/main/language", "de"),
    ("asr.*.task", None): ("asr/main/task", "translate"),
    ("asr.*.diversity_method", None): ("asr/main/diversity_method", "beam"),
    ("asr.*.num_hypotheses", None): ("asr/main/num_hypotheses", 3),
    ("asr.*.num_beams", None): ("asr/main/num_beams", 6),
    ("asr.*.num_beam_groups", None): ("asr/main/num_beam_groups", 4),
    ("asr.*.diversity_penalty", None): ("asr/main/diversity_penalty", 0.5),
    ("asr.*.length_penalty", None): ("asr/main/length_penalty", 0.5),
    ("asr.*.sampling_pool", None): ("asr/main/sampling_pool", 10),
    ("asr.*.temperature", None): ("asr/main/temperature", 0.9),
    ("asr.*.top_p", None): ("asr/main/top_p", 0.9),
    ("asr.*.top_k", None): ("asr/main/top_k", 9),
    ("asr.*.max_new_tokens", None): ("asr/main/max_new_tokens", 5),
    ("asr.*.no_repeat_ngram_size", None): ("asr/main/no_repeat_ngram_size", 2),
    ("asr.*.seed", None): ("asr/main/seed", 7),
    ("asr.*.drop_duplicates", None): ("asr/main/drop_duplicates", False),
    ("asr.*.token_scores", None): ("asr/main/token_scores", True),
    ("asr.*.long_audio", None): ("asr/main/long_audio", "reject"),
    ("asr.*.batch_size", None): ("asr/main/batch_size", 2),
    ("asr.*.max_rejected", None): ("asr/main/max_rejected", 0.5),
    ("scoring.*.normalizer", None): ("scoring/main/normalizer", "none"),
    ("scoring.*.oracle_at", None): ("scoring/main/oracle_at", [1, 2]),
    ("scoring.*.mbr_weights", None): ("scoring/main/mbr_weights", "uniform"),
    ("scoring.*.bootstrap.samples", None): ("scoring/main/bootstrap/samples", 30),
    ("scoring.*.bootstrap.unit", None): ("scoring/main/bootstrap/unit", "speaker"),
    ("scoring.*.bootstrap.confidence", None): ("scoring/main/bootstrap/confidence", 0.9),
    ("scoring.*.bootstrap.seed", None): ("scoring/main/bootstrap/seed", 7),
    ("scoring.*.max_rejected", None): ("scoring/main/max_rejected", 0.5),
}
# These place or size a job: nothing reruns, and what a forced dry run says of the job changes.
PLACEMENT: dict[tuple[str, str | None], tuple[str, Any]] = {
    ("corpora.*.threads", None): ("corpora/spoken/threads", 1),
    ("asr.*.gpus", None): ("asr/main/gpus", 1),
    ("asr.*.threads", None): ("asr/main/threads", 2),
    ("asr.*.mem_mb", None): ("asr/main/mem_mb", 5000),
    ("asr.*.runtime", None): ("asr/main/runtime", 90),
}
# These name what the targets are; tested below.
TARGETS = {("corpora.*.adapter", None), ("runs.*.corpora", None), ("runs.*.asr", None), ("runs.*.scoring", None)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    return folder, workspace.make_workspace(folder)


def changed(config: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(config)
    *path, last = where.split("/")
    section = result
    for part in path:
        section = section.setdefault(part.replace(":", "/"), {})
    assert section.get(last) != value
    section[last] = value
    return result


def needed_jobs(folder, config: dict[str, Any], *arguments: str) -> list[workspace.Job]:
    jobs = workspace.dry_run(
        folder, "all", "--configfile", workspace.write_config(folder, config, "changed.yaml"), *arguments
    )
    return [job for job in jobs if job.needed]


def corpus_of(job: workspace.Job) -> str | None:
    return dict(job.wildcards).get("corpus")


def test_every_key_is_tested():
    corrector = CORRECTOR_CHANGES.keys() | CORRECTOR_PLACEMENT.keys() | CORRECTOR_OTHERS
    slu = SLU_CHANGES.keys() | SLU_PLACEMENT.keys() | SLU_OTHERS
    every = {(key.path, key.variant) for key in all_keys()}
    assert every == CHANGES.keys() | PLACEMENT.keys() | TARGETS | corrector | slu


def test_nothing_changed_nothing_reruns(place):
    folder, config = place
    assert needed_jobs(folder, config) == []


@pytest.mark.parametrize("key", CHANGES, ids=lambda key: re.sub(r"\W+", "_", f"{key[0]}_{key[1] or ''}"))
def test_a_changed_key_reruns_what_uses_it_and_what_follows(place, key):
    folder, config = place
    where, value = CHANGES[key]
    documented = next(info.reruns for info in all_keys() if (info.path, info.variant) == key)
    jobs = needed_jobs(folder, changed(config, where, value))
    expected = set().union(*(FOLLOWS[rule] for rule in documented))
    if key[0].startswith("downloads.") and key[0] != "downloads.*.unpack_to":
        expected |= FOLLOWS["prepare_corpus"]
    assert {job.rule for job in jobs} == expected
    section, *names = where.split("/")
    corpora = {"downloads": {"table"}, "corpora": set(names[:1])}.get(section, set(CORPORA))
    assert {corpus_of(job) for job in jobs} - {None} == (
        corpora if expected & GATHERED - {"summarize_asr", "all"} else set()
    )


@pytest.mark.parametrize("key", PLACEMENT, ids=lambda key: key[0])
def test_placement_reruns_nothing_but_takes_effect(place, key):
    folder, config = place
    other = changed(config, *PLACEMENT[key])
    assert next(info.reruns for info in all_keys() if (info.path, info.variant) == key) == ()
    assert needed_jobs(folder, other) == []
    before, after = (
        {
            (job.output, job.rule, job.threads, tuple(job.resources.items()))
            for job in needed_jobs(folder, one, "--forceall")
        }
        for one in (config, other)
    )
    assert before != after


def test_runs_name_the_targets(place):
    folder, config = place
    more = changed(config, "scoring/second", {"normalizer": "none"})
    assert needed_jobs(folder, more) == []
    more["runs"].append({"corpora": ["tree"], "asr": ["main"], "scoring": ["second"]})
    jobs = needed_jobs(folder, more)
    assert {job.rule for job in jobs} == SCORED
    assert {corpus_of(job) for job in jobs} - {None} == {"tree"}
    fewer = changed(config, "runs", [{"corpora": ["tree"], "asr": ["main"], "scoring": ["main"]}])
    assert {job.rule for job in needed_jobs(folder, fewer)} == {"summarize_asr", "plot_asr", "all"}


def test_another_adapter_prepares_again(place):
    folder, config = place
    table = {"adapter": "manifest", "path": "corpora/words2.tsv", "audio_dir": "corpora/words2"}
    jobs = needed_jobs(folder, changed(config, "corpora/tree", table))
    assert {job.rule for job in jobs} == FOLLOWS["prepare_corpus"]
    assert {corpus_of(job) for job in jobs} - {None} == {"tree"}


def test_swapped_values_rerun(place):
    """Snakemake keeps params as an unnamed set: two keys that swap their values must still rerun the rule."""
    folder, config = place
    defaults = {info.path: info.default for info in all_keys()}
    top_k, seed = defaults["asr.*.top_k"], defaults["asr.*.seed"]
    swapped = changed(changed(config, "asr/main/top_k", seed), "asr/main/seed", top_k)
    assert {job.rule for job in needed_jobs(folder, swapped)} == TRANSCRIBED
