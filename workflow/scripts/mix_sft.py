"""Rule `mix_sft`: training and validation rows of one training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.training import MixPart
from utterflow.jobs import job_log
from utterflow.sft.mix import Part, Side, mix_sft


def parts(side: Side, files: Sequence[str], entries: Sequence[dict[str, Any]]) -> list[Part]:
    return [Part(side, MixPart.model_validate(entry), Path(path)) for path, entry in zip(files, entries, strict=True)]


def main(
    train_files: Sequence[str],
    validation_files: Sequence[str],
    train: str,
    validation: str,
    stats: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
) -> None:
    mix_sft(
        [*parts("train", train_files, cfg["train"]), *parts("validation", validation_files, cfg["validation"])],
        validation_share=cfg["validation_share"],
        split_by=cfg["split_by"],
        seed=cfg["seed"],
        train=Path(train),
        validation=Path(validation),
        stats=Path(stats),
        rejected=Path(rejected),
        meta=Path(meta),
        cfg=cfg,
        code=code,
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.train,
            snakemake.input.validation,
            snakemake.output.train,
            snakemake.output.validation,
            snakemake.output.stats,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
