"""Where a Whisper checkpoint lies: known without torch, so that the workflow can be parsed quickly."""

from __future__ import annotations

from pathlib import Path

from utterflow.config.asr import AsrVariant
from utterflow.fetch import model_folder, model_listing

MODEL_FILES = (".json", ".safetensors", ".txt")


def asr_model_folder(variant: AsrVariant) -> Path:
    """The folder to load from: the configured one, or where `fetch_model` puts a hub model."""
    if variant.is_hub_model:
        return model_folder(variant.model, str(variant.revision))
    return Path(variant.model)


def model_inputs(variant: AsrVariant) -> list[str]:
    """The files that a job depends on: the listing of a fetched model, or the files of a local folder."""
    if variant.is_hub_model:
        return [str(model_listing(variant.model, str(variant.revision)))]
    folder = Path(variant.model)
    if not folder.is_dir():
        return []
    return sorted(str(path) for path in folder.iterdir() if path.suffix in MODEL_FILES)
