"""Rule `transcribe`: n-best lists of one shard."""

from pathlib import Path
from typing import Any

from utterflow.asr.transcribe import transcribe
from utterflow.config.asr import AsrVariant
from utterflow.gather import Shard
from utterflow.jobs import job_log
from utterflow.models.folders import model_folder_of


def main(
    manifest: str,
    nbest: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    shard: Shard,
    threads: int,
) -> None:
    variant = AsrVariant.model_validate(cfg)
    transcribe(
        manifest=Path(manifest),
        shard=shard,
        model=model_folder_of(variant),
        cfg=variant,
        code=code,
        state=Path("results/.state"),
        threads=threads,
        nbest=Path(nbest),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.manifest,
            snakemake.output.nbest,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
            snakemake.threads,
        )
