"""Rule `plot_training`: loss curves of all trainings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.report.training import plot_training


def main(
    histories: Sequence[str], metrics: Sequence[str], loss: str, meta: str, cfg: dict[str, Any], code: str
) -> None:
    names = cfg["trainings"]
    plot_training(
        dict(zip(names, map(Path, histories), strict=True)),
        dict(zip(names, map(Path, metrics), strict=True)),
        loss=Path(loss),
        meta=Path(meta),
        cfg=cfg,
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.histories,
            snakemake.input.metrics,
            snakemake.output.loss,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
