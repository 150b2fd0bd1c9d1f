"""Rule `summarize_corrections`: one table and one figure over all corrections."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.report.corrections import summarize_corrections


def main(metrics: Sequence[str], table: str, page: str, wer: str, meta: str, cfg: dict[str, Any], code: str) -> None:
    summarize_corrections(
        [Path(path) for path in metrics],
        table=Path(table),
        page=Path(page),
        wer=Path(wer),
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
            snakemake.output.wer,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
