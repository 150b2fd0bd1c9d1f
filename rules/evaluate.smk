# Stage evaluate: error rates of the n-best lists.


rule score_asr:
    input:
        nbest="results/asr/{corpus}/{asr}/nbest.jsonl",
        nbest_meta="results/asr/{corpus}/{asr}/nbest.meta.json",
        manifest_meta="results/corpora/{corpus}/manifest.meta.json",
    output:
        metrics="results/evaluate/{corpus}/{asr}/{scoring}.json",
        table="results/evaluate/{corpus}/{asr}/{scoring}.tsv",
        rows="results/evaluate/{corpus}/{asr}/{scoring}.rows.jsonl",
        rejected="results/evaluate/{corpus}/{asr}/{scoring}.rejected.jsonl",
        meta="results/evaluate/{corpus}/{asr}/{scoring}.meta.json",
    log:
        "results/logs/score_asr/{corpus}/{asr}/{scoring}.log",
    benchmark:
        "results/benchmarks/score_asr/{corpus}/{asr}/{scoring}.tsv"
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1500),
        runtime=grown(60),
    params:
        cfg=cfg_scoring,
        code=code("score_asr"),
    script:
        "../workflow/scripts/score_asr.py"
