"""What the rules about SLU data sets read, as the configuration names it; used when the workflow is parsed."""

from __future__ import annotations

from typing import Any

from utterflow.config.datasets import SluDataset, SluSource
from utterflow.config.models import Config

SPLITS = ("train", "validation", "test")


def slu_dataset(config: Config, name: str) -> SluDataset:
    """The data set of this name, which is one of spoken commands."""
    dataset = config.datasets[name]
    assert isinstance(dataset, SluDataset)
    return dataset


def source_files(config: Config, dataset: str, split: str) -> list[str]:
    """The files of commands that a split's sources name."""
    return [source_file(source) for source in getattr(slu_dataset(config, dataset), split)]


def source_file(source: SluSource) -> str:
    """The file of commands that a source names."""
    if source.rationale:
        return f"results/rationale/{source.rationale}/k{source.k}/rationale.jsonl"
    if source.asr:
        return f"results/asr/{source.corpus}/{source.asr}/nbest.jsonl"
    return str(source.lists or source.gold_text)


def text_files(config: Config, dataset: str) -> list[str]:
    """A data set's templates, system message, lexicon, and the annotations of its inventory of labels."""
    return named_texts(slu_dataset(config, dataset))


def named_texts(dataset: SluDataset) -> list[str]:
    """The same, from the data set itself; the template of `<ras>` prompts only where there are such."""
    texts = (dataset.slu_prompt, dataset.ras_prompt if dataset.ras else None, dataset.system, dataset.lexicon)
    return [*(path for path in texts if path), *dataset.labels]


def build_settings(config: Config, dataset: str, split: str) -> dict[str, Any]:
    """What a split depends on: its own sources, and what is common to all splits."""
    return slu_dataset(config, dataset).model_dump(mode="json", exclude=set(SPLITS) - {split})
