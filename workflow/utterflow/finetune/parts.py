"""Which parts of a model are trained, and in which type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from utterflow.config.language_models import LanguageModel
from utterflow.config.training import Adapter, Training
from utterflow.errors import UserError
from utterflow.models.parts import Parts

# What encoders of the Whisper kind call the modules that language models have under another name.
ENCODER_NAMES = {"o_proj": "out_proj", "gate_proj": "fc1", "up_proj": "fc1", "down_proj": "fc2"}


def training_dtype(cfg: LanguageModel, *, full: bool, bf16: bool) -> torch.dtype | None:
    """Type of the weights in training; None: as configured.

    With `dtype: auto`, weights that are trained themselves are kept in float32, for bfloat16 rounds small updates away;
    so are those of a computation in float32.
    """
    return torch.float32 if cfg.dtype == "auto" and (full or not bf16) else None


def untouched(parts: Parts, adapter: Adapter) -> tuple[str, ...]:
    """Names of the modules in which neither adapters nor, in full training, weights are trained."""
    encoder = () if adapter.audio_encoder or not parts.encoder else (parts.encoder,)
    return (*parts.fixed, *encoder)


def without_adapters(parts: Parts, adapter: Adapter) -> str | None:
    """Pattern of the names of modules that get no adapter, for PEFT's `exclude_modules`; the projector gets none."""
    names = [*untouched(parts, adapter), *([parts.projector] if parts.projector else [])]
    return rf"(.*\.)?({'|'.join(map(re.escape, names))})(\..*)?" if names else None


def target_names(parts: Parts, adapter: Adapter) -> str | list[str]:
    """`adapter.targets`, and what the encoder calls the same modules where it is trained too."""
    if isinstance(adapter.targets, str):
        return adapter.targets
    others = [ENCODER_NAMES[name] for name in adapter.targets if name in ENCODER_NAMES]
    own = others if adapter.audio_encoder and parts.encoder else []
    return list(dict.fromkeys([*adapter.targets, *own]))


def saved_modules(parts: Parts, adapter: Adapter) -> list[str]:
    """`adapter.modules_to_save`, and the projector where it is trained."""
    return [*adapter.modules_to_save, *([parts.projector] if adapter.projector and parts.projector else [])]


def freeze(model: Any, parts: Parts, adapter: Adapter) -> None:
    """Before training: no gradients where nothing is trained, though all of the language model may be.

    With an adapter, PEFT freezes the rest. An encoder that is not trained is also cut off: gradient checkpointing asks
    for gradients of its first layer's output, and all of it would be passed through backwards for nothing.
    """
    trained = _below(parts.projector) if adapter.projector else None
    frozen = [name for name in (*untouched(parts, adapter), *([] if adapter.projector else [parts.projector])) if name]
    for name, weight in model.named_parameters():
        if any(_below(part).match(name) for part in frozen) and not (trained and trained.match(name)):
            weight.requires_grad_(False)
    if parts.encoder and not adapter.audio_encoder:
        model.get_submodule(parts.projector).register_forward_pre_hook(_cut_off)


def _cut_off(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.detach() for value in inputs)


def _below(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}(\.|$)")


def check_targets(model: Any, training: Training, parts: Parts | None = None) -> None:
    """Raises a UserError for names of modules that the trained part of the model does not have."""
    parts, adapter = parts or Parts(), training.adapter
    excluded = re.compile(without_adapters(parts, adapter) or r"\0")
    modules = [(name, item) for name, item in model.named_modules() if not excluded.fullmatch(name)]
    everywhere = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    here = {name.rpartition(".")[2] for name, _ in modules}
    targets = () if isinstance(adapter.targets, str) else adapter.targets
    for key, wanted, names in (
        ("targets", targets, here),
        ("modules_to_save", adapter.modules_to_save, everywhere),
    ):
        if missing := [name for name in wanted if name.rpartition(".")[2] not in names]:
            elsewhere = missing[0].rpartition(".")[2] in everywhere
            raise UserError(
                f"the model has no module {missing[0]!r}" + (" in what is trained" if elsewhere else ""),
                where=f"adapter.{key}",
                fix=f"its linear modules are {', '.join(sorted(set(_linear(modules))))}; or write `targets: all-linear`"
                + ("; `audio_encoder: true` trains the encoder's too" if elsewhere and parts.encoder else ""),
            )


def _linear(modules: list[tuple[str, Any]]) -> Iterator[str]:
    """Last names of linear modules."""
    return (name.rpartition(".")[2] for name, item in modules if "Linear" in type(item).__name__)
