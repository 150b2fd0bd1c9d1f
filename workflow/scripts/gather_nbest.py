"""Rule `gather_nbest`: the shards of a corpus, in the manifest's order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.asr.gather import gather_nbest
from utterflow.jobs import job_log


def main(
    manifest: str,
    shards: Sequence[str],
    rejected_shards: Sequence[str],
    nbest: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    gather_nbest(
        manifest=Path(manifest),
        shards=[Path(path) for path in shards],
        rejected_shards=[Path(path) for path in rejected_shards],
        cfg=cfg,
        code=code,
        nbest=Path(nbest),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.manifest,
            snakemake.input.shards,
            snakemake.input.rejected_shards,
            snakemake.output.nbest,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
