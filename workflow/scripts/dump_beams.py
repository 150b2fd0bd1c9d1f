"""Rule `dump_beams`: lists of word sequences of one shard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.beams.dump import DecoderFiles, dump_beams
from utterflow.config.beams import Beams
from utterflow.gather import Shard
from utterflow.jobs import job_log


def main(
    trials: str,
    tokens: str,
    lexicon: Sequence[str],
    ngram: Sequence[str],
    arpa: Sequence[str],
    beams: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    shard: Shard,
    threads: int,
) -> None:
    """`lexicon`, `ngram` and `arpa` hold one path or none."""
    dump_beams(
        trials=Path(trials),
        shard=shard,
        files=DecoderFiles(Path(tokens), *(Path(paths[0]) if paths else None for paths in (lexicon, ngram, arpa))),
        cfg=Beams.model_validate(cfg),
        code=code,
        state=Path("results/.state"),
        threads=threads,
        beams=Path(beams),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.trials,
            snakemake.input.tokens,
            snakemake.input.lexicon,
            snakemake.input.ngram,
            snakemake.input.arpa,
            snakemake.output.beams,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
            snakemake.threads,
        )
