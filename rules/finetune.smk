# Stage finetune: one trainer for all tasks; an adapter, or a model trained in full, from mixed SFT rows.

from utterflow.finetune import inputs as finetune_inputs
from utterflow.finetune.resources import node_threads

WHOLE_MODEL = finetune_inputs.WHOLE_MODEL


rule finetune:
    input:
        train="results/finetune/{training}/data/train.jsonl",
        validation="results/finetune/{training}/data/validation.jsonl",
        model=lambda wildcards: finetune_inputs.model_files(CONFIG, wildcards.training),
        template=lambda wildcards: finetune_inputs.template_files(CONFIG, wildcards.training),
    output:
        weights=[
            "results/finetune/{training}/adapter/adapter_model.safetensors",
            "results/finetune/{training}/adapter/adapter_config.json",
        ],
        history="results/finetune/{training}/history.jsonl",
        metrics="results/finetune/{training}/metrics.json",
        rejected="results/finetune/{training}/rejected.jsonl",
        meta="results/finetune/{training}/training.meta.json",
    log:
        "results/logs/finetune/{training}.log",
    benchmark:
        "results/benchmarks/finetune/{training}.tsv"
    wildcard_constraints:
        training=either(finetune_inputs.trained(CONFIG, full=False, gpus=False)),
    conda:
        "../envs/main.yaml"
    threads: lambda wildcards: node_threads(CONFIG.trainings[wildcards.training])
    resources:
        mem_mb=grown(sized("trainings", "training", "mem_mb")),
        runtime=grown(sized("trainings", "training", "runtime")),
        nodes=slurm("nodes"),
        tasks=slurm("tasks"),
        mpi=slurm("mpi"),
    params:
        cfg=lambda wildcards: finetune_inputs.training_settings(CONFIG, wildcards.training),
        code=code("finetune"),
    script:
        "../workflow/scripts/finetune.py"


# The same on GPUs; rules of their own, so that a profile can send them to another partition.
use rule finetune as finetune_gpu with:
    wildcard_constraints:
        training=either(finetune_inputs.trained(CONFIG, full=False, gpus=True)),
    resources:
        mem_mb=grown(sized("trainings", "training", "mem_mb")),
        runtime=grown(sized("trainings", "training", "runtime")),
        nodes=slurm("nodes"),
        tasks=slurm("tasks"),
        mpi=slurm("mpi"),
        tasks_per_gpu=slurm("tasks_per_gpu"),
        gpu=slurm("gpu"),
        gres=slurm("gres"),


# The same with all weights trained.
use rule finetune as finetune_full with:
    output:
        weights=expand("results/finetune/{{training}}/model/{file}", file=WHOLE_MODEL),
        history="results/finetune/{training}/history.jsonl",
        metrics="results/finetune/{training}/metrics.json",
        rejected="results/finetune/{training}/rejected.jsonl",
        meta="results/finetune/{training}/training.meta.json",
    wildcard_constraints:
        training=either(finetune_inputs.trained(CONFIG, full=True, gpus=False)),


use rule finetune_gpu as finetune_full_gpu with:
    output:
        weights=expand("results/finetune/{{training}}/model/{file}", file=WHOLE_MODEL),
        history="results/finetune/{training}/history.jsonl",
        metrics="results/finetune/{training}/metrics.json",
        rejected="results/finetune/{training}/rejected.jsonl",
        meta="results/finetune/{training}/training.meta.json",
    wildcard_constraints:
        training=either(finetune_inputs.trained(CONFIG, full=True, gpus=True)),


rule merge_adapter:
    input:
        adapter=[
            "results/finetune/{training}/adapter/adapter_model.safetensors",
            "results/finetune/{training}/adapter/adapter_config.json",
        ],
        model=lambda wildcards: finetune_inputs.model_files(CONFIG, wildcards.training),
        template=lambda wildcards: finetune_inputs.template_files(CONFIG, wildcards.training),
    output:
        weights=expand("results/finetune/{{training}}/merged/{file}", file=WHOLE_MODEL),
        meta="results/finetune/{training}/merged.meta.json",
    log:
        "results/logs/merge_adapter/{training}.log",
    benchmark:
        "results/benchmarks/merge_adapter/{training}.tsv"
    wildcard_constraints:
        training=either(finetune_inputs.trained(CONFIG, full=False)),
    conda:
        "../envs/main.yaml"
    threads: sized("trainings", "training", "threads")
    resources:
        mem_mb=grown(sized("trainings", "training", "mem_mb")),
        runtime=grown(60),
    params:
        cfg=lambda wildcards: finetune_inputs.model_settings(CONFIG, wildcards.training),
        code=code("merge_adapter"),
    script:
        "../workflow/scripts/merge_adapter.py"
