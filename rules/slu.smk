# Stage slu: spoken commands as training and test records, and scores of what models understood.

from utterflow.slu import inputs as slu_inputs
from utterflow.slu import targets as slu_targets


rule build_slu_data:
    input:
        sources=lambda wildcards: slu_inputs.source_files(
            CONFIG, wildcards.dataset, wildcards.split
        ),
        texts=lambda wildcards: slu_inputs.text_files(CONFIG, wildcards.dataset),
    output:
        rows="results/sft/{dataset}/{split}.jsonl",
        slu_items="results/sft/{dataset}/{split}.items.jsonl",
        rejected="results/sft/{dataset}/{split}.rejected.jsonl",
        stats="results/sft/{dataset}/{split}.stats.json",
        meta="results/sft/{dataset}/{split}.meta.json",
    log:
        "results/logs/build_slu_data/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/build_slu_data/{dataset}/{split}.tsv"
    wildcard_constraints:
        dataset=either(name for name, item in CONFIG.datasets.items() if item.builder == "slu"),
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        cfg=lambda wildcards: slu_inputs.build_settings(CONFIG, wildcards.dataset, wildcards.split),
        code=code("build_slu_data"),
    script:
        "../workflow/scripts/build_slu_data.py"


rule score_slu:
    input:
        predictions=lambda wildcards: slu_targets.prediction_file(
            CONFIG, wildcards.understanding, ".jsonl"
        ),
        predictions_meta=lambda wildcards: slu_targets.prediction_file(
            CONFIG, wildcards.understanding, ".meta.json"
        ),
        slu_items=lambda wildcards: slu_targets.predicted_split(
            CONFIG, wildcards.understanding, ".items.jsonl"
        ),
        items_meta=lambda wildcards: slu_targets.predicted_split(
            CONFIG, wildcards.understanding, ".meta.json"
        ),
        labels=lambda wildcards: slu_targets.label_files(CONFIG, wildcards.understanding),
    output:
        metrics="results/slu/{understanding}/metrics_label_only.json",
        understood="results/slu/{understanding}/prediction.jsonl",
        labels_only="results/slu/{understanding}/prediction_labels_only.jsonl",
        rows="results/slu/{understanding}/rows.jsonl",
        rejected="results/slu/{understanding}/rejected.jsonl",
        table="results/slu/{understanding}/table.tsv",
        meta="results/slu/{understanding}/slu.meta.json",
    log:
        "results/logs/score_slu/{understanding}.log",
    benchmark:
        "results/benchmarks/score_slu/{understanding}.tsv"
    wildcard_constraints:
        understanding=either(CONFIG.understandings),
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1500),
        runtime=grown(60),
    params:
        cfg=cfg_of("understandings", "understanding"),
        code=code("score_slu"),
    script:
        "../workflow/scripts/score_slu.py"


rule summarize_slu:
    input:
        metrics=SLU_SCORES,
    output:
        table="results/report/slu.tsv",
        page=report(
            "results/report/slu.html",
            caption="../workflow/report/slu.rst",
            category="Spoken language understanding",
            labels={"what": "Summary over understandings"},
        ),
        scores=report(
            "results/report/slu.svg",
            caption="../workflow/report/slu_scores.rst",
            category="Spoken language understanding",
            labels={"what": "Intent accuracy, entity F1 and SLU-F1"},
        ),
        meta="results/report/slu.meta.json",
    log:
        "results/logs/summarize_slu.log",
    benchmark:
        "results/benchmarks/summarize_slu.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(800),
        runtime=grown(10),
    params:
        cfg={
            "name": CONFIG.name,
            "title": CONFIG.title,
            "understandings": slu_targets.described(CONFIG, targets.understandings(CONFIG)),
        },
        code=code("summarize_slu"),
    script:
        "../workflow/scripts/summarize_slu.py"
