"""Which model answers, and from which files: known without torch, so that the workflow can be parsed quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utterflow.config.base import placement_keys
from utterflow.config.language_models import LanguageModel
from utterflow.config.models import Config
from utterflow.config.prediction import Prediction
from utterflow.models.folders import model_folder_of, model_inputs_of

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Sources:
    """Where the model that answers lies: a checkpoint's folder, and the adapter's where there is one."""

    folder: Path
    adapter: Path | None

    def __str__(self) -> str:
        return f"{self.folder} with {self.adapter}" if self.adapter else str(self.folder)


def rows_file(config: Config, name: str) -> str:
    """The prompts that a prediction answers."""
    prediction = config.predictions[name]
    return f"results/sft/{prediction.dataset}/{prediction.split}.jsonl"


def shard_files(config: Config, name: str, suffix: str) -> list[str]:
    """One file of each shard of a prediction."""
    shards = config.predictions[name].shards
    return [f"results/generate/{name}/shards/{shard}-of-{shards}{suffix}" for shard in range(shards)]


def settings(config: Config, name: str) -> dict[str, Any]:
    """What answers depend on; the number of shards is in the names of the shards' files."""
    prediction = config.predictions[name]
    exclude = placement_keys(type(prediction)) | {"shards"}
    return {
        "prediction": prediction.model_dump(mode="json", exclude=exclude),
        "model": answering_model(config, prediction).model_dump(mode="json"),
    }


def answering_model(config: Config, prediction: Prediction) -> LanguageModel:
    """The pretrained model of a prediction: its own, or the one that its training began with."""
    name = prediction.model or config.trainings[str(prediction.training)].model
    return config.models[name]


def trained_files(config: Config, prediction: Prediction) -> list[str]:
    """The weights and settings that a training made: of the adapter, of the merged or of the whole model."""
    if prediction.training is None:
        return []
    folder = f"results/finetune/{prediction.training}"
    if prediction.merged or config.trainings[prediction.training].adapter.kind == "none":
        whole = f"{folder}/{'merged' if prediction.merged else 'model'}"
        return [f"{whole}/model.safetensors", f"{whole}/config.json"]
    return [f"{folder}/adapter/{ADAPTER_WEIGHTS}", f"{folder}/adapter/{ADAPTER_CONFIG}"]


def pretrained_files(config: Config, prediction: Prediction) -> list[str]:
    """The files of the pretrained model that a job reads: none where training left a whole model."""
    trained = trained_files(config, prediction)
    if trained and Path(trained[0]).name != ADAPTER_WEIGHTS:
        return []
    return model_inputs_of(answering_model(config, prediction))


def text_files(config: Config, prediction: Prediction) -> list[str]:
    """The chat template and the JSON schema, where the configuration names them."""
    named = (answering_model(config, prediction).chat_template, prediction.json_schema)
    return [path for path in named if path]


def sources_of(model: LanguageModel, trained: Sequence[Path]) -> Sources:
    """Where to load from, given the trained files among a job's inputs."""
    if not trained:
        return Sources(model_folder_of(model), None)
    folder = trained[0].parent
    if trained[0].name == ADAPTER_WEIGHTS:
        return Sources(model_folder_of(model), folder)
    return Sources(folder, None)
