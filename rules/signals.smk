# Stage signals: neural recordings or audio to CTC logits, one job per shard.

from utterflow.signals import inputs as signals_inputs


rule simulate_recordings:
    input:
        sentences=lambda wildcards: getattr(
            CONFIG.recordings[wildcards.recordings], wildcards.partition
        ).path,
        tokens=lambda wildcards: CONFIG.recordings[wildcards.recordings].tokens,
        lexicon=lambda wildcards: CONFIG.recordings[wildcards.recordings].lexicon,
    output:
        recordings="results/recordings/{recordings}/{partition}.hdf5",
        meta="results/recordings/{recordings}/{partition}.meta.json",
    log:
        "results/logs/simulate_recordings/{recordings}/{partition}.log",
    benchmark:
        "results/benchmarks/simulate_recordings/{recordings}/{partition}.tsv"
    wildcard_constraints:
        recordings=either(signals_inputs.simulated(CONFIG)),
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=grown(60),
    params:
        cfg=lambda wildcards: signals_inputs.simulation_settings(
            CONFIG, wildcards.recordings, wildcards.partition
        ),
        code=code("simulate_recordings"),
    script:
        "../workflow/scripts/simulate_recordings.py"


rule train_ctc:
    input:
        train=lambda wildcards: signals_inputs.recording_files(CONFIG, wildcards.encoder, "train"),
        val=lambda wildcards: signals_inputs.recording_files(CONFIG, wildcards.encoder, "val"),
        tokens=lambda wildcards: CONFIG.encoders[wildcards.encoder].tokens,
    output:
        model="results/encoders/{encoder}/{fold}/model.safetensors",
        config="results/encoders/{encoder}/{fold}/config.json",
        history="results/encoders/{encoder}/{fold}/history.jsonl",
        metrics="results/encoders/{encoder}/{fold}/metrics.json",
        meta="results/encoders/{encoder}/{fold}/model.meta.json",
    log:
        "results/logs/train_ctc/{encoder}/{fold}.log",
    benchmark:
        "results/benchmarks/train_ctc/{encoder}/{fold}.tsv"
    wildcard_constraints:
        encoder=on_gpu("encoders", False),
    conda:
        "../envs/main.yaml"
    threads: sized("encoders", "encoder", "threads")
    resources:
        mem_mb=grown(sized("encoders", "encoder", "mem_mb")),
        runtime=grown(sized("encoders", "encoder", "runtime")),
    params:
        cfg=lambda wildcards: signals_inputs.encoder_settings(
            CONFIG, wildcards.encoder, wildcards.fold
        ),
        code=code("train_ctc"),
    script:
        "../workflow/scripts/train_ctc.py"


use rule train_ctc as train_ctc_gpu with:
    wildcard_constraints:
        encoder=on_gpu("encoders", True),
    resources:
        gpu=sized("encoders", "encoder", "gpus"),
        mem_mb=grown(sized("encoders", "encoder", "mem_mb")),
        runtime=grown(sized("encoders", "encoder", "runtime")),


rule save_logits:
    input:
        recordings=lambda wildcards: signals_inputs.logits_recordings(
            CONFIG, wildcards.logits, wildcards.partition
        ),
        encoders=lambda wildcards: signals_inputs.encoder_files(
            CONFIG, wildcards.logits, wildcards.partition, "model.safetensors"
        ),
        encoder_configs=lambda wildcards: signals_inputs.encoder_files(
            CONFIG, wildcards.logits, wildcards.partition, "config.json"
        ),
        manifest=lambda wildcards: signals_inputs.logits_manifest(
            CONFIG, wildcards.logits, wildcards.partition
        ),
        model=lambda wildcards: signals_inputs.logits_model(CONFIG, wildcards.logits),
    output:
        logits="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.npz",
        trials="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.trials.jsonl",
        rejected="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.rejected.jsonl",
        meta="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.meta.json",
    log:
        "results/logs/save_logits/{logits}/{partition}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/save_logits/{logits}/{partition}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        logits=either(signals_inputs.logits_from(CONFIG, "encoder", "audio", gpus=[0])),
    conda:
        "../envs/main.yaml"
    threads: sized("logits", "logits", "threads")
    resources:
        mem_mb=grown(sized("logits", "logits", "mem_mb")),
        runtime=grown(sized("logits", "logits", "runtime")),
    params:
        cfg=lambda wildcards: signals_inputs.logits_settings(
            CONFIG, wildcards.logits, wildcards.partition
        ),
        code=code("save_logits"),
    script:
        "../workflow/scripts/save_logits.py"


use rule save_logits as save_logits_gpu with:
    wildcard_constraints:
        logits=either(signals_inputs.logits_from(CONFIG, "encoder", "audio", gpus=[1])),
    resources:
        gpu=sized("logits", "logits", "gpus"),
        mem_mb=grown(sized("logits", "logits", "mem_mb")),
        runtime=grown(sized("logits", "logits", "runtime")),


rule index_logits:
    input:
        logits=lambda wildcards: signals_inputs.stored_partition(
            CONFIG, wildcards.logits, wildcards.partition
        ).logits,
        transcripts=lambda wildcards: signals_inputs.transcript_files(
            CONFIG, wildcards.logits, wildcards.partition
        ),
    output:
        trials="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.trials.jsonl",
        rejected="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.rejected.jsonl",
        meta="results/logits/{logits}/{partition}/shards/{shard}-of-{shards}.meta.json",
    log:
        "results/logs/index_logits/{logits}/{partition}/{shard}-of-{shards}.log",
    benchmark:
        "results/benchmarks/index_logits/{logits}/{partition}/{shard}-of-{shards}.tsv"
    wildcard_constraints:
        logits=either(signals_inputs.logits_from(CONFIG, "npz")),
    localrule: True
    conda:
        "../envs/main.yaml"
    threads: 1
    resources:
        mem_mb=grown(1000),
        runtime=grown(30),
    params:
        cfg=lambda wildcards: signals_inputs.index_settings(
            CONFIG, wildcards.logits, wildcards.partition
        ),
        code=code("index_logits"),
    script:
        "../workflow/scripts/index_logits.py"
