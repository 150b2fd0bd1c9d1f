"""Rule `build_corrector_data`: one split of a corrector data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.datasets import CorrectorDataset
from utterflow.config.language_models import LanguageModel
from utterflow.corrector.build import Split, build_corrector_data
from utterflow.jobs import job_log


def main(
    sources: Sequence[str],
    rows: str,
    candidates: str,
    alpaca: str,
    rejected: str,
    stats: str,
    meta: str,
    split: Split,
    cfg: dict[str, Any],
    code: str,
) -> None:
    build_corrector_data(
        [Path(path) for path in sources],
        split=split,
        cfg=CorrectorDataset.model_validate(cfg["dataset"]),
        tokenizer=LanguageModel.model_validate(cfg["tokenizer"]) if cfg["tokenizer"] else None,
        rows=Path(rows),
        candidates=Path(candidates),
        alpaca=Path(alpaca),
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
            snakemake.output.candidates,
            snakemake.output.alpaca,
            snakemake.output.rejected,
            snakemake.output.stats,
            snakemake.output.meta,
            snakemake.wildcards.split,
            snakemake.params.cfg,
            snakemake.params.code,
        )
