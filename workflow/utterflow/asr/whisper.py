"""Whisper's encoder and decoder, run so that n hypotheses cost little more than one.

The encoder runs once per window. The cross-attention keys and values are made once per window and shared by its n
hypotheses, which enter attention as n queries of the same item. Only the self-attention cache is per hypothesis.
All weights are used through the modules of `transformers`, so that adapters on them take effect.

Shapes: B windows, n hypotheses per window, R = B * n rows, S encoder positions, T decoder positions, d model width,
H heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from utterflow.errors import UserError

REQUIRED_FILES = ("config.json", "model.safetensors")
WEIGHT_INDEX = "model.safetensors.index.json"
ROOM = 8  # decoder positions that a cache is made longer by, when it is copied or full
SPECIAL_TOKENS = {  # generation setting -> its token in every Whisper vocabulary
    "eos_token_id": "<|endoftext|>",
    "decoder_start_token_id": "<|startoftranscript|>",
    "no_timestamps_token_id": "<|notimestamps|>",
}


@dataclass(frozen=True)
class Whisper:
    """A loaded checkpoint and what decoding needs to know of it."""

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    suppressed: Tensor  # [V] bool: tokens that are neither text nor the end token
    suppressed_first: Tensor  # [V] bool: those that must not come first either

    @property
    def eos(self) -> int:
        return int(self.model.generation_config.eos_token_id)

    @property
    def window_samples(self) -> int:
        return int(self.processor.feature_extractor.n_samples)

    @property
    def sample_rate(self) -> int:
        return int(self.processor.feature_extractor.sampling_rate)

    @property
    def max_positions(self) -> int:
        return int(self.model.config.max_target_positions)


@dataclass
class DecoderState:
    """Caches of a batch in decoding.

    cross: per layer, keys and values [2, B, H, S, d/H].
    cache: self-attention keys and values [layers, 2, R, H, capacity, d/H], filled up to `length`.
    """

    cross: list[Tensor]
    cache: Tensor
    length: int = 0


def load_whisper(folder: Path, device: torch.device, dtype: torch.dtype) -> Whisper:
    """Load a Whisper checkpoint from a folder: safetensors only, nothing from the network.

    Raises:
        UserError: the folder is missing or incomplete, or its parts do not fit together.
    """
    check_model_folder(folder)
    from safetensors import SafetensorError
    from transformers import WhisperForConditionalGeneration, WhisperProcessor
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
        loaded: Any = WhisperForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the Whisper checkpoint: {error}", where=str(folder)) from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"the checkpoint lacks {len(missing)} of the model's weights, e.g. {missing[0]}",
            where=str(folder),
            fix="save the whole model with save_pretrained (adapters merged into it)",
        )
    _check_special_tokens(model.generation_config, processor.tokenizer, folder)
    frames, positions = processor.feature_extractor.nb_max_frames, model.config.max_source_positions
    if frames != 2 * positions:
        raise UserError(
            f"the feature extractor makes {frames} frames, the encoder wants {2 * positions}",
            where=str(folder),
            fix="take the processor that belongs to the checkpoint",
        )
    model = model.to(device).eval()
    suppressed, suppressed_first = _suppressed_tokens(model, processor.tokenizer)
    return Whisper(model, processor, device, dtype, suppressed.to(device), suppressed_first.to(device))


def check_model_folder(folder: Path) -> None:
    """Raises a UserError unless the folder holds a checkpoint in safetensors form."""
    if not folder.is_dir():
        raise UserError(
            "model folder not found",
            where=str(folder),
            fix="correct `model`, or fetch it first (`utterflow doctor` says how)",
        )
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if missing == ["model.safetensors"] and (folder / WEIGHT_INDEX).is_file():
        missing = []
    if missing:
        raise UserError(
            f"the model folder lacks {', '.join(missing)}",
            where=str(folder),
            fix="save the model with save_pretrained(folder, safe_serialization=True)",
        )


def _check_special_tokens(generation: Any, tokenizer: Any, folder: Path) -> None:
    """Raises a UserError where generation settings or tokenizer are absent, outdated or another model's.

    The library loads such a folder without a word: with default settings, or with an empty tokenizer.
    """
    needed = ["eos_token_id", "decoder_start_token_id", "no_timestamps_token_id", "is_multilingual"]
    if getattr(generation, "is_multilingual", False):
        needed += ["lang_to_id", "task_to_id"]
    if absent := [name for name in needed if getattr(generation, name, None) is None]:
        raise UserError(
            f"the generation settings lack {', '.join(absent)}",
            where=str(folder / "generation_config.json"),
            fix="copy this file from the checkpoint that the model was fine-tuned from",
        )
    for name, expected in SPECIAL_TOKENS.items():
        token = getattr(generation, name)
        found = tokenizer.convert_ids_to_tokens(token)
        if found != expected:
            raise UserError(
                f"the tokenizer does not belong to the model: {name} {token} is {found!r}, not {expected!r}",
                where=str(folder),
                fix="copy tokenizer and generation_config.json from the checkpoint that the model was fine-tuned from",
            )


def _suppressed_tokens(model: Any, tokenizer: Any) -> tuple[Tensor, Tensor]:
    generation = model.generation_config
    size = model.config.vocab_size
    suppressed = torch.zeros(size, dtype=torch.bool)
    special = [generation.decoder_start_token_id, *tokenizer.all_special_ids]
    for table in ("lang_to_id", "task_to_id"):
        special += (getattr(generation, table, None) or {}).values()
    forbidden = [token for token in [*(generation.suppress_tokens or []), *special] if 0 <= token < size]
    suppressed[torch.tensor(forbidden, dtype=torch.long)] = True
    suppressed[generation.no_timestamps_token_id :] = True
    suppressed[len(tokenizer) :] = True
    suppressed[generation.eos_token_id] = False
    first = suppressed.clone()
    begin = [token for token in (generation.begin_suppress_tokens or []) if 0 <= token < size]
    first[torch.tensor(begin, dtype=torch.long)] = True
    return suppressed, first


def language_tokens(whisper: Whisper) -> dict[str, int]:
    """Language code -> token, e.g. `en`; empty for English-only models."""
    generation = whisper.model.generation_config
    table = generation.lang_to_id if generation.is_multilingual else {}
    return {name.strip("<|>"): token for name, token in table.items()}


def language_code(whisper: Whisper, language: str) -> str:
    """The model's code of a language that is given as code or English name, e.g. `en` for `English`.

    Raises:
        UserError: a language that the model does not know.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    codes = sorted(language_tokens(whisper)) or ["en"]
    code = str(TO_LANGUAGE_CODE.get(language.lower(), language.lower()))
    if code not in codes:
        raise UserError(
            f"language {language!r} is not one of the model's",
            fix=f"set one of {', '.join(codes)}, or null" if len(codes) > 1 else "set `en`: the model is English-only",
        )
    return code


