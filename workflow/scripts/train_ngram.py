"""Rule `train_ngram`: a word n-gram from texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.beams import Ngram
from utterflow.jobs import job_log
from utterflow.ngram.train import train_ngram


def main(
    texts: Sequence[str],
    lmplz: str,
    build_binary: str,
    arpa: str,
    binary: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    mem_mb: int,
) -> None:
    train_ngram(
        texts=[Path(path) for path in texts],
        lmplz=Path(lmplz),
        build_binary=Path(build_binary),
        cfg=Ngram.model_validate(cfg),
        code=code,
        mem_mb=mem_mb,
        arpa=Path(arpa),
        binary=Path(binary),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.texts,
            snakemake.input.lmplz,
            snakemake.input.build_binary,
            snakemake.output.arpa,
            snakemake.output.binary,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.resources.mem_mb,
        )
