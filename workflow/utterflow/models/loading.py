"""Weights from a checkpoint folder, nothing from the network, safetensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.models.devices import choose_dtype

WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"


def check_model_folder(folder: Path, *, weights: bool = True) -> None:
    """Raises a UserError unless the folder holds a checkpoint (with `weights` in safetensors form)."""
    if not folder.is_dir():
        raise UserError(
            "model folder not found",
            where=str(folder),
            fix="correct `model`, or fetch it first: snakemake fetch",
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            "the model folder is incomplete: it lacks config.json",
            where=str(folder),
            fix="save the model there with save_pretrained",
        )
    if weights and not (folder / WEIGHTS).is_file() and not (folder / WEIGHT_INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise UserError(
            f"the model folder is incomplete: it lacks {WEIGHTS}",
            where=str(folder),
            fix=f"{pickled[0]} is a pickle, which is never loaded: save the model again with save_pretrained"
            if pickled
            else "save the model there with save_pretrained, or fetch it anew",
        )


def load_weights(
    model_class: Any,
    folder: Path,
    cfg: LanguageModel,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    quantization: Any = None,
    **settings: Any,
) -> Any:
    """A model of `model_class` in evaluation mode.

    Args:
        dtype: of the weights, instead of the configured one.
        quantization: a `BitsAndBytesConfig`; the library then places the weights itself.
        settings: further arguments of `from_pretrained`.

    Raises:
        UserError: the folder is missing or incomplete, the weights do not fit the architecture, or the attention
            implementation is not there.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    check_model_folder(folder)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = model_class.from_pretrained(
            folder,
            dtype=dtype or choose_dtype(cfg.dtype, device),
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=cfg.attention,
            output_loading_info=True,
            **settings,
            **({"quantization_config": quantization, "device_map": {"": device}} if quantization else {}),
        )
    except ImportError as error:
        raise UserError(
            f"cannot load the model: {error}",
            where=str(folder),
            fix="install what is missing, or write `attention: sdpa` under this model"
            if cfg.attention == "flash_attention_2"
            else "install what is missing",
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the model: {error}", where=str(folder)) from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"the checkpoint lacks {len(missing)} of the model's weights, e.g. {missing[0]}",
            where=str(folder),
            fix="save the whole model with save_pretrained (adapters merged into it)",
        )
    return (model if quantization else model.to(device)).eval()
