"""Rules `finetune` and `finetune_full`: train an adapter or a whole model on SFT rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.finetune.job import Outputs, finetune
from utterflow.jobs import job_log


def main(
    name: str,
    train: str,
    validation: str,
    weights: Sequence[str],
    history: str,
    metrics: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    threads: int,
) -> None:
    finetune(
        name=name,
        train=Path(train),
        validation=Path(validation),
        cfg=cfg,
        code=code,
        state=Path("results/.state"),
        threads=threads,
        outputs=Outputs(
            weights=[Path(path) for path in weights],
            history=Path(history),
            metrics=Path(metrics),
            rejected=Path(rejected),
            meta=Path(meta),
        ),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.wildcards.training,
            snakemake.input.train,
            snakemake.input.validation,
            snakemake.output.weights,
            snakemake.output.history,
            snakemake.output.metrics,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.threads,
        )
