"""Rule `build_kenlm`: KenLM's programs from its source package."""

from pathlib import Path
from typing import Any

from utterflow.jobs import job_log
from utterflow.ngram.build import build_kenlm


def main(lmplz: str, build_binary: str, meta: str, cfg: dict[str, Any], code: str, threads: int) -> None:
    build_kenlm(
        lmplz=Path(lmplz), build_binary=Path(build_binary), meta=Path(meta), cfg=cfg, code=code, threads=threads
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.output.lmplz,
            snakemake.output.build_binary,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.threads,
        )
