# Utterflow: speech-and-language-model experiments as one workflow.
# Stages are in rules/, their work in workflow/utterflow/, all settings in config/ (see config/README.md).

from snakemake.utils import min_version

min_version("9.27")


# A config file with a top-level `name` stands alone; any other is laid over the default, the embedded demo.
if "name" not in config:

    configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/corpora.smk"
include: "rules/asr.smk"
include: "rules/evaluate.smk"
include: "rules/signals.smk"
include: "rules/beams.smk"
include: "rules/corrector.smk"
include: "rules/rationale.smk"
include: "rules/slu.smk"
include: "rules/sft.smk"
include: "rules/finetune.smk"
include: "rules/generate.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        ASR_SCORES,
        CORRECTION_SCORES,
        RATIONALES,
        SLU_SCORES,
        targets.merged_models(CONFIG),
        REPORT_FILES,
    localrule: True


# The embedded demo is the default configuration.
rule demo:
    input:
        rules.all.input,
    localrule: True


# One target per stage, by its name; `fetch` is all that comes from the network.
for stage, files in {**targets.stages(CONFIG), "report": REPORT_FILES}.items():

    rule:
        name:
            stage
        input:
            files,
        localrule: True
