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
include: "rules/report.smk"


localrules:
    all,
    demo,
    fetch,
    corpora,
    asr,
    evaluate,
    report,


rule all:
    default_target: True
    input:
        run_scores(),
        REPORT_FILES,


# The embedded demo is the default configuration.
rule demo:
    input:
        rules.all.input,


# Everything that comes from the network: public audio, annotations, hub models.
rule fetch:
    input:
        fetched_files(),


rule corpora:
    input:
        run_manifests(),


rule asr:
    input:
        run_nbest(),


rule evaluate:
    input:
        run_scores(),


rule report:
    input:
        REPORT_FILES,
