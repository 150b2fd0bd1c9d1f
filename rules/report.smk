# Stage report: what `snakemake --report` shows, and one summary table over all runs.

REPORT_FILES = [
    "results/report/asr_summary.tsv",
    "results/report/asr_summary.html",
    "results/report/asr_wer.svg",
    "results/report/asr_diversity.svg",
    "results/report/asr_throughput.svg",
]


rule summarize_asr:
    input:
        metrics=run_scores(),
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
        metrics=run_scores(),
        nbest_meta=[path.replace(".jsonl", ".meta.json") for path in run_nbest()],
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
