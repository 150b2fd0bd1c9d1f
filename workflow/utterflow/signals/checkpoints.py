"""A trained CTC encoder on disk: weights with each session's statistics, and what they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from utterflow.config.signals import CtcEncoder
from utterflow.errors import UserError
from utterflow.files import atomic_writer, read_json, seed_of
from utterflow.records import Record, parse_record
from utterflow.signals.encoder import Encoder, Sizes
from utterflow.signals.hdf5 import Normalisation

MEAN, FACTOR = "normalisation.mean", "normalisation.factor"  # tensors [sessions, channels] beside the weights
FULL = "full"


class EncoderFile(Record):
    """What the weights of a CTC encoder belong to (`config.json` beside them)."""

    RECORD: ClassVar[str] = "ctc_encoder/1"
    encoder: dict[str, Any] = Field(description="the configuration's entry")
    fold: str = Field(description="`full`, or the number of the fold that it was trained without")
    tokens: list[str] = Field(description="names of the classes, in their order")
    blank: int
    channels: int
    sessions: list[str] = Field(description="sessions that it was trained on, in the order of their layers")
    normalisation: str = Field(
        default="each channel to zero mean and unit variance, with the statistics of the trial's session in the trials "
        "that the encoder was trained on; of a session without any, with those of its trials in the partition at hand",
        description="how features are scaled before the encoder",
    )


@dataclass(frozen=True)
class TrainedEncoder:
    """A loaded encoder with all that inference needs."""

    model: Encoder
    cfg: CtcEncoder
    about: EncoderFile
    normalisations: Mapping[str, Normalisation]  # by session
    device: torch.device


def fold_of(seed: int, trial: str, folds: int) -> int:
    """The fold that learns without this trial."""
    return seed_of(seed, trial) % folds


def save_weights(path: Path, weights: Mapping[str, Tensor], normalisations: Mapping[str, Normalisation]) -> None:
    """Write weights and statistics as safetensors, atomically; sessions in their order."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    tensors[MEAN] = torch.from_numpy(np.stack([item.mean for item in normalisations.values()]))
    tensors[FACTOR] = torch.from_numpy(np.stack([item.factor for item in normalisations.values()]))
    with atomic_writer(path, "wb") as handle:
        handle.write(save(tensors))


def load_encoder(weights: Path, about: Path, device: torch.device) -> TrainedEncoder:
    """Load an encoder for inference.

    Raises:
        UserError: a file is missing or broken, or they do not belong together.
    """
    described = parse_record(EncoderFile, read_json(about), str(about))
    cfg = CtcEncoder.model_validate(described.encoder)
    try:
        tensors = load_file(weights, device="cpu")
        mean, factor = tensors.pop(MEAN).numpy(), tensors.pop(FACTOR).numpy()
        model = Encoder(cfg, Sizes(described.channels, len(described.sessions), len(described.tokens)))
        model.load_state_dict(tensors)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"cannot load this encoder: {error}", where=str(weights), fix="delete it and run train_ctc again"
        ) from None
    return TrainedEncoder(
        model=model.to(device).eval(),
        cfg=cfg,
        about=described,
        normalisations={
            name: Normalisation(mean[place], factor[place]) for place, name in enumerate(described.sessions)
        },
        device=device,
    )
