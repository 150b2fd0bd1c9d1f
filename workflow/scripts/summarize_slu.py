"""Rule `summarize_slu`: one table and one figure over all understandings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.report.slu import summarize_slu


def main(metrics: Sequence[str], table: str, page: str, scores: str, meta: str, cfg: dict[str, Any], code: str) -> None:
    summarize_slu(
        [Path(path) for path in metrics],
        table=Path(table),
        page=Path(page),
        scores=Path(scores),
        meta=Path(meta),
        cfg=cfg,
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.metrics,
            snakemake.output.table,
            snakemake.output.page,
            snakemake.output.scores,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
