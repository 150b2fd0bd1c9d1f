"""Rule `fetch_model`: one commit of a hub model."""

from pathlib import Path
from typing import Any

from utterflow.fetch import fetch_model
from utterflow.jobs import job_log
from utterflow.provenance import Stopwatch, write_meta


def main(listing: str, meta: str, cfg: dict[str, Any], code: str) -> None:
    watch = Stopwatch()
    fetch_model(cfg["model"], cfg["revision"], Path(listing))
    write_meta(
        Path(meta),
        rule="fetch_model",
        cfg=cfg,
        code=code,
        inputs=[],
        outputs={"model_files/1": Path(listing)},
        seconds=watch.seconds(),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.output.listing,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
