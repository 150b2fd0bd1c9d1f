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

from utterflow import targets
from utterflow.codedigest import code_digest
from utterflow.config.base import NAME_PATTERN, placement_keys
from utterflow.config.load import check_config_files, load_config
from utterflow.errors import UserError
from utterflow.finetune.resources import slurm_resources

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"

try:
    check_config_files([Path(path) for path in workflow.configfiles], config)
    CONFIG = load_config(config)
except UserError as error:
    raise WorkflowError(f"the configuration cannot be used\n{error}") from None
config.clear()
config.update(CONFIG.model_dump(mode="json"))


NAMES = (
    "corpus asr scoring recordings encoder logits ngram beams rationale dataset training prediction"
    " correction understanding"
)


wildcard_constraints:
    **dict.fromkeys(NAMES.split(), NAME_PATTERN),
    fold=r"full|\d+",
    partition="train|val|test",
    split="train|validation|test",
    k=r"\d+",
    shard=r"\d+",
    shards=r"\d+",


def code(rule):
    """Digest of a rule's script and of the project code that it reaches."""
    return code_digest(SCRIPTS / f"{rule}.py")


def entry(section, wildcard):
    """The configuration's entry that a wildcard names, as a function of the wildcards."""
    return lambda wildcards: getattr(CONFIG, section)[getattr(wildcards, wildcard)]


def cfg_of(section, wildcard, exclude=()):
    """That entry without what only places or sizes jobs, as a function of the wildcards."""

    def cfg(wildcards):
        found = entry(section, wildcard)(wildcards)
        return found.model_dump(mode="json", exclude=placement_keys(type(found)) | set(exclude))

    return cfg


# The number of shards is in the names of the shards' files.
cfg_corpus = cfg_of("corpora", "corpus", exclude=["shards"])
cfg_asr = cfg_of("asr", "asr")
cfg_scoring = cfg_of("scoring", "scoring")


def sized(section, wildcard, key):
    """A placement key of that entry, for `threads` and `resources`."""
    return lambda wildcards: getattr(entry(section, wildcard)(wildcards), key)


def slurm(key):
    """A resource of a training in the words of Slurm's executor; left out where it does not need one."""
    return lambda wildcards: slurm_resources(CONFIG.trainings[wildcards.training]).get(key)


def on_gpu(section, wanted):
    """Names of a section's entries that ask for a GPU (or for none)."""
    return either(
        name for name, item in getattr(CONFIG, section).items() if bool(item.gpus) == wanted
    )


def either(names):
    """A pattern that matches just these names; nothing where there are none."""
    return "|".join(names) or "(?!)"


def grown(value):
    """A resource that grows with each attempt."""
    return lambda wildcards, attempt: (value(wildcards) if callable(value) else value) * attempt


def shard_files(wildcards, suffix):
    """One file of each shard of a corpus, under one ASR variant."""
    shards = CONFIG.corpora[wildcards.corpus].shards
    folder = f"results/asr/{wildcards.corpus}/{wildcards.asr}/shards"
    return [f"{folder}/{shard}-of-{shards}{suffix}" for shard in range(shards)]


NBEST = targets.nbest_lists(CONFIG)
ASR_SCORES = targets.asr_scores(CONFIG)
CORRECTION_SCORES = targets.correction_scores(CONFIG)
RATIONALES = targets.rationale_files(CONFIG)
SLU_SCORES = targets.slu_scores(CONFIG)
TRAININGS = targets.trainings(CONFIG)
