"""A Whisper of 1.3 million parameters: its tokenizer, processor, weights before training, and files."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

WINDOW_SECONDS = 5
FRAMES = WINDOW_SECONDS * 100  # mel frames; the encoder halves them
MEL_BINS = 80
WIDTH = 128
ENCODER_LAYERS, DECODER_LAYERS, HEADS = 3, 2, 4
FEED_FORWARD = 512
MAX_TOKENS = 96
MERGES = 150
DROPOUT = 0.1

END = "<|endoftext|>"
START = "<|startoftranscript|>"
TASKS = ("transcribe", "translate")
# The library counts ids on from the start token: the languages must follow at once, in its own order.
SPECIAL_TOKENS = [
    END,
    START,
    *(f"<|{language}|>" for language in LANGUAGES),
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
BYTES_KEPT = set("abcdefghijklmnopqrstuvwxyz0123456789'.,?!-$%Ġ")  # Ġ is the space of a byte-level tokenizer


def build_processor(texts: list[str], scratch: Path) -> WhisperProcessor:
    """Train the byte-pair tokenizer on `texts` and join it with an 80-mel, 5-second feature extractor."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        [f" {text}" for text in texts], vocab_size=256 + MERGES, min_frequency=2, show_progress=False
    )
    scratch.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(scratch))
    learnt = json.loads((scratch / "vocab.json").read_text(encoding="utf-8"))
    merge_lines = (scratch / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split()) for line in merge_lines if line and not line.startswith("#version")]
    tokens = [token for token in sorted(learnt, key=learnt.get) if len(token) > 1 or token in BYTES_KEPT]
    # The special tokens have to be in the vocabulary when the tokenizer is made.
    vocabulary = {token: index for index, token in enumerate(tokens + SPECIAL_TOKENS)}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary,
        merges=merges,
        language="en",
        task="transcribe",
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )
    tokenizer.pad_token = END
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_SECONDS)
    return WhisperProcessor(extractor, tokenizer)


def build_generation_config(tokenizer: WhisperTokenizer) -> GenerationConfig:
    """A generation config of its own, with all that Whisper's `generate` looks up."""
    token_id = tokenizer.convert_tokens_to_ids
    return GenerationConfig(
        max_length=MAX_TOKENS,
        decoder_start_token_id=token_id(START),
        bos_token_id=token_id(END),
        eos_token_id=token_id(END),
        pad_token_id=token_id(END),
        prev_sot_token_id=token_id("<|startofprev|>"),
        no_timestamps_token_id=token_id("<|notimestamps|>"),
        lang_to_id={f"<|{language}|>": token_id(f"<|{language}|>") for language in LANGUAGES},
        task_to_id={task: token_id(f"<|{task}|>") for task in TASKS},
        is_multilingual=True,
        language="en",
        task="transcribe",
        max_initial_timestamp_index=50,
        return_timestamps=False,
        suppress_tokens=[],
        begin_suppress_tokens=[token_id(END)],
    )


def initialise(model: WhisperForConditionalGeneration) -> None:
    """Start from Xavier linears, Kaiming convolutions and quiet positions.

    The library's deviation of 0.02 suits a large model; at this size the convolutions' output would drown
    under the unit-sized position sinusoids.
    """
    depth = model.config.encoder_layers + model.config.decoder_layers
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if name.endswith(("out_proj", "fc2")):
                module.weight.data /= math.sqrt(depth)
        elif isinstance(module, nn.Conv1d):
            nn.init.kaiming_normal_(module.weight)
    model.model.encoder.embed_positions.weight.data *= 0.3
    nn.init.normal_(model.model.decoder.embed_tokens.weight, 0, model.config.d_model**-0.5)
    nn.init.normal_(model.model.decoder.embed_positions.weight, 0, 0.03)


def build_model(tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """Make the untrained model."""
    end_id = tokenizer.convert_tokens_to_ids(END)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=FEED_FORWARD,
        decoder_ffn_dim=FEED_FORWARD,
        num_mel_bins=MEL_BINS,
        max_source_positions=FRAMES // 2,
        max_target_positions=MAX_TOKENS,
        dropout=DROPOUT,
        attention_dropout=0.0,
        activation_dropout=0.0,
        pad_token_id=end_id,
        bos_token_id=end_id,
        eos_token_id=end_id,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids(START),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    initialise(model)
    model.generation_config = build_generation_config(tokenizer)
    return model


def encode(model: WhisperForConditionalGeneration, features: Tensor) -> Tensor:
    """The encoder's output for features of any length up to the window.

    The library's own encoder insists on the full window; batches cut to their longest clip train faster.
    """
    encoder = model.model.encoder
    hidden = functional.gelu(encoder.conv1(features))
    hidden = functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, encoder.dropout, encoder.training)
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    return encoder.layer_norm(hidden)


def save(model: WhisperForConditionalGeneration, processor: WhisperProcessor, folder: Path) -> None:
    """Write the checkpoint: fp16 weights, and a config that asks for float32 so that it loads anywhere."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["dtype"] = "float32"
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation_path = folder / "generation_config.json"
    generation = json.loads(generation_path.read_text(encoding="utf-8"))
    generation.pop("_from_model_config", None)  # true would make the library build a new one and lose ours
    generation_path.write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def load(folder: Path) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Read a checkpoint back, in evaluation mode."""
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), WhisperProcessor.from_pretrained(folder)
