"""What differs between models of text, audio and vision: one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.models.audio import audio_inputs, encode_audio_prompt, family_of, load_audio_model, load_audio_processor
from utterflow.models.parts import Parts
from utterflow.models.text import load_model, load_tokenizer
from utterflow.records import Message, SftRow
from utterflow.sft.tokenize import Prompt, encode_answer, encode_prompt, join_answer

Media = Callable[[Sequence[Prompt]], dict[str, Tensor]]


@dataclass(frozen=True)
class Kind:
    """How models of a kind are loaded and fed.

    Attributes:
        load_processor: (folder, cfg) -> what turns conversations into what the model takes.
        tokenizer: processor -> its tokenizer.
        load_model: (folder, cfg, device, dtype=, quantization=) -> model.
        encode_prompt: (processor, messages, thinking=) -> prompt; ValueError for a bad one.
        media_inputs: (processor, prompts) -> what the model takes for a batch beside ids and mask.
        parts: folder -> names of the model's modules beside the language model.
    """

    load_processor: Callable[[Path, LanguageModel], Any]
    tokenizer: Callable[[Any], Any]
    load_model: Callable[..., Any]
    encode_prompt: Callable[..., Prompt]
    media_inputs: Callable[[Any, Sequence[Prompt]], dict[str, Tensor]]
    parts: Callable[[Path], Parts]

    def encode_row(self, processor: Any, row: SftRow) -> tuple[Prompt, list[int], list[int]]:
        """The prompt of a training row, and token ids and labels of prompt and answer, of equal length.

        Raises:
            ValueError: there is no answer, or a prompt that cannot be made.
        """
        answer = encode_answer(self.tokenizer(processor), row)
        prompt = self.encode_prompt(processor, row.messages)
        return (prompt, *join_answer(prompt.ids, answer))


def _encode_text(tokenizer: Any, messages: Sequence[Message], *, thinking: bool = False) -> Prompt:
    return Prompt(tuple(encode_prompt(tokenizer, messages, thinking=thinking)))


TEXT = Kind(
    load_processor=load_tokenizer,
    tokenizer=lambda tokenizer: tokenizer,
    load_model=load_model,
    encode_prompt=_encode_text,
    media_inputs=lambda tokenizer, prompts: {},
    parts=lambda folder: Parts(),
)
AUDIO = Kind(
    load_processor=load_audio_processor,
    tokenizer=lambda processor: processor.tokenizer,
    load_model=load_audio_model,
    encode_prompt=encode_audio_prompt,
    media_inputs=audio_inputs,
    parts=lambda folder: family_of(folder).parts,
)
KINDS = {"text": TEXT, "audio": AUDIO}


def kind_of(model: LanguageModel) -> Kind:
    """The table's entry for a model.

    Raises:
        UserError: there is none yet.
    """
    if model.kind not in KINDS:
        raise UserError(
            f"models of kind {model.kind} can be neither trained nor asked yet",
            where=f"kind: {model.kind}",
            fix=f"take a model of kind {' or '.join(KINDS)}",
        )
    return KINDS[model.kind]
