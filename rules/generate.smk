# Stage generate: answers of language models, as they are or as trained; one job per shard, then one file.

from utterflow.generate import inputs as generate_inputs


rule generate:
    input:
        sft=lambda wildcards: generate_inputs.rows_file(CONFIG, wildcards.prediction),
        model=lambda wildcards: generate_inputs.pretrained_files(
            CONFIG, CONFIG.predictions[wildcards.prediction]
        ),
        trained=lambda wildcards: generate_inputs.trained_files(
            CONFIG, CONFIG.predictions[wildcards.prediction]
        ),
        texts=lambda wildcards: generate_inputs.text_files(
            CONFIG, CONFIG.predictions[wildcards.prediction]
        ),
    output:
        predictions="results/generate/{prediction}/shards/{shard}-of-{shards}.jsonl",
        rejected="results/generate/{prediction}/shards/{shard}-of-{shards}.rejected.jsonl",
        meta="results/generate/{prediction}/shards/{shard}-of-{shards}.meta.json",
    log:
        "results/logs/generate/{prediction}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/generate/{prediction}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        prediction=on_gpu("predictions", False),
    conda:
        "../envs/main.yaml"
    threads: sized("predictions", "prediction", "threads")
    resources:
        mem_mb=grown(sized("predictions", "prediction", "mem_mb")),
        runtime=grown(sized("predictions", "prediction", "runtime")),
        # Where a program lies decides no result, so it stands here: another place reruns nothing.
        vllm_python=CONFIG.tools.vllm_python,
    params:
        cfg=lambda wildcards: generate_inputs.settings(CONFIG, wildcards.prediction),
        code=code("generate"),
    script:
        "../workflow/scripts/generate.py"


# The same on GPUs; a rule of its own, so that a profile can send it to another partition.
use rule generate as generate_gpu with:
    wildcard_constraints:
        prediction=on_gpu("predictions", True),
    resources:
        gpu=sized("predictions", "prediction", "gpus"),
        mem_mb=grown(sized("predictions", "prediction", "mem_mb")),
        runtime=grown(sized("predictions", "prediction", "runtime")),
        vllm_python=CONFIG.tools.vllm_python,


rule gather_predictions:
    input:
        sft=lambda wildcards: generate_inputs.rows_file(CONFIG, wildcards.prediction),
        shards=lambda wildcards: generate_inputs.shard_files(CONFIG, wildcards.prediction, ".jsonl"),
        rejected_shards=lambda wildcards: generate_inputs.shard_files(
            CONFIG, wildcards.prediction, ".rejected.jsonl"
        ),
    output:
        predictions="results/generate/{prediction}/predictions.jsonl",
        rejected="results/generate/{prediction}/predictions.rejected.jsonl",
        meta="results/generate/{prediction}/predictions.meta.json",
    log:
        "results/logs/gather_predictions/{prediction}.log",
    benchmark:
        "results/benchmarks/gather_predictions/{prediction}.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        cfg={},
        code=code("gather_predictions"),
    script:
        "../workflow/scripts/gather_predictions.py"
