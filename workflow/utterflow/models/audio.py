"""Audio language models: tokenizer and feature extractor, prompts with recordings, weights.

A prompt has one placeholder token for each vector that the encoder makes of a recording: four frames of 10 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utterflow.audio import SAMPLE_RATE, AudioError, Signal, add_noise, load_audio
from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.models.loading import check_model_folder, load_weights
from utterflow.models.parts import Parts
from utterflow.models.text import read_template
from utterflow.records import Message
from utterflow.sft.tokenize import AudioPart, Prompt, audio_parts, encode, render_prompt

FEATURE_FILES = ("preprocessor_config.json", "processor_config.json")
LEAST_TOKENS = 2  # of a recording; with one each, Qwen2-Audio takes a batch for one of the unexpanded prompts of old


@dataclass(frozen=True)
class Family:
    """What tells an architecture from others.

    Attributes:
        network: name in `audio_networks.NETWORKS`.
        whole_window: features of each recording fill the extractor's window, as the encoder wants them.
        parts: names of the model's modules.
    """

    network: str
    whole_window: bool
    parts: Parts
    audio_token: str = "<|AUDIO|>"


QWEN2_AUDIO = Family(
    "Qwen2AudioForConditionalGeneration",
    whole_window=True,
    parts=Parts(encoder="model.audio_tower", projector="model.multi_modal_projector"),
)
QWEN2_5_OMNI = Family(
    "Qwen2_5OmniThinkerForConditionalGeneration",
    whole_window=False,
    parts=Parts(
        encoder="model.audio_tower",
        projector="model.audio_tower.proj",
        fixed=("model.visual", "model.audio_tower.audio_bos_eos_token"),  # the latter is in no computation
    ),
)
# By `model_type` of the checkpoint's config.json.
FAMILIES = {"qwen2_audio": QWEN2_AUDIO, "qwen2_5_omni": QWEN2_5_OMNI, "qwen2_5_omni_thinker": QWEN2_5_OMNI}


@dataclass(frozen=True)
class AudioProcessor:
    """Text and recordings to what the model takes."""

    tokenizer: Any
    extractor: Any  # WhisperFeatureExtractor
    family: Family

    @property
    def audio_id(self) -> int:
        """Id of the placeholder."""
        return int(self.tokenizer.convert_tokens_to_ids(self.family.audio_token))

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.extractor.save_pretrained(folder)


def family_of(folder: Path) -> Family:
    """The architecture of a checkpoint.

    Raises:
        UserError: it is none of those known here.
    """
    check_model_folder(folder, weights=False)
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"not a known model of kind audio: its type is {model_type}",
            where=str(folder / "config.json"),
            fix=f"take a model of type {', '.join(FAMILIES)}, or write `kind: text` if this one only reads",
        )
    return FAMILIES[model_type]


def load_audio_processor(folder: Path, cfg: LanguageModel) -> AudioProcessor:
    """Tokenizer with a chat template that has a place for recordings, and feature extractor.

    The library's own processors are not loaded: that of Qwen2.5-Omni needs what decodes pictures and videos.

    Raises:
        UserError: the folder is missing or incomplete, or there is no usable chat template, end token or placeholder.
    """
    family = family_of(folder)
    tokenizer = _load_tokenizer(folder, cfg)
    known = tokenizer.get_vocab()
    if family.audio_token not in known or tokenizer.eos_token_id is None:
        lacking = "end token (eos_token)" if tokenizer.eos_token_id is None else family.audio_token
        raise UserError(f"the tokenizer has no {lacking}", where=str(folder), fix="take the model's own tokenizer")
    tokenizer.chat_template = _chat_template(folder, cfg, tokenizer.chat_template, family)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AudioProcessor(tokenizer, _load_extractor(folder), family)


def _load_tokenizer(folder: Path, cfg: LanguageModel) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=cfg.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot load the tokenizer: {error}", where=str(folder)) from None


def _load_extractor(folder: Path) -> Any:
    from transformers import WhisperFeatureExtractor

    if not any((folder / name).is_file() for name in FEATURE_FILES):
        raise UserError(
            f"the model folder is incomplete: it lacks {FEATURE_FILES[0]}",
            where=str(folder),
            fix="copy it from where the model comes from",
        )
    try:
        extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot load the feature extractor: {error}", where=str(folder)) from None
    if extractor.sampling_rate != SAMPLE_RATE:
        raise UserError(f"the model wants {extractor.sampling_rate} samples per second", where=str(folder))
    return extractor


def _chat_template(folder: Path, cfg: LanguageModel, own: Any, family: Family) -> str:
    """The configured template; else the first that takes recordings: the tokenizer's, the processor's, a default.

    Raises:
        UserError: there is none.
    """
    if cfg.chat_template is not None:
        candidates: list[Any] = [read_template(Path(cfg.chat_template))]
    else:
        stored = folder / "chat_template.json"
        candidates = [own, read_json(stored).get("chat_template") if stored.is_file() else None]
        if family is QWEN2_AUDIO:
            candidates.append(_qwen2_audio_template())
    for candidate in candidates:
        if isinstance(candidate, str) and family.audio_token in candidate:
            return candidate
    raise UserError(
        f"the chat template has no place for recordings ({family.audio_token})",
        where=cfg.chat_template or str(folder),
        fix="write under this model `chat_template:` and a Jinja file that puts it where a part is of type audio",
    )


def _qwen2_audio_template() -> str:
    """What the library puts in where a checkpoint brings none; that on the hub does not."""
    from transformers import Qwen2AudioProcessor

    return str(Qwen2AudioProcessor.default_chat_template.fget(None))  # type: ignore[attr-defined]


def load_audio_model(
    folder: Path,
    cfg: LanguageModel,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    quantization: Any = None,
) -> Any:
    """An audio language model in evaluation mode; of Qwen2.5-Omni the thinker.

    Raises:
        UserError: as `load_weights`, or the checkpoint is of no known audio model.
    """
    from utterflow.models.audio_networks import NETWORKS

    return load_weights(
        NETWORKS[family_of(folder).network], folder, cfg, device, dtype=dtype, quantization=quantization
    )


def encode_audio_prompt(processor: AudioProcessor, messages: Sequence[Message], *, thinking: bool = False) -> Prompt:
    """A conversation of text and recordings; each recording is read to see how long it is.

    Raises:
        ValueError: as `render_prompt`; or a recording cannot be read, or is too long or too short for the model.
    """
    parts = audio_parts(messages)
    text = render_prompt(processor.tokenizer, messages, audio_token=processor.family.audio_token, thinking=thinking)
    counts = iter([recording_tokens(processor, part) for part in parts])
    ids: list[int] = []
    for token in encode(processor.tokenizer, text):
        ids += [token] * (next(counts) if token == processor.audio_id else 1)
    return Prompt(tuple(ids), parts)


def recording_tokens(processor: AudioProcessor, part: AudioPart) -> int:
    """Placeholders of a recording.

    Raises:
        ValueError: it cannot be read, or is too long or too short for the model.
    """
    try:
        samples = load_audio(part.path).size
    except AudioError as error:
        raise ValueError(f"recording {error}") from None
    window = processor.extractor.n_samples
    if samples > window:
        seconds = f"{samples / SAMPLE_RATE:.1f} s, the model hears {window / SAMPLE_RATE:g} s"
        raise ValueError(f"recording too long: {seconds}: {part.path}")
    tokens = tokens_of(frames_of(processor, samples))
    if tokens < LEAST_TOKENS:
        raise ValueError(f"recording too short: {samples / SAMPLE_RATE:.3f} s: {part.path}")
    return tokens


def frames_of(processor: AudioProcessor, samples: int) -> int:
    """Frames that the feature extractor's mask marks as the recording's."""
    hop = int(processor.extractor.hop_length)
    return samples // hop if processor.extractor.padding_side == "left" else -(-samples // hop)


def tokens_of(frames: int) -> int:
    """Vectors that the encoder makes of so many frames: a convolution of stride 2, then a mean over 2."""
    return (((frames - 1) // 2 + 1) - 2) // 2 + 1


def audio_inputs(processor: AudioProcessor, rows: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the model takes for the recordings of a batch; nothing where there are none.

    Each recording's features are computed by themselves, so that they do not depend on the batch.

    Returns:
        `input_features` [recordings, mel bins, frames] float32 and `feature_attention_mask` [recordings, frames], in
        the order of the placeholders.

    Raises:
        UserError: a recording is no longer what it was when its prompt was made.
    """
    parts = [part for row in rows for part in row.audio]
    if not parts:
        return {}
    found = [features_of(processor, part) for part in parts]
    heard = sum(tokens_of(int(mask.sum())) for _, mask in found)
    if heard != (placed := sum(row.ids.count(processor.audio_id) for row in rows)):
        raise UserError(
            f"recordings changed while the job ran: {heard} placeholders for them, not {placed}",
            where=", ".join(dict.fromkeys(part.path for part in parts)),
            fix="start again",
        )
    longest = max(mask.shape[0] for _, mask in found)
    return {
        "input_features": torch.stack([_widened(features, longest) for features, _ in found]),
        "feature_attention_mask": torch.stack([_widened(mask, longest) for _, mask in found]),
    }


