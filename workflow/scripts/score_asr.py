"""Rule `score_asr`: metrics of one run's n-best lists."""

from pathlib import Path
from typing import Any

from utterflow.config.scoring import Scoring
from utterflow.evaluate.score import score_asr
from utterflow.jobs import job_log


def main(
    nbest: str,
    metrics: str,
    table: str,
    rows: str,
    rejected: str,
    meta: str,
    corpus: str,
    asr: str,
    scoring: str,
    cfg: dict[str, Any],
    code: str,
    earlier: dict[str, str],
) -> None:
    score_asr(
        Path(nbest),
        metrics=Path(metrics),
        table=Path(table),
        rows=Path(rows),
        rejected=Path(rejected),
        meta=Path(meta),
        corpus=corpus,
        asr=asr,
        scoring=scoring,
        cfg=Scoring.model_validate(cfg),
        code=code,
        earlier={stage: Path(side) for stage, side in earlier.items()},
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.nbest,
            snakemake.output.metrics,
            snakemake.output.table,
            snakemake.output.rows,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.wildcards.corpus,
            snakemake.wildcards.asr,
            snakemake.wildcards.scoring,
            snakemake.params.cfg,
            snakemake.params.code,
            {"prepare_corpus": snakemake.input.manifest_meta, "transcribe": snakemake.input.nbest_meta},
        )
