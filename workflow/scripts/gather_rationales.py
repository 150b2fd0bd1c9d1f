"""Rule `gather_rationales`: the shards of a rationale, in the order of the lists, and their metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.rationale.gather import gather_rationales


def main(
    lists: str,
    shards: Sequence[str],
    rejected_shards: Sequence[str],
    rationales: str,
    rejected: str,
    metrics: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    name: str,
    k: int,
) -> None:
    gather_rationales(
        lists=Path(lists),
        where_from=cfg["where_from"],
        limit=cfg["limit"],
        shards=[Path(path) for path in shards],
        rejected_shards=[Path(path) for path in rejected_shards],
        name=name,
        k=k,
        cfg=cfg,
        code=code,
        rationales=Path(rationales),
        rejected=Path(rejected),
        metrics=Path(metrics),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.lists,
            snakemake.input.shards,
            snakemake.input.rejected_shards,
            snakemake.output.rationales,
            snakemake.output.rejected,
            snakemake.output.metrics,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.wildcards.rationale,
            int(snakemake.wildcards.k),
        )