def prompt_tokens(whisper: Whisper, language: str, task: str) -> list[int]:
    """Start-of-transcript, language, task and no-timestamps tokens; English-only models know no language and task.

    Args:
        language: the model's code, e.g. `en`.

    Raises:
        UserError: an English-only model shall translate.
    """
    generation = whisper.model.generation_config
    languages = language_tokens(whisper)
    if not languages and task != "transcribe":
        raise UserError(
            f"this is an English-only model; it cannot do task {task!r}",
            fix="set `task: transcribe`, or take a multilingual model",
        )
    spoken = [languages[language], generation.task_to_id[task]] if languages else []
    return [generation.decoder_start_token_id, *spoken, generation.no_timestamps_token_id]


@torch.inference_mode()
def features(whisper: Whisper, windows: list[NDArray[Any]]) -> Tensor:
    """Log-mel features [B, mels, frames] of windows of samples at the model's rate, padded to its window."""
    batch = whisper.processor.feature_extractor(
        windows, sampling_rate=whisper.sample_rate, return_tensors="pt", device=whisper.device.type
    )
    return batch.input_features.to(whisper.device, whisper.dtype)  # type: ignore[no-any-return]


@torch.inference_mode()
def encode(whisper: Whisper, log_mel: Tensor) -> list[Tensor]:
    """Run the encoder once; cross-attention keys and values [2, B, H, S, d/H] of each decoder layer."""
    hidden = whisper.model.model.encoder(log_mel).last_hidden_state
    cross = []
    for layer in whisper.model.model.decoder.layers:
        attention = layer.encoder_attn
        cross.append(
            torch.stack([_heads(attention.k_proj(hidden), attention), _heads(attention.v_proj(hidden), attention)])
        )
    return cross


