"""Rule `score_slu`: scenario, action and entities that a model understood, under SLURP's metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.prediction import Understanding
from utterflow.jobs import job_log
from utterflow.slu.score import score_slu


def main(
    predictions: str,
    slu_items: str,
    labels: Sequence[str],
    earlier: dict[str, str],
    metrics: str,
    understood: str,
    labels_only: str,
    rows: str,
    rejected: str,
    table: str,
    meta: str,
    understanding: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    score_slu(
        Path(predictions),
        Path(slu_items),
        [Path(path) for path in labels],
        earlier={stage: Path(side) for stage, side in earlier.items()},
        metrics=Path(metrics),
        understood=Path(understood),
        labels_only=Path(labels_only),
        rows=Path(rows),
        rejected=Path(rejected),
        table=Path(table),
        meta=Path(meta),
        understanding=understanding,
        cfg=Understanding.model_validate(cfg),
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.predictions,
            snakemake.input.slu_items,
            snakemake.input.labels,
            {
                "build_slu_data": snakemake.input.items_meta,
                "generate": snakemake.input.predictions_meta,
            },
            snakemake.output.metrics,
            snakemake.output.understood,
            snakemake.output.labels_only,
            snakemake.output.rows,
            snakemake.output.rejected,
            snakemake.output.table,
            snakemake.output.meta,
            snakemake.wildcards.understanding,
            snakemake.params.cfg,
            snakemake.params.code,
        )
