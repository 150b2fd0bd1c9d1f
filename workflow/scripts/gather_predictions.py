"""Rule `gather_predictions`: the shards of a prediction, in the dataset's order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.generate.gather import gather_predictions
from utterflow.jobs import job_log


def main(
    sft: str,
    shards: Sequence[str],
    rejected_shards: Sequence[str],
    predictions: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    gather_predictions(
        sft=Path(sft),
        shards=[Path(path) for path in shards],
        rejected_shards=[Path(path) for path in rejected_shards],
        cfg=cfg,
        code=code,
        predictions=Path(predictions),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.sft,
            snakemake.input.shards,
            snakemake.input.rejected_shards,
            snakemake.output.predictions,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
