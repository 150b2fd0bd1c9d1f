"""A tiny random Whisper, saved to disk as a user's checkpoint would be: same classes, no meaning."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

WINDOW_SECONDS = 2
LETTERS = "abcdefghijklmnopqrstuvwxyz'Ġ"


def save_tiny_whisper(folder: Path, seed: int = 0, end_bias: float = 1.0) -> None:
    """Save model, tokenizer and feature extractor.

    The logits are sharpened, so that search has something to choose, and the end token is made likelier by `end_bias`
    times a text token's spread, so that hypotheses of different lengths finish.
    """
    languages = [f"<|{code}|>" for code in LANGUAGES]
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *languages,
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    vocabulary = {token: index for index, token in enumerate([*LETTERS, *special])}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=[], language="en", task="transcribe", additional_special_tokens=special[1:]
    )
    tokenizer.pad_token = "<|endoftext|>"
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_SECONDS)
    end = vocabulary["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=len(vocabulary) + 20,  # 20 timestamp tokens
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=80,
        max_source_positions=WINDOW_SECONDS * 50,
        max_target_positions=48,
        decoder_start_token_id=vocabulary["<|startoftranscript|>"],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_positions" not in name:
                weight.normal_(0, weight.shape[-1] ** -0.5)
        model.model.decoder.embed_positions.weight.normal_(0, 1)
        embedding = model.model.decoder.embed_tokens.weight
        embedding.normal_(0, 0.6)
        embedding[end] *= end_bias
    model.generation_config = GenerationConfig(
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        begin_suppress_tokens=[end],
        suppress_tokens=[],
        is_multilingual=True,
        lang_to_id={language: vocabulary[language] for language in languages},
        task_to_id={task: vocabulary[f"<|{task}|>"] for task in ("transcribe", "translate")},
        no_timestamps_token_id=vocabulary["<|notimestamps|>"],
        max_length=48,
    )
    model.save_pretrained(folder)
    WhisperProcessor(extractor, tokenizer).save_pretrained(folder)
