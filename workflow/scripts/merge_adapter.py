"""Rule `merge_adapter`: a pretrained model with its adapter put into the weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.finetune.merge import merge_adapter
from utterflow.jobs import job_log


def main(adapter: Sequence[str], weights: Sequence[str], meta: str, cfg: dict[str, Any], code: str) -> None:
    merge_adapter(
        [Path(path) for path in adapter],
        weights=[Path(path) for path in weights],
        meta=Path(meta),
        cfg=cfg,
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.adapter,
            snakemake.output.weights,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
