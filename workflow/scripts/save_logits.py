"""Rule `save_logits`: CTC logits of one shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.signals import AudioLogits, EncoderLogits
from utterflow.gather import Shard
from utterflow.jobs import job_log
from utterflow.models.folders import model_folder_of
from utterflow.signals.audio import save_audio_logits
from utterflow.signals.logits import ShardFiles, save_encoder_logits


def main(
    recordings: Sequence[str],
    encoders: Sequence[str],
    encoder_configs: Sequence[str],
    manifest: Sequence[str],
    files: ShardFiles,
    cfg: dict[str, Any],
    code: str,
    partition: str,
    shard: Shard,
    threads: int,
) -> None:
    if cfg["source"] == "encoder":
        save_encoder_logits(
            recordings=[Path(path) for path in recordings],
            weights=[Path(path) for path in encoders],
            abouts=[Path(path) for path in encoder_configs],
            partition=partition,
            shard=shard,
            cfg=EncoderLogits.model_validate(cfg),
            code=code,
            threads=threads,
            files=files,
        )
    else:
        audio = AudioLogits.model_validate(cfg)
        save_audio_logits(
            manifest=Path(manifest[0]),
            folder=model_folder_of(audio),
            shard=shard,
            cfg=audio,
            code=code,
            state=Path("results/.state"),
            threads=threads,
            files=files,
        )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.recordings,
            snakemake.input.encoders,
            snakemake.input.encoder_configs,
            snakemake.input.manifest,
            ShardFiles(
                Path(snakemake.output.logits),
                Path(snakemake.output.trials),
                Path(snakemake.output.rejected),
                Path(snakemake.output.meta),
            ),
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.wildcards.partition,
            Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
            snakemake.threads,
        )