def new_state(whisper: Whisper, cross: list[Tensor], capacity: int) -> DecoderState:
    """An empty state with one hypothesis per window and room for `capacity` decoder positions."""
    config = whisper.model.config
    heads = config.decoder_attention_heads
    shape = (config.decoder_layers, 2, cross[0].shape[1], heads, capacity, config.d_model // heads)
    return DecoderState(cross, torch.empty(shape, device=whisper.device, dtype=whisper.dtype))


@torch.inference_mode()
def decode(whisper: Whisper, state: DecoderState, tokens: Tensor) -> Tensor:
    """Run the decoder over new tokens and extend the cache.

    Args:
        tokens: [B, n, s]; s > 1 (a prompt) only on an empty state.

    Returns:
        float32 logits [B, n, V] after the last token.
    """
    decoder = whisper.model.model.decoder
    windows, hypotheses, new = tokens.shape
    rows, begin, end = windows * hypotheses, state.length, state.length + new
    if end > state.cache.shape[4]:
        state.cache = _with_room(state.cache, end + ROOM)
    positions = torch.arange(begin, end, device=tokens.device)
    hidden = decoder.embed_tokens(tokens.reshape(rows, new)) + decoder.embed_positions.weight[positions]
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        normed = layer.self_attn_layer_norm(hidden)
        keys, values = state.cache[index]
        keys[:, :, begin:end] = _heads(attention.k_proj(normed), attention)
        values[:, :, begin:end] = _heads(attention.v_proj(normed), attention)
        query = _heads(attention.q_proj(normed) * attention.scaling, attention)
        context = scaled_dot_product_attention(
            query, keys[:, :, :end], values[:, :, :end], is_causal=new > 1, scale=1.0
        )
        hidden = hidden + attention.out_proj(context.transpose(1, 2).reshape(rows, new, -1))

        attention = layer.encoder_attn
        normed = layer.encoder_attn_layer_norm(hidden).view(windows, hypotheses * new, -1)
        query = _heads(attention.q_proj(normed) * attention.scaling, attention)
        keys, values = state.cross[index]
        context = scaled_dot_product_attention(query, keys, values, scale=1.0)
        hidden = hidden + attention.out_proj(context.transpose(1, 2).reshape(rows, new, -1))

        normed = layer.final_layer_norm(hidden)
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(normed)))
    state.length = end
    last = decoder.layer_norm(hidden[:, -1])
    return whisper.model.proj_out(last).float().view(windows, hypotheses, -1)  # type: ignore[no-any-return]


def _heads(projected: Tensor, attention: Any) -> Tensor:
    """[batch, length, d] -> [batch, H, length, d/H]."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, attention.num_heads, attention.head_dim).transpose(1, 2).contiguous()


@torch.inference_mode()
def expand(state: DecoderState, hypotheses: int) -> None:
    """Copy the single hypothesis of each window `hypotheses` times."""
    state.cache = state.cache.repeat_interleave(hypotheses, dim=2)


@torch.inference_mode()
def reorder(state: DecoderState, parents: Tensor) -> None:
    """Give row r the history of row `parents[r]`; only rows that change are copied."""
    changed = (parents != torch.arange(len(parents), device=parents.device)).nonzero().squeeze(1)
    if len(changed):
        filled = state.cache[:, :, :, :, : state.length]
        filled[:, :, changed] = filled[:, :, parents[changed]]


@torch.inference_mode()
def keep(state: DecoderState, windows: Tensor, rows: Tensor) -> None:
    """Go on with the given windows [B'] only, and with rows [R'] that continue the given ones."""
    if len(windows) < state.cross[0].shape[1]:
        state.cross = [part.index_select(1, windows) for part in state.cross]
    if len(rows) != state.cache.shape[2] or not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
        filled = state.cache[:, :, :, :, : state.length].index_select(2, rows)
        state.cache = _with_room(filled, state.length + ROOM)


def _with_room(cache: Tensor, capacity: int) -> Tensor:
    """The cache [layers, 2, R, H, length, d/H] in a tensor of `capacity` positions."""
    *outer, length, width = cache.shape
    larger = cache.new_empty((*outer, capacity, width))
    larger[:, :, :, :, :length] = cache
    return larger


@torch.inference_mode()
def detect_languages(whisper: Whisper, cross: list[Tensor]) -> list[str]:
    """The most probable language of each window; `en` for English-only models."""
    languages = language_tokens(whisper)
    count = cross[0].shape[1]
    if not languages:
        return ["en"] * count
    start = int(whisper.model.generation_config.decoder_start_token_id)
    state = new_state(whisper, cross, 1)
    logits = decode(whisper, state, torch.full((count, 1, 1), start, device=whisper.device))[:, 0]
    codes = list(languages)
    best = logits[:, torch.tensor([languages[code] for code in codes], device=whisper.device)].argmax(-1)
    return [codes[index] for index in best.tolist()]
