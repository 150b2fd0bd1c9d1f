"""Rule `summarize_rationales`: all rationales in one table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.report.rationales import summarize_rationales


def main(metrics: Sequence[str], table: str, page: str, meta: str, cfg: dict[str, Any], code: str) -> None:
    summarize_rationales(
        [Path(path) for path in metrics], table=Path(table), page=Path(page), meta=Path(meta), cfg=cfg, code=code
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.metrics,
            snakemake.output.table,
            snakemake.output.page,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
