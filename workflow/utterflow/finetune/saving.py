"""Weights on disk: adapters and models in safetensors form, in one file each."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import torch

from utterflow.errors import UserError
from utterflow.files import read_json, write_json

ONE_FILE = "100TB"
BESIDE = ("preprocessor_config.json",)  # of audio models; the rules declare the files that every model has
SETS = ("target_modules", "exclude_modules", "modules_to_save")


def save_weights(trainer: Any, processor: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Save a trainer's adapter or model with tokenizer and chat template; all processes take part, the first writes.

    Args:
        dtype: of the saved weights; None: as they are. DeepSpeed saves them as it holds them.
    """
    if trainer.is_deepspeed_enabled:
        trainer.save_model(str(folder))
    elif trainer.is_world_process_zero():
        model = trainer.accelerator.unwrap_model(trainer.model)
        (model.to(dtype) if dtype else model).save_pretrained(folder, max_shard_size=ONE_FILE)
    if trainer.is_world_process_zero():
        processor.save_pretrained(folder)
        (folder / "training_args.bin").unlink(missing_ok=True)
        if (folder / "adapter_config.json").is_file():
            _sort_sets(folder / "adapter_config.json")


def _sort_sets(path: Path) -> None:
    """PEFT writes sets in the order of their hashes, another one in each process."""
    settings = read_json(path)
    for name in SETS:
        if isinstance(settings.get(name), list):
            settings[name] = sorted(settings[name])
    write_json(path, settings)


def stored_dtype(folder: Path) -> torch.dtype | None:
    """The type in which a checkpoint's weights are stored, where its configuration says."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder, local_files_only=True).dtype
    return dtype if isinstance(dtype, torch.dtype) else None


def place_weights(folder: Path, targets: list[Path]) -> None:
    """Put the files of a saved model where the rule declares them; beside a whole model, what it needs to be loaded.

    Raises:
        UserError: the library saved no file of that name.
    """
    for target in targets:
        if not (folder / target.name).is_file():
            raise UserError(f"the library saved no {target.name} for this model", where=str(folder))
        place(folder / target.name, target)
    whole = [target.parent for target in targets if target.name == "config.json"]
    for name in BESIDE:
        if whole and (folder / name).is_file():
            place(folder / name, whole[0] / name)


def place(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy on another file system; at once, and as new as now."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.chmod(0o644)
        os.utime(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
