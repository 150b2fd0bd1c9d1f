"""What the trainer's rules read, as the configuration names it; used when the workflow is parsed."""

from __future__ import annotations

from typing import Any

from utterflow.config.base import placement_keys
from utterflow.config.language_models import LanguageModel
from utterflow.config.models import Config
from utterflow.finetune.resources import NOT_IN_TRAINING
from utterflow.models.folders import model_inputs_of

WHOLE_MODEL = (
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def trained(config: Config, *, full: bool, gpus: bool | None = None) -> list[str]:
    """Names of the trainings of whole models, or of adapters; with GPUs, without, or both."""
    return [
        name
        for name, training in config.trainings.items()
        if (training.adapter.kind == "none") == full and gpus in (None, bool(training.gpus))
    ]


def model_of(config: Config, training: str) -> LanguageModel:
    """The model that a training begins with."""
    return config.models[config.trainings[training].model]


def model_files(config: Config, training: str) -> list[str]:
    """The files of that model."""
    return model_inputs_of(model_of(config, training))


def template_files(config: Config, training: str) -> list[str]:
    """The chat template that takes the place of the model's own, if there is one."""
    template = model_of(config, training).chat_template
    return [template] if template else []


def model_settings(config: Config, training: str) -> dict[str, Any]:
    """What a merged model depends on, beside its files."""
    return {"model": model_of(config, training).model_dump(mode="json")}


def training_settings(config: Config, training: str) -> dict[str, Any]:
    """What a training depends on, beside its files; how its rows were mixed is in them."""
    entry = config.trainings[training]
    exclude = placement_keys(type(entry)) | NOT_IN_TRAINING
    return {"training": entry.model_dump(mode="json", exclude=exclude), **model_settings(config, training)}