def features_of(processor: AudioProcessor, part: AudioPart) -> tuple[Tensor, Tensor]:
    """Log-mel spectrogram of a recording with its noise [mel bins, frames], and the mask of its frames [frames].

    Where the model does not want its whole window, silence is put after (or before) the recording only as far as
    frames reach into it, and only the recording's frames are kept: the numbers are those of the whole window.

    Raises:
        UserError: the recording can no longer be read.
    """
    try:
        signal = load_audio(part.path)
    except AudioError as error:
        raise UserError(f"recording {error}", fix="bring it back, and start again") from None
    if part.noise is not None:
        signal = add_noise(signal, part.noise)
    return _features(processor, signal)


def _features(processor: AudioProcessor, signal: Signal) -> tuple[Tensor, Tensor]:
    extractor = processor.extractor
    width = extractor.n_samples
    if not processor.family.whole_window:
        hop = extractor.hop_length
        width = min(width, -(-(signal.size + 2 * extractor.n_fft) // hop) * hop)
    made = extractor(
        np.asarray(signal, dtype=np.float32),
        sampling_rate=SAMPLE_RATE,
        padding="max_length",
        max_length=width,
        return_attention_mask=True,
        return_tensors="pt",
    )
    features, mask = made["input_features"][0], made["attention_mask"][0].long()
    if processor.family.whole_window:
        return features, mask
    return features[:, mask.bool()], mask[mask.bool()]


def _widened(values: Tensor, length: int) -> Tensor:
    """Zeros after the values, along the last axis."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]))
