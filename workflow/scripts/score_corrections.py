"""Rule `score_corrections`: corrected transcripts beside what they were made from."""

from pathlib import Path
from typing import Any

from utterflow.config.prediction import Correction
from utterflow.config.scoring import Scoring
from utterflow.corrector.score import score_corrections
from utterflow.jobs import job_log


def main(
    predictions: str,
    candidates: str,
    earlier: dict[str, str],
    metrics: str,
    table: str,
    rows: str,
    rejected: str,
    meta: str,
    correction: str,
    scoring: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    score_corrections(
        Path(predictions),
        Path(candidates),
        earlier={stage: Path(side) for stage, side in earlier.items()},
        metrics=Path(metrics),
        table=Path(table),
        rows=Path(rows),
        rejected=Path(rejected),
        meta=Path(meta),
        correction=correction,
        scoring=scoring,
        cfg=Correction.model_validate(cfg["correction"]),
        scoring_cfg=Scoring.model_validate(cfg["scoring"]),
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.predictions,
            snakemake.input.candidates,
            {
                "build_corrector_data": snakemake.input.candidates_meta,
                "generate": snakemake.input.predictions_meta,
            },
            snakemake.output.metrics,
            snakemake.output.table,
            snakemake.output.rows,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.wildcards.correction,
            snakemake.wildcards.scoring,
            snakemake.params.cfg,
            snakemake.params.code,
        )
