# Stage sft: training and validation rows of a training, mixed from data sets of any task.

from utterflow.sft.inputs import mixed_files


rule mix_sft:
    input:
        train=lambda wildcards: mixed_files(CONFIG.trainings[wildcards.training].train),
        validation=lambda wildcards: mixed_files(CONFIG.trainings[wildcards.training].validation),
    output:
        train="results/finetune/{training}/data/train.jsonl",
        validation="results/finetune/{training}/data/validation.jsonl",
        stats="results/finetune/{training}/data/stats.json",
        rejected="results/finetune/{training}/data/rejected.jsonl",
        meta="results/finetune/{training}/data/data.meta.json",
    log:
        "results/logs/mix_sft/{training}.log",
    benchmark:
        "results/benchmarks/mix_sft/{training}.tsv"
    wildcard_constraints:
        training=either(CONFIG.trainings),
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        cfg=lambda wildcards: CONFIG.trainings[wildcards.training].model_dump(
            mode="json",
            include={"train", "validation", "validation_share", "split_by", "seed"},
        ),
        code=code("mix_sft"),
    script:
        "../workflow/scripts/mix_sft.py"
