# Stage beams: a word n-gram, and CTC logits decoded to lists of word sequences.

from utterflow.beams import inputs as beams_inputs

KENLM_BIN = Path(CONFIG.tools.kenlm_bin or "data/tools/kenlm")


# The source package that is fetched stays beside the programs, so that they can be built anew without network.
rule build_kenlm:
    output:
        lmplz="data/tools/kenlm/lmplz",
        build_binary="data/tools/kenlm/build_binary",
        meta="data/tools/kenlm/kenlm.meta.json",
    log:
        "results/logs/build_kenlm/kenlm.log",
    benchmark:
        "results/benchmarks/build_kenlm/kenlm.tsv"
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 2
    resources:
        mem_mb=grown(2000),
        runtime=grown(30),
    params:
        cfg={},
        code=code("build_kenlm"),
    script:
        "../workflow/scripts/build_kenlm.py"


rule train_ngram:
    input:
        texts=lambda wildcards: CONFIG.ngrams[wildcards.ngram].texts,
        lmplz=str(KENLM_BIN / "lmplz"),
        build_binary=str(KENLM_BIN / "build_binary"),
    output:
        arpa="results/ngrams/{ngram}/lm.arpa",
        binary="results/ngrams/{ngram}/lm.binary",
        meta="results/ngrams/{ngram}/lm.meta.json",
    log:
        "results/logs/train_ngram/{ngram}.log",
    benchmark:
        "results/benchmarks/train_ngram/{ngram}.tsv"
    wildcard_constraints:
        ngram=either(name for name, item in CONFIG.ngrams.items() if item.texts),
    conda:
        "../envs/main.yaml"
    threads: sized("ngrams", "ngram", "threads")
    resources:
        mem_mb=grown(sized("ngrams", "ngram", "mem_mb")),
        runtime=grown(sized("ngrams", "ngram", "runtime")),
    params:
        cfg=cfg_of("ngrams", "ngram", exclude=["file"]),
        code=code("train_ngram"),
    script:
        "../workflow/scripts/train_ngram.py"


rule dump_beams:
    input:
        trials=lambda wildcards: beams_inputs.trials_file(CONFIG, **wildcards),
        logits=lambda wildcards: beams_inputs.logits_file(CONFIG, **wildcards),
        tokens=lambda wildcards: CONFIG.beams[wildcards.beams].tokens,
        lexicon=lambda wildcards: beams_inputs.lexicon_files(CONFIG, wildcards.beams),
        ngram=lambda wildcards: beams_inputs.ngram_files(CONFIG, wildcards.beams),
        arpa=lambda wildcards: beams_inputs.word_files(CONFIG, wildcards.beams),
    output:
        beams="results/beams/{beams}/{partition}/shards/{shard}-of-{shards}.jsonl",
        rejected="results/beams/{beams}/{partition}/shards/{shard}-of-{shards}.rejected.jsonl",
        meta="results/beams/{beams}/{partition}/shards/{shard}-of-{shards}.meta.json",
    log:
        "results/logs/dump_beams/{beams}/{partition}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/dump_beams/{beams}/{partition}/{shard}-of-{shards}.tsv"
    conda:
        "../envs/main.yaml"
    threads: sized("beams", "beams", "threads")
    resources:
        mem_mb=grown(sized("beams", "beams", "mem_mb")),
        runtime=grown(sized("beams", "beams", "runtime")),
    params:
        cfg=cfg_of("beams", "beams"),
        code=code("dump_beams"),
    script:
        "../workflow/scripts/dump_beams.py"


rule gather_beams:
    input:
        trials=lambda wildcards: [
            f"{path}.trials.jsonl" for path in beams_inputs.logits_shards(CONFIG, **wildcards)
        ],
        shards=lambda wildcards: [
            f"{path}.jsonl" for path in beams_inputs.beams_shards(CONFIG, **wildcards)
        ],
        rejected_shards=lambda wildcards: [
            f"{path}.rejected.jsonl" for path in beams_inputs.beams_shards(CONFIG, **wildcards)
        ],
    output:
        beams="results/beams/{beams}/{partition}/beams.jsonl",
        rejected="results/beams/{beams}/{partition}/beams.rejected.jsonl",
        meta="results/beams/{beams}/{partition}/beams.meta.json",
    log:
        "results/logs/gather_beams/{beams}/{partition}.log",
    benchmark:
        "results/benchmarks/gather_beams/{beams}/{partition}.tsv"
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        cfg=lambda wildcards: CONFIG.beams[wildcards.beams].model_dump(
            mode="json", include={"max_samples", "trial_indices"}
        ),
        code=code("gather_beams"),
    script:
        "../workflow/scripts/gather_beams.py"
