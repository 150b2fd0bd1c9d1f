"""Rule `train_ctc`: a CTC encoder from recordings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.signals import CtcEncoder
from utterflow.jobs import job_log
from utterflow.signals.training import train_ctc


def main(
    train: Sequence[str],
    val: Sequence[str],
    tokens: str,
    model: str,
    config: str,
    history: str,
    metrics: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    fold: str,
    threads: int,
) -> None:
    train_ctc(
        train=[Path(path) for path in train],
        val=[Path(path) for path in val],
        tokens=Path(tokens),
        fold=fold,
        cfg=CtcEncoder.model_validate(cfg),
        code=code,
        state=Path("results/.state"),
        threads=threads,
        model=Path(model),
        config=Path(config),
        history=Path(history),
        metrics=Path(metrics),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.train,
            snakemake.input.val,
            snakemake.input.tokens,
            snakemake.output.model,
            snakemake.output.config,
            snakemake.output.history,
            snakemake.output.metrics,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.wildcards.fold,
            snakemake.threads,
        )
