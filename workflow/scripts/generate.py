"""Rule `generate`: a model's answers to one shard of a dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utterflow.config.language_models import LanguageModel
from utterflow.config.prediction import Prediction
from utterflow.gather import Shard
from utterflow.generate.inputs import sources_of
from utterflow.generate.predict import Machine, generate
from utterflow.jobs import job_log


def main(
    sft: str,
    trained: Sequence[str],
    predictions: str,
    rejected: str,
    meta: str,
    cfg: dict[str, Any],
    code: str,
    shard: Shard,
    machine: Machine,
) -> None:
    model = LanguageModel.model_validate(cfg["model"])
    generate(
        sft=Path(sft),
        shard=shard,
        sources=sources_of(model, [Path(path) for path in trained]),
        cfg=Prediction.model_validate(cfg["prediction"]),
        model_cfg=model,
        code=code,
        state=Path("results/.state"),
        machine=machine,
        predictions=Path(predictions),
        rejected=Path(rejected),
        meta=Path(meta),
    )


if __name__ == "__main__":
    with job_log(snakemake.log[0]):
        main(
            snakemake.input.sft,
            snakemake.input.trained,
            snakemake.output.predictions,
            snakemake.output.rejected,
            snakemake.output.meta,
            snakemake.params.cfg,
            snakemake.params.code,
            Shard(int(snakemake.wildcards.shard), int(snakemake.wildcards.shards)),
            Machine(
                threads=snakemake.threads,
                gpus=int(snakemake.resources.get("gpu", 0)),
                vllm_python=snakemake.resources.vllm_python,
            ),
        )
