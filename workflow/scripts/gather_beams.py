"""Rule `gather_beams`: the lists of a partition, in the order of its trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.beams.gather import gather_beams
from utterflow.jobs import job_log


def main(
    trials: Sequence[str],
    shards: Sequence[str],
    rejected_shards: Sequence[str],
    beams: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    gather_beams(
        trials=[Path(path) for path in trials],
        shards=[Path(path) for path in shards],
        rejected_shards=[Path(path) for path in rejected_shards],
        cfg=cfg,
        code=code,
        beams=Path(beams),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.trials,
            snakemake.input.shards,
            snakemake.input.rejected_shards,
            snakemake.output.beams,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
