"""What differs between models of text, audio and vision: one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.finetune.batches import make_collator
from utterflow.models.text import load_model, load_tokenizer
from utterflow.records import SftRow
from utterflow.sft.tokenize import encode_row

Collate = Callable[[list[Mapping[str, Any]]], dict[str, Tensor]]


@dataclass(frozen=True)
class Kind:
    """How models of a kind are loaded and fed.

    Attributes:
        load_processor: (folder, cfg) -> tokenizer or processor.
        load_model: (folder, cfg, device, dtype=, quantization=) -> model.
        encode: (processor, row) -> token ids and labels; ValueError for a bad row.
        collator: (processor, flatten) -> what makes a batch of sequences.
    """

    load_processor: Callable[[Path, LanguageModel], Any]
    load_model: Callable[..., Any]
    encode: Callable[[Any, SftRow], tuple[list[int], list[int]]]
    collator: Callable[[Any, bool], Collate]


def _text_collator(tokenizer: Any, flatten: bool) -> Collate:
    return make_collator(int(tokenizer.pad_token_id), flatten=flatten)


KINDS: dict[str, Kind] = {
    "text": Kind(load_tokenizer, load_model, encode_row, _text_collator),
}


def kind_of(model: LanguageModel) -> Kind:
    """The table's entry for a model.

    Raises:
        UserError: models of this kind cannot be trained yet.
    """
    if model.kind not in KINDS:
        raise UserError(
            f"models of kind {model.kind} cannot be fine-tuned yet",
            where=f"kind: {model.kind}",
            fix=f"train a model of kind {' or '.join(KINDS)}",
        )
    return KINDS[model.kind]


def training_dtype(cfg: LanguageModel, *, full: bool, bf16: bool) -> torch.dtype | None:
    """Type of the weights in training; None: as configured.

    With `dtype: auto`, weights that are trained themselves are kept in float32, for bfloat16 rounds small updates away;
    so are those of a computation in float32.
    """
    return torch.float32 if cfg.dtype == "auto" and (full or not bf16) else None
