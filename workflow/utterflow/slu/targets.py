"""What the rules that score understood commands read and say, as the configuration names it; used at parse time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath

from utterflow.config.datasets import SluSource
from utterflow.config.models import Config
from utterflow.config.prediction import Prediction
from utterflow.config.training import MixPart
from utterflow.slu.inputs import slu_dataset


def prediction_of(config: Config, understanding: str) -> Prediction:
    """The prediction that an understanding scores."""
    return config.predictions[config.understandings[understanding].prediction]


def prediction_file(config: Config, understanding: str, suffix: str) -> str:
    """A file of that prediction."""
    return f"results/generate/{config.understandings[understanding].prediction}/predictions{suffix}"


def predicted_split(config: Config, understanding: str, suffix: str) -> str:
    """A file of the data set's split that this prediction was made for."""
    prediction = prediction_of(config, understanding)
    return f"results/sft/{prediction.dataset}/{prediction.split}{suffix}"


def label_files(config: Config, understanding: str) -> list[str]:
    """The annotations whose most frequent intent is the baseline."""
    return list(slu_dataset(config, prediction_of(config, understanding).dataset).labels)


def described(config: Config, understandings: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the report says of each understanding beside its scores, by its name."""
    return {name: _described(config, name) for name in understandings}


def _described(config: Config, understanding: str) -> dict[str, str]:
    prediction = prediction_of(config, understanding)
    dataset = slu_dataset(config, prediction.dataset)
    training = config.trainings[prediction.training] if prediction.training else None
    sources = getattr(dataset, prediction.split)
    return {
        "dataset": prediction.dataset,
        "split": prediction.split,
        "source": _joined(_source_name(source) for source in sources),
        "candidates": str(dataset.candidates),
        "input_format": dataset.input_format,
        "audio": "yes" if dataset.audio else "no",
        "model": str(training.model if training else prediction.model),
        "training": prediction.training or "",
        "trained_on": _trained_on(config, training.train) if training else "",
    }


def _trained_on(config: Config, parts: Iterable[MixPart]) -> str:
    """The sources of a training's data sets; `<ras>` marks those whose rationales are learnt."""
    return _joined(
        _source_name(source) + (" <ras>" if slu_dataset(config, part.dataset).ras and source.rationale else "")
        for part in parts
        if config.datasets[part.dataset].builder == "slu"
        for source in getattr(slu_dataset(config, part.dataset), part.split)
    )


def _source_name(source: SluSource) -> str:
    if source.rationale:
        return f"{source.rationale}/k{source.k}"
    if source.asr:
        return f"{source.corpus}/{source.asr}"
    return f"{'text' if source.gold_text else 'lists'} {PurePath(str(source.gold_text or source.lists)).name}"


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
