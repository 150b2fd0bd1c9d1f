"""Rule `fetch_file`: one public file."""

from pathlib import Path
from typing import Any

from utterflow.fetch import fetch_file
from utterflow.jobs import job_log
from utterflow.provenance import Stopwatch, write_meta


def main(file: str, meta: str, cfg: dict[str, Any], code: str) -> None:
    watch = Stopwatch()
    fetch_file(cfg["url"], Path(file), cfg["sha256"], cfg["md5"])
    write_meta(
        Path(meta),
        rule="fetch_file",
        cfg=cfg,
        code=code,
        inputs=[],
        outputs={"download/1": Path(file)},
        seconds=watch.seconds(),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(snakemake.output.file, snakemake.output.meta, snakemake.params.cfg, snakemake.params.code)
