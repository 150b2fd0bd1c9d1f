"""Rule `unpack_archive`: the contents of one downloaded archive."""

from pathlib import Path
from typing import Any

from utterflow.fetch import unpack_archive
from utterflow.jobs import job_log
from utterflow.provenance import Stopwatch, write_meta


def main(archive: str, listing: str, meta: str, cfg: dict[str, Any], code: str) -> None:
    watch = Stopwatch()
    unpack_archive(Path(archive), Path(cfg["unpack_to"]), Path(listing))
    write_meta(
        Path(meta),
        rule="unpack_archive",
        cfg=cfg,
        code=code,
        inputs=[Path(archive)],
        outputs={"contents/1": Path(listing)},
        seconds=watch.seconds(),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.archive,
            snakemake.output.listing,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
        )
