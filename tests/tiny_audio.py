"""Tiny random audio language models with all that a user's checkpoint has, and recordings: offline, in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from tiny_lm import SENTENCES

from utterflow.files import write_json

Architecture = Literal["qwen2_audio", "qwen2_5_omni"]
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
OTHER_TOKENS = ("<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>")
WINDOW = 4  # seconds that the tiny models hear at once
OMNI_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> Any:
    """Byte-level BPE with the special tokens of both architectures; without a chat template, as on the hub."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *AUDIO_TOKENS, *OTHER_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<|IMAGE|>",
            "audio_token": "<|AUDIO|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
        },
    )


def save_tiny_audio(
    folder: Path, architecture: Architecture = "qwen2_audio", *, lively: float = 10.0, seed: int = 0
) -> Path:
    """Save a random model of that architecture with tokenizer and processor; the folder.

    Args:
        lively: factor on the weights' matrices; above 1 answers depend on all of the prompt.
    """
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = _qwen2_audio(folder) if architecture == "qwen2_audio" else _qwen2_5_omni(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "positional" not in name:
                weight.mul_(lively)
            elif weight.ndim == 3:
                weight.mul_(2)
    model.save_pretrained(folder)
    return folder


def _text_sizes(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


def _encoder_sizes(positions: int) -> dict[str, Any]:
    return {
        "num_mel_bins": 128,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "d_model": 32,
        "max_source_positions": positions,
    }


def _qwen2_audio(folder: Path) -> Any:
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = tiny_tokenizer()
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=WINDOW)
    Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(folder)
    return Qwen2AudioForConditionalGeneration(
        Qwen2AudioConfig(
            audio_config=_encoder_sizes(50 * WINDOW),
            text_config={"model_type": "qwen2", **_text_sizes(tokenizer)},
            audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        )
    )


def _qwen2_5_omni(folder: Path) -> Any:
    """With a talker and a vocoder, and with the files that the hub's has."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration, WhisperFeatureExtractor

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    write_json(folder / "chat_template.json", {"chat_template": OMNI_TEMPLATE})
    extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=3 * WINDOW, return_attention_mask=True)
    pictures = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5OmniProcessor"}
    write_json(folder / "preprocessor_config.json", {**json.loads(extractor.to_json_string()), **pictures})
    ids = tokenizer.convert_tokens_to_ids
    tokens = {
        "audio_token_index": ids("<|AUDIO|>"),
        "image_token_index": ids("<|IMAGE|>"),
        "video_token_index": ids("<|VIDEO|>"),
        "audio_start_token_id": ids("<|audio_bos|>"),
        "audio_end_token_id": ids("<|audio_eos|>"),
        "vision_start_token_id": ids("<|vision_bos|>"),
        "vision_end_token_id": ids("<|vision_eos|>"),
    }
    text = {**_text_sizes(tokenizer), "rope_parameters": _rotary(2, 1, 1)}
    return Qwen2_5OmniForConditionalGeneration(
        Qwen2_5OmniConfig(
            thinker_config={
                "audio_config": {**_encoder_sizes(1500), "n_window": 50, "output_dim": 32},
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_heads": 4,
                    "out_hidden_size": 32,
                    "fullatt_block_indexes": [0],
                },
                "text_config": text,
                "pad_token_id": tokenizer.pad_token_id,
                **tokens,
            },
            talker_config={
                **{name: value for name, value in text.items() if not name.endswith("token_id")},
                "vocab_size": 64,
                "embedding_size": 32,
                "head_dim": 8,
                "spatial_merge_size": 2,
            },
            token2wav_config={
                "dit_config": {
                    "hidden_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 4,
                    "head_dim": 8,
                    "emb_dim": 16,
                    "num_embeds": 64,
                    "enc_emb_dim": 16,
                    "enc_dim": 16,
                    "enc_channels": [16, 16, 16, 16, 48],
                    "enc_attention_channels": 16,
                    "enc_se_channels": 16,
                    "enc_res2net_scale": 2,
                },
                "bigvgan_config": {
                    "upsample_initial_channel": 64,
                    "resblock_kernel_sizes": [3],
                    "resblock_dilation_sizes": [[1, 3, 5]],
                },
            },
            enable_audio_output=True,
        )
    )


def _rotary(*sections: int) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}


def write_recording(path: Path, seconds: float, seed: int) -> Path:
    """A mono recording of a few drawn tones, 16 kHz."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * 16_000)) / 16_000
    tones = sum(np.sin(2 * np.pi * rng.uniform(200, 3000) * times + rng.uniform(0, 6)) for _ in range(3))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.2 * tones + 0.01 * rng.normal(size=times.size), 16_000)
    return path


def audio_row(number: int, recording: Path, *, words: int = 1, **changes: Any) -> dict[str, Any]:
    """A row whose answer can only be known from its recording."""
    content = [{"type": "audio", "path": str(recording)}, {"type": "text", "text": "say it" + " lazy" * words}]
    return {
        "id": f"row{number}",
        "task": "slu",
        "messages": [{"role": "user", "content": content}],
        "target": f"number {number % 7}",
        **changes,
    }
