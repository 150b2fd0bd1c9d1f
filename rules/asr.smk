# Stage asr: n-best lists from Whisper, one job per shard, then one file.

from utterflow.models.folders import model_inputs_of


rule transcribe:
    input:
        manifest="results/corpora/{corpus}/manifest.jsonl",
        model=lambda wildcards: model_inputs_of(CONFIG.asr[wildcards.asr]),
    output:
        nbest="results/asr/{corpus}/{asr}/shards/{shard}-of-{shards}.jsonl",
        rejected="results/asr/{corpus}/{asr}/shards/{shard}-of-{shards}.rejected.jsonl",
        meta="results/asr/{corpus}/{asr}/shards/{shard}-of-{shards}.meta.json",
    log:
        "results/logs/transcribe/{corpus}/{asr}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/transcribe/{corpus}/{asr}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        asr=either(name for name, variant in CONFIG.asr.items() if not variant.gpus),
    conda:
        "../envs/main.yaml"
    threads: lambda wildcards: CONFIG.asr[wildcards.asr].threads
    resources:
        mem_mb=grown(lambda wildcards: CONFIG.asr[wildcards.asr].mem_mb),
        runtime=grown(lambda wildcards: CONFIG.asr[wildcards.asr].runtime),
    params:
        cfg=cfg_asr,
        code=code("transcribe"),
    script:
        "../workflow/scripts/transcribe.py"


# The same on a GPU; a rule of its own, so that a profile can send it to another partition.
use rule transcribe as transcribe_gpu with:
    wildcard_constraints:
        asr=either(name for name, variant in CONFIG.asr.items() if variant.gpus),
    resources:
        gpu=lambda wildcards: CONFIG.asr[wildcards.asr].gpus,
        mem_mb=grown(lambda wildcards: CONFIG.asr[wildcards.asr].mem_mb),
        runtime=grown(lambda wildcards: CONFIG.asr[wildcards.asr].runtime),


rule gather_nbest:
    input:
        manifest="results/corpora/{corpus}/manifest.jsonl",
        shards=lambda wildcards: shard_files(wildcards, ".jsonl"),
        rejected_shards=lambda wildcards: shard_files(wildcards, ".rejected.jsonl"),
    output:
        nbest="results/asr/{corpus}/{asr}/nbest.jsonl",
        rejected="results/asr/{corpus}/{asr}/nbest.rejected.jsonl",
        meta="results/asr/{corpus}/{asr}/nbest.meta.json",
    log:
        "results/logs/gather_nbest/{corpus}/{asr}.log",
    benchmark:
        "results/benchmarks/gather_nbest/{corpus}/{asr}.tsv"
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        cfg={},
        code=code("gather_nbest"),
    script:
        "../workflow/scripts/gather_nbest.py"
