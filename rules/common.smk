# Glue: the validated configuration, wildcards, and what a rule may know of the configuration.

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# This copy's library serves rules and scripts alike, whatever is installed: in a conda environment nothing is.
LIBRARY = str(Path(workflow.basedir) / "workflow")
if sys.path[0] != LIBRARY:
    sys.path.insert(0, LIBRARY)
    inherited = dict(os.environ).get("PYTHONPATH")
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [LIBRARY, inherited])))

from utterflow.asr.models import model_inputs
from utterflow.codedigest import code_digest
from utterflow.config.base import NAME_PATTERN, placement_keys
from utterflow.config.load import check_config_files, load_config
from utterflow.errors import UserError

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"

try:
    check_config_files([Path(path) for path in workflow.configfiles], config)
    CONFIG = load_config(config)
except UserError as error:
    raise WorkflowError(f"the configuration cannot be used\n{error}") from None
config.clear()
config.update(CONFIG.model_dump(mode="json"))


wildcard_constraints:
    corpus=NAME_PATTERN,
    asr=NAME_PATTERN,
    scoring=NAME_PATTERN,
    shard=r"\d+",
    shards=r"\d+",


def code(rule):
    """Digest of a rule's script and of the project code that it reaches."""
    return code_digest(SCRIPTS / f"{rule}.py")


def cfg_corpus(wildcards):
    corpus = CONFIG.corpora[wildcards.corpus]
    # The number of shards is in the names of the shards' files.
    return corpus.model_dump(mode="json", exclude=placement_keys(type(corpus)) | {"shards"})


def cfg_asr(wildcards):
    variant = CONFIG.asr[wildcards.asr]
    return variant.model_dump(mode="json", exclude=placement_keys(type(variant)))


def cfg_scoring(wildcards):
    return CONFIG.scoring[wildcards.scoring].model_dump(mode="json")


def either(names):
    """A pattern that matches just these names; nothing where there are none."""
    return "|".join(names) or "(?!)"


def grown(value):
    """A resource that grows with each attempt."""
    return lambda wildcards, attempt: (value(wildcards) if callable(value) else value) * attempt


def asr_runs():
    """Every (corpus, asr, scoring) that the configuration asks for, once, in its order."""
    return list(
        dict.fromkeys(
            (corpus, asr, scoring)
            for run in CONFIG.runs
            for corpus in run.corpora
            for asr in run.asr
            for scoring in run.scoring
        )
    )


def shard_files(wildcards, suffix):
    """One file of each shard of a corpus, under one ASR variant."""
    shards = CONFIG.corpora[wildcards.corpus].shards
    folder = f"results/asr/{wildcards.corpus}/{wildcards.asr}/shards"
    return [f"{folder}/{shard}-of-{shards}{suffix}" for shard in range(shards)]


def run_manifests():
    return [
        f"results/corpora/{corpus}/manifest.jsonl"
        for corpus in dict.fromkeys(run[0] for run in asr_runs())
    ]


def run_nbest():
    return [
        f"results/asr/{corpus}/{asr}/nbest.jsonl"
        for corpus, asr in dict.fromkeys(run[:2] for run in asr_runs())
    ]


def run_scores(suffix=".json"):
    return [
        f"results/evaluate/{corpus}/{asr}/{scoring}{suffix}" for corpus, asr, scoring in asr_runs()
    ]


def fetched_files():
    """All that needs the network."""
    unpacked = [f"{path}.contents.tsv" for path, item in CONFIG.downloads.items() if item.unpack_to]
    models = [
        path
        for variant in CONFIG.asr.values()
        if variant.is_hub_model
        for path in model_inputs(variant)
    ]
    return [*CONFIG.downloads, *unpacked, *dict.fromkeys(models)]
