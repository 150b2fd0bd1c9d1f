"""Rule `generate_rationale`: rationales of one shard, for lists of one length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utterflow.gather import Shard
from utterflow.jobs import job_log
from utterflow.rationale.backends import machine_of
from utterflow.rationale.inputs import PLACEMENT
from utterflow.rationale.run import generate_rationale
from utterflow.rationale.settings import settings_of


def main(
    lists: str,
    rationales: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    k: int,
    shard: Shard,
    threads: int,
    gpus: int,
    placed: Mapping[str, Any],
) -> None:
    generate_rationale(
        lists=Path(lists),
        k=k,
        shard=shard,
        settings=settings_of(cfg, placed),
        code=code,
        state=Path("results/.state"),
        machine=machine_of(placed, threads, gpus),
        rationales=Path(rationales),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.lists,
            snakemake.output.rationales,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            int(snakemake.wildcards.k),
            Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
            snakemake.threads,
            int(snakemake.resources.get("gpu", 0)),
            {name: snakemake.resources.get(name, "") for name in PLACEMENT},
        )
