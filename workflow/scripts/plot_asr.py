"""Rule `plot_asr`: figures over all runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.report.figures import plot_asr


def main(
    metrics: Sequence[str],
    nbest_meta: Sequence[str],
    wer: str,
    diversity: str,
    throughput: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    plot_asr(
        [Path(path) for path in metrics],
        [Path(path) for path in nbest_meta],
        wer=Path(wer),
        diversity=Path(diversity),
        throughput=Path(throughput),
        meta=Path(meta),
        cfg=cfg,
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.metrics,
            snakemake.input.nbest_meta,
            snakemake.output.wer,
            snakemake.output.diversity,
            snakemake.output.throughput,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
