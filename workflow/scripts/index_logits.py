"""Rule `index_logits`: the trials of one shard of stored logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.gather import Shard
from utterflow.jobs import job_log
from utterflow.signals.index import index_logits


def main(
    logits: str,
    transcripts: Sequence[str],
    trials: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    partition: str,
    shard: Shard,
) -> None:
    index_logits(
        logits=Path(logits),
        transcripts=Path(transcripts[0]) if transcripts else None,
        partition=partition,
        shard=shard,
        cfg=cfg,
        code=code,
        trials=Path(trials),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.logits,
            snakemake.input.transcripts,
            snakemake.output.trials,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.wildcards.partition,
            Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
        )
