"""Where checkpoints lie: known without torch, so that the workflow can be parsed quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from utterflow.fetch import model_folder, model_listing
from utterflow.files import digest_of
from utterflow.provenance import input_digest

MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja")


class PretrainedModel(Protocol):
    """A config entry that names a checkpoint."""

    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def is_hub_model(self) -> bool: ...


def model_folder_of(entry: PretrainedModel) -> Path:
    """The folder to load from: the configured one, or where `fetch_model` puts a hub model."""
    if entry.is_hub_model:
        return model_folder(entry.model, str(entry.revision))
    return Path(entry.model)


def model_inputs_of(entry: PretrainedModel) -> list[str]:
    """The files that a job depends on: the listing of a fetched model, or the files of a local folder."""
    if entry.is_hub_model:
        return [str(model_listing(entry.model, str(entry.revision)))]
    folder = Path(entry.model)
    if not folder.is_dir():
        return []
    return sorted(str(path) for path in folder.iterdir() if path.suffix in MODEL_FILES)


def model_digest(folder: Path) -> str:
    """Digest of a checkpoint's weights, settings and tokenizer."""
    files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
    return digest_of({path.name: input_digest(path) for path in files})
