# Stage corpora: public files, archives and models from the network, and a manifest for each corpus.

import re

from utterflow.corpora import listing_of, rule_inputs

GIVEN_FILES = targets.given_files(CONFIG)

DOWNLOAD = either(re.escape(path.removeprefix("data/")) for path in CONFIG.downloads)
ARCHIVE = either(
    re.escape(path.removeprefix("data/"))
    for path, item in CONFIG.downloads.items()
    if item.unpack_to
)


# A file that is there and has the right checksum is kept (`update`), also when the code has changed.
rule fetch_file:
    output:
        file=update("data/{download}"),
        meta="data/{download}.meta.json",
    log:
        "results/logs/fetch_file/{download}.log",
    benchmark:
        "results/benchmarks/fetch_file/{download}.tsv"
    wildcard_constraints:
        download=DOWNLOAD,
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
        runtime=grown(240),
    params:
        cfg=lambda wildcards: CONFIG.downloads[f"data/{wildcards.download}"].model_dump(
            mode="json", exclude={"unpack_to"}
        ),
        code=code("fetch_file"),
    script:
        "../workflow/scripts/fetch_file.py"


rule unpack_archive:
    input:
        archive="data/{download}",
    output:
        listing=listing_of("data/{download}"),
        meta="data/{download}.contents.meta.json",
    log:
        "results/logs/unpack_archive/{download}.log",
    benchmark:
        "results/benchmarks/unpack_archive/{download}.tsv"
    wildcard_constraints:
        download=ARCHIVE,
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
        runtime=grown(120),
    params:
        cfg=lambda wildcards: CONFIG.downloads[f"data/{wildcards.download}"].model_dump(
            mode="json", include={"unpack_to"}
        ),
        code=code("unpack_archive"),
    script:
        "../workflow/scripts/unpack_archive.py"


# `{model}` is a hub name with -- for the slash, `{revision}` a commit.
rule fetch_model:
    output:
        listing="data/models/{model}/{revision}.files.json",
        meta="data/models/{model}/{revision}.meta.json",
    log:
        "results/logs/fetch_model/{model}/{revision}.log",
    benchmark:
        "results/benchmarks/fetch_model/{model}/{revision}.tsv"
    wildcard_constraints:
        model="[^/]+--[^/]+",
        revision="[^/]+",
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=grown(240),
    params:
        cfg=lambda wildcards: {
            "model": wildcards.model.replace("--", "/", 1),
            "revision": wildcards.revision,
        },
        code=code("fetch_model"),
    script:
        "../workflow/scripts/fetch_model.py"


# When too many rows are rejected they stay in <log>.rejected.jsonl: Snakemake deletes a failed job's outputs.
rule prepare_corpus:
    input:
        lambda wildcards: rule_inputs(CONFIG.corpora[wildcards.corpus], CONFIG.downloads),
    output:
        manifest="results/corpora/{corpus}/manifest.jsonl",
        rejected="results/corpora/{corpus}/manifest.rejected.jsonl",
        meta="results/corpora/{corpus}/manifest.meta.json",
    log:
        "results/logs/prepare_corpus/{corpus}.log",
    benchmark:
        "results/benchmarks/prepare_corpus/{corpus}.tsv"
    conda:
        "../envs/main.yaml"
    threads: lambda wildcards: CONFIG.corpora[wildcards.corpus].threads
    resources:
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        cfg=cfg_corpus,
        code=code("prepare_corpus"),
    script:
        "../workflow/scripts/prepare_corpus.py"


# A file that the user has to provide is not there: dry runs show it, a run says which key names it.
rule missing_file:
    output:
        "{path}",
    log:
        "results/logs/missing_file/{path}.log",
    wildcard_constraints:
        path=either(re.escape(path) for path in GIVEN_FILES if not Path(path).exists()),
    localrule: True
    conda:
        "../envs/main.yaml"
    params:
        cfg=lambda wildcards: {"key": GIVEN_FILES[wildcards.path]},
        code=code("missing_file"),
    script:
        "../workflow/scripts/missing_file.py"
