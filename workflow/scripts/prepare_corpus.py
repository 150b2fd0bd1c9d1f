"""Rule `prepare_corpus`: the manifest of one corpus."""

from pathlib import Path
from typing import Any

from utterflow.corpora.prepare import prepare_corpus
from utterflow.jobs import job_log


def main(manifest: str, rejected: str, meta: str, cfg: dict[str, Any], code: str, threads: int, failed: str) -> None:
    prepare_corpus(
        cfg,
        manifest=Path(manifest),
        rejected=Path(rejected),
        meta=Path(meta),
        code=code,
        threads=threads,
        failed=Path(failed),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.output.manifest,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.threads,
            f"{snakemake.log[0]}.rejected.jsonl",
        )
