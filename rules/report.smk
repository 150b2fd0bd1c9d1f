# Stage report: what `snakemake --report` shows, and one summary table over all runs.

ASR_REPORT = [
    "results/report/asr_summary.tsv",
    "results/report/asr_summary.html",
    "results/report/asr_wer.svg",
    "results/report/asr_diversity.svg",
    "results/report/asr_throughput.svg",
]
CORRECTIONS_REPORT = [
    "results/report/corrections.tsv",
    "results/report/corrections.html",
    "results/report/corrections_wer.svg",
]
RATIONALES_REPORT = ["results/report/rationales.tsv", "results/report/rationales.html"]
SLU_REPORT = ["results/report/slu.tsv", "results/report/slu.html", "results/report/slu.svg"]
TRAINING_REPORT = ["results/report/training_loss.svg"]
REPORT_FILES = [
    *(ASR_REPORT if ASR_SCORES else []),
    *(CORRECTIONS_REPORT if CORRECTION_SCORES else []),
    *(RATIONALES_REPORT if RATIONALES else []),
    *(SLU_REPORT if SLU_SCORES else []),
    *(TRAINING_REPORT if TRAININGS else []),
]


rule summarize_asr:
    input:
        metrics=ASR_SCORES,
    output:
        table="results/report/asr_summary.tsv",
        page=report(
            "results/report/asr_summary.html",
            caption="../workflow/report/asr_summary.rst",
            category="Speech recognition",
            labels={"what": "Summary over runs"},
        ),
        meta="results/report/asr_summary.meta.json",
    log:
        "results/logs/summarize_asr.log",
    benchmark:
        "results/benchmarks/summarize_asr.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(500),
        runtime=grown(10),
    params:
        cfg={"name": CONFIG.name, "title": CONFIG.title},
        code=code("summarize_asr"),
    script:
        "../workflow/scripts/summarize_asr.py"


rule plot_asr:
    input:
        metrics=ASR_SCORES,
        nbest_meta=[path.replace(".jsonl", ".meta.json") for path in NBEST],
    output:
        wer=report(
            "results/report/asr_wer.svg",
            caption="../workflow/report/asr_wer.rst",
            category="Speech recognition",
            labels={"what": "WER by group"},
        ),
        diversity=report(
            "results/report/asr_diversity.svg",
            caption="../workflow/report/asr_diversity.rst",
            category="Speech recognition",
            labels={"what": "n-best diversity"},
        ),
        throughput=report(
            "results/report/asr_throughput.svg",
            caption="../workflow/report/asr_throughput.rst",
            category="Speech recognition",
            labels={"what": "Throughput"},
        ),
        meta="results/report/asr_figures.meta.json",
    log:
        "results/logs/plot_asr.log",
    benchmark:
        "results/benchmarks/plot_asr.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(800),
        runtime=grown(10),
    params:
        cfg={},
        code=code("plot_asr"),
    script:
        "../workflow/scripts/plot_asr.py"


rule plot_training:
    input:
        histories=[f"results/finetune/{name}/history.jsonl" for name in TRAININGS],
        metrics=[f"results/finetune/{name}/metrics.json" for name in TRAININGS],
    output:
        loss=report(
            "results/report/training_loss.svg",
            caption="../workflow/report/training_loss.rst",
            category="Trainings",
            labels={"what": "Loss of the trainings"},
        ),
        meta="results/report/training_loss.meta.json",
    log:
        "results/logs/plot_training.log",
    benchmark:
        "results/benchmarks/plot_training.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(800),
        runtime=grown(10),
    params:
        cfg={"trainings": TRAININGS},
        code=code("plot_training"),
    script:
        "../workflow/scripts/plot_training.py"
