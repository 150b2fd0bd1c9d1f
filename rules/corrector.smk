# Stage corrector: n-best lists as training and test records, and scores of the corrected transcripts.

from utterflow.corrector import inputs as corrector_inputs


rule build_corrector_data:
    input:
        sources=lambda wildcards: corrector_inputs.candidate_files(
            CONFIG, wildcards.dataset, wildcards.split
        ),
        texts=lambda wildcards: corrector_inputs.text_files(CONFIG, wildcards.dataset),
    output:
        rows="results/sft/{dataset}/{split}.jsonl",
        candidates="results/sft/{dataset}/{split}.candidates.jsonl",
        alpaca="results/sft/{dataset}/{split}.alpaca.jsonl",
        rejected="results/sft/{dataset}/{split}.rejected.jsonl",
        stats="results/sft/{dataset}/{split}.stats.json",
        meta="results/sft/{dataset}/{split}.meta.json",
    log:
        "results/logs/build_corrector_data/{dataset}/{split}.log",
    benchmark:
        "results/benchmarks/build_corrector_data/{dataset}/{split}.tsv"
    wildcard_constraints:
        dataset=either(
            name for name, item in CONFIG.datasets.items() if item.builder == "corrector"
        ),
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        cfg=lambda wildcards: corrector_inputs.build_settings(
            CONFIG, wildcards.dataset, wildcards.split
        ),
        code=code("build_corrector_data"),
    script:
        "../workflow/scripts/build_corrector_data.py"


rule score_corrections:
    input:
        predictions=lambda wildcards: corrector_inputs.prediction_file(
            CONFIG, wildcards.correction, ".jsonl"
        ),
        predictions_meta=lambda wildcards: corrector_inputs.prediction_file(
            CONFIG, wildcards.correction, ".meta.json"
        ),
        candidates=lambda wildcards: corrector_inputs.predicted_split(
            CONFIG, wildcards.correction, ".candidates.jsonl"
        ),
        candidates_meta=lambda wildcards: corrector_inputs.predicted_split(
            CONFIG, wildcards.correction, ".meta.json"
        ),
    output:
        metrics="results/corrections/{correction}/{scoring}.json",
        table="results/corrections/{correction}/{scoring}.tsv",
        rows="results/corrections/{correction}/{scoring}.rows.jsonl",
        rejected="results/corrections/{correction}/{scoring}.rejected.jsonl",
        meta="results/corrections/{correction}/{scoring}.meta.json",
    log:
        "results/logs/score_corrections/{correction}/{scoring}.log",
    benchmark:
        "results/benchmarks/score_corrections/{correction}/{scoring}.tsv"
    wildcard_constraints:
        correction=either(CONFIG.corrections),
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1500),
        runtime=grown(60),
    params:
        cfg=lambda wildcards: {
            "correction": cfg_of("corrections", "correction")(wildcards),
            "scoring": cfg_scoring(wildcards),
        },
        code=code("score_corrections"),
    script:
        "../workflow/scripts/score_corrections.py"


rule summarize_corrections:
    input:
        metrics=CORRECTION_SCORES,
    output:
        table="results/report/corrections.tsv",
        page=report(
            "results/report/corrections.html",
            caption="../workflow/report/corrections.rst",
            category="Corrections",
            labels={"what": "Summary over corrections"},
        ),
        wer=report(
            "results/report/corrections_wer.svg",
            caption="../workflow/report/corrections_wer.rst",
            category="Corrections",
            labels={"what": "WER of corrections"},
        ),
        meta="results/report/corrections.meta.json",
    log:
        "results/logs/summarize_corrections.log",
    benchmark:
        "results/benchmarks/summarize_corrections.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(800),
        runtime=grown(10),
    params:
        cfg={"name": CONFIG.name, "title": CONFIG.title},
        code=code("summarize_corrections"),
    script:
        "../workflow/scripts/summarize_corrections.py"
