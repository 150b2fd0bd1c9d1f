"""What the corrector's rules read, as the configuration names it; used when the workflow is parsed."""

from __future__ import annotations

from typing import Any

from utterflow.config.datasets import CandidateSource, CorrectorDataset
from utterflow.config.language_models import LanguageModel
from utterflow.config.models import Config
from utterflow.models.folders import model_inputs_of

SPLITS = ("train", "validation", "test")


def candidate_files(config: Config, dataset: str, split: str) -> list[str]:
    """The files of n-best lists that a split's sources name."""
    return [candidate_file(source) for source in getattr(config.datasets[dataset], split)]


def candidate_file(source: CandidateSource) -> str:
    """The file of n-best lists that a source names."""
    if source.beams:
        return f"results/beams/{source.beams}/{source.partition}/beams.jsonl"
    if source.asr:
        return f"results/asr/{source.corpus}/{source.asr}/nbest.jsonl"
    return str(source.lists)


def tokenizer_of(config: Config, dataset: str) -> LanguageModel | None:
    """The model whose tokenizer counts a data set's tokens."""
    name = corrector_dataset(config, dataset).tokenizer
    return config.models[name] if name else None


def corrector_dataset(config: Config, name: str) -> CorrectorDataset:
    """The data set of this name, which is a corrector's."""
    dataset = config.datasets[name]
    assert isinstance(dataset, CorrectorDataset)
    return dataset


def text_files(config: Config, dataset: str) -> list[str]:
    """A data set's templates, and what its tokenizer is made of: no weights, but the listing of a fetched model."""
    entry, model = corrector_dataset(config, dataset), tokenizer_of(config, dataset)
    templates = [entry.instruction, entry.system, model.chat_template if model else None]
    files = [path for path in model_inputs_of(model) if not path.endswith(".safetensors")] if model else []
    return [*(path for path in templates if path), *files]


def build_settings(config: Config, dataset: str, split: str) -> dict[str, Any]:
    """What a split depends on: its own sources, and what is common to all splits."""
    model = tokenizer_of(config, dataset)
    return {
        "dataset": config.datasets[dataset].model_dump(mode="json", exclude=set(SPLITS) - {split}),
        "tokenizer": model and model.model_dump(mode="json", exclude={"dtype", "attention"}),
    }


def prediction_file(config: Config, correction: str, suffix: str) -> str:
    """A file of the prediction that a correction scores."""
    return f"results/generate/{config.corrections[correction].prediction}/predictions{suffix}"


def predicted_split(config: Config, correction: str, suffix: str) -> str:
    """A file of the data set's split that this prediction was made for."""
    prediction = config.predictions[config.corrections[correction].prediction]
    return f"results/sft/{prediction.dataset}/{prediction.split}{suffix}"
