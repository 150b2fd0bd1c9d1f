"""Rule `build_slu_data`: one split of a data set of spoken commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.datasets import SluDataset
from utterflow.jobs import job_log
from utterflow.slu.build import Split, build_slu_data


def main(
    sources: Sequence[str],
    rows: str,
    items: str,
    rejected: str,
    stats: str,
    meta: str,
    split: Split,
    cfg: dict[str, Any],
    code: str,
) -> None:
    build_slu_data(
        [Path(path) for path in sources],
        split=split,
        cfg=SluDataset.model_validate(cfg),
        rows=Path(rows),
        items=Path(items),
        rejected=Path(rejected),
        stats=Path(stats),
        meta=Path(meta),
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.sources,
            snakemake.output.rows,
            snakemake.output.slu_items,
            snakemake.output.rejected,
            snakemake.output.stats,
            snakemake.output.meta,
            snakemake.wildcards.split,
            snakemake.params.cfg,
            snakemake.params.code,
        )
