"""Rule `simulate_recordings`: a partition of simulated neural recordings."""

from pathlib import Path
from typing import Any

from utterflow.config.signals import PARTITIONS
from utterflow.jobs import job_log
from utterflow.signals.simulate import Array, simulate_recordings


def main(
    sentences: str,
    tokens: str,
    lexicon: str,
    recordings: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    partition: str,
) -> None:
    simulate_recordings(
        sentences=Path(sentences),
        tokens=Path(tokens),
        lexicon=Path(lexicon),
        partition=partition,
        block=PARTITIONS.index(partition),
        limit=cfg[partition]["limit"],
        array=Array(**{key: cfg[key] for key in ("channels", "sessions", "noise", "drift", "seed")}),
        cfg=cfg,
        code=code,
        recordings=Path(recordings),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.sentences,
            snakemake.input.tokens,
            snakemake.input.lexicon,
            snakemake.output.recordings,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            snakemake.wildcards.partition,
        )
