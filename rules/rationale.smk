# Stage rationale: why labels fit what was heard; one job per list length and shard, then one file per list length.

from utterflow.rationale import inputs as rationale_inputs


rule generate_rationale:
    input:
        lists=lambda wildcards: rationale_inputs.lists_file(CONFIG, wildcards.rationale),
        labels=lambda wildcards: CONFIG.rationales[wildcards.rationale].labels,
        texts=lambda wildcards: rationale_inputs.text_files(CONFIG, wildcards.rationale),
        model=lambda wildcards: rationale_inputs.model_files(CONFIG, wildcards.rationale),
    output:
        rationales="results/rationale/{rationale}/k{k}/shards/{shard}-of-{shards}.jsonl",
        rejected="results/rationale/{rationale}/k{k}/shards/{shard}-of-{shards}.rejected.jsonl",
        meta="results/rationale/{rationale}/k{k}/shards/{shard}-of-{shards}.meta.json",
    log:
        "results/logs/generate_rationale/{rationale}/k{k}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/generate_rationale/{rationale}/k{k}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        rationale=on_gpu("rationales", False),
    conda:
        "../envs/main.yaml"
    threads: sized("rationales", "rationale", "threads")
    resources:
        **rationale_inputs.placements(CONFIG),
        mem_mb=grown(sized("rationales", "rationale", "mem_mb")),
        runtime=grown(sized("rationales", "rationale", "runtime")),
    params:
        cfg=lambda wildcards: rationale_inputs.settings(CONFIG, wildcards.rationale),
        code=code("generate_rationale"),
    script:
        "../workflow/scripts/generate_rationale.py"


# The same on GPUs; a rule of its own, so that a profile can send it to another partition.
use rule generate_rationale as generate_rationale_gpu with:
    wildcard_constraints:
        rationale=on_gpu("rationales", True),
    resources:
        **rationale_inputs.placements(CONFIG),
        gpu=sized("rationales", "rationale", "gpus"),
        mem_mb=grown(sized("rationales", "rationale", "mem_mb")),
        runtime=grown(sized("rationales", "rationale", "runtime")),


rule gather_rationales:
    input:
        lists=lambda wildcards: rationale_inputs.lists_file(CONFIG, wildcards.rationale),
        shards=lambda wildcards: rationale_inputs.shard_files(
            CONFIG, wildcards.rationale, wildcards.k, ".jsonl"
        ),
        rejected_shards=lambda wildcards: rationale_inputs.shard_files(
            CONFIG, wildcards.rationale, wildcards.k, ".rejected.jsonl"
        ),
    output:
        rationales="results/rationale/{rationale}/k{k}/rationale.jsonl",
        rejected="results/rationale/{rationale}/k{k}/rationale.rejected.jsonl",
        metrics="results/rationale/{rationale}/k{k}/rationale.metrics.json",
        meta="results/rationale/{rationale}/k{k}/rationale.meta.json",
    log:
        "results/logs/gather_rationales/{rationale}/k{k}.log",
    benchmark:
        "results/benchmarks/gather_rationales/{rationale}/k{k}.tsv"
    wildcard_constraints:
        rationale=either(CONFIG.rationales),
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        cfg=lambda wildcards: rationale_inputs.gather_settings(CONFIG, wildcards.rationale),
        code=code("gather_rationales"),
    script:
        "../workflow/scripts/gather_rationales.py"


rule summarize_rationales:
    input:
        metrics=rationale_inputs.metrics_files(CONFIG),
    output:
        table="results/report/rationales.tsv",
        page=report(
            "results/report/rationales.html",
            caption="../workflow/report/rationales.rst",
            category="Spoken language understanding",
            labels={"what": "Summary over rationales"},
        ),
        meta="results/report/rationales.meta.json",
    log:
        "results/logs/summarize_rationales.log",
    benchmark:
        "results/benchmarks/summarize_rationales.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
        runtime=grown(10),
    params:
        cfg={"name": CONFIG.name, "title": CONFIG.title},
        code=code("summarize_rationales"),
    script:
        "../workflow/scripts/summarize_rationales.py"
