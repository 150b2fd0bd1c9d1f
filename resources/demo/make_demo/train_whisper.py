"""Train the demo's two nano Whispers on CPU.

`whisper-nano` learns from the grammar's sentences, and so learns the grammar too. `whisper-nano-generic` goes
on from there on word salad: it forgets the grammar, and its errors are such as a language model can mend.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nano_whisper
import numpy as np
import torch
from acoustics import SAMPLE_RATE, add_noise
from synthesise import SEED, Utterance
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor

BATCH = 16
PEAK_RATE = 1.5e-3
CTC_SHARE = 0.5
LABEL_SMOOTHING = 0.1
AUGMENT_FROM = 0.4  # share of the steps after which SpecAugment starts
FULL_WINDOW_FROM = 0.8  # ... after which batches are no longer cut to their longest clip
SNR_RANGE = (5.0, 25.0)
BETA_RANGE = (0.0, 1.2)
CTC_CHARACTERS = " abcdefghijklmnopqrstuvwxyz'"
CTC_BLANK = len(CTC_CHARACTERS)
PREFIX_LENGTH = 4  # start, language, task, no timestamps
IGNORED = -100


@dataclass(frozen=True)
class Plan:
    """One training run."""

    name: str
    part: str
    steps: int
    warm_up: int
    peak_rate: float


PLANS = [
    Plan("whisper-nano", "train", 4000, 300, PEAK_RATE),
    Plan("whisper-nano-generic", "salad", 900, 60, PEAK_RATE),
]


class TrainingData:
    """The synthesised utterances: clean audio on disk, noise and features made as they are asked for."""

    def __init__(self, folder: Path, processor: WhisperProcessor | None = None) -> None:
        rows = json.loads((folder / "utterances.json").read_text(encoding="utf-8"))
        self.utterances = [Utterance(**row) for row in rows]
        self._audio = np.load(folder / "audio.npy", mmap_mode="r")
        self._ends = np.cumsum([utterance.samples for utterance in self.utterances])
        self.processor = processor

    def indices(self, part: str) -> list[int]:
        """The utterances of a part."""
        return [index for index, utterance in enumerate(self.utterances) if utterance.part == part]

    def clean(self, index: int) -> np.ndarray:
        """The clean samples of an utterance."""
        end = int(self._ends[index])
        return self._audio[end - self.utterances[index].samples : end].astype(np.float32) / 32767

    def noisy_features(self, indices: list[int], rng: np.random.Generator) -> Tensor:
        """Log-mel features of the full window, with fresh noise at a random level on each utterance."""
        clips = []
        for index in indices:
            snr_db, beta = rng.uniform(*SNR_RANGE), rng.uniform(*BETA_RANGE)
            clips.append(add_noise(self.clean(index), snr_db, beta, rng))
        extractor = self.processor.feature_extractor
        return extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features

    def batches(self, part: str, rng: random.Random) -> Iterator[list[int]]:
        """Batches of utterances of about the same length, epoch after epoch, without end."""
        indices = self.indices(part)
        while True:
            order = sorted(indices, key=lambda i: self.utterances[i].samples * rng.uniform(0.9, 1.1))
            batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
            rng.shuffle(batches)
            yield from batches


def mask_features(features: Tensor, rng: random.Random) -> Tensor:
    """SpecAugment: blank two stretches of time and two bands of frequency in each utterance."""
    masked = features.clone()
    fill = features.mean()
    _, bands, frames = features.shape
    for row in masked:
        for _ in range(2):
            width = rng.randint(0, 20)
            start = rng.randint(0, max(1, frames - width))
            row[:, start : start + width] = fill
        for _ in range(2):
            width = rng.randint(0, 12)
            start = rng.randint(0, bands - width)
            row[start : start + width] = fill
    return masked


def pad_labels(token_ids: list[list[int]]) -> Tensor:
    """Stack token lists, filled up with `IGNORED`."""
    rows = [torch.tensor(ids) for ids in token_ids]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def attention_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the decoder on what follows the prefix."""
    targets = labels[:, 1:].clone()
    targets[:, : PREFIX_LENGTH - 1] = IGNORED
    return functional.cross_entropy(
        logits.float().flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        label_smoothing=LABEL_SMOOTHING,
    )


def ctc_loss(logits: Tensor, utterances: list[Utterance]) -> Tensor:
    """Character CTC on the encoder's output: it teaches the encoder to align; dropped after training."""
    spelt = [[CTC_CHARACTERS.index(character) for character in u.text] for u in utterances]
    frames = [min(logits.shape[1], u.samples // 320 + 2) for u in utterances]
    return functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        torch.tensor([index for word in spelt for index in word]),
        torch.tensor(frames),
        torch.tensor([len(word) for word in spelt]),
        blank=CTC_BLANK,
        zero_infinity=True,
    )


def window_for(longest: int, progress: float, rng: random.Random) -> int:
    """How many mel frames a batch needs; now and then, and at the end of training, the full window."""
    if progress >= FULL_WINDOW_FROM or rng.random() < 0.1:
        return nano_whisper.FRAMES
    return min(nano_whisper.FRAMES, (longest // 160 + 12) // 2 * 2)


def rate_at(step: int, plan: Plan) -> float:
    """Linear warm-up, then a cosine down to 2%."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    return plan.peak_rate * min(1.0, (step + 1) / plan.warm_up) * (0.98 * cosine + 0.02)


def train(
    model: WhisperForConditionalGeneration, ctc_head: nn.Linear, data: TrainingData, plan: Plan, seed: int
) -> None:
    """Run one plan; prints the losses every 100 steps."""
    torch.manual_seed(seed)
    rng, noise_rng = random.Random(seed), np.random.default_rng(seed)
    tokenizer = data.processor.tokenizer
    parameters = [p for p in [*model.parameters(), *ctc_head.parameters()] if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=plan.peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    began, began_cpu = time.time(), time.process_time()
    losses = []
    model.train()
    for step, batch in zip(range(plan.steps), data.batches(plan.part, rng), strict=False):
        progress = step / plan.steps
        utterances = [data.utterances[index] for index in batch]
        frames = window_for(max(u.samples for u in utterances), progress, rng)
        features = data.noisy_features(batch, noise_rng)[:, :, :frames]
        if progress >= AUGMENT_FROM:
            features = mask_features(features, rng)
        labels = pad_labels([tokenizer(f" {u.text}").input_ids for u in utterances])
        inputs = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, tokenizer.eos_token_id)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, plan)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = nano_whisper.encode(model, features)
            logits = model(encoder_outputs=(hidden,), decoder_input_ids=inputs).logits
            characters = ctc_head(hidden)
        decoder_loss, encoder_loss = attention_loss(logits, labels), ctc_loss(characters, utterances)
        optimiser.zero_grad()
        ((1 - CTC_SHARE) * decoder_loss + CTC_SHARE * encoder_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append((decoder_loss.item(), encoder_loss.item()))
        if (step + 1) % 100 == 0:
            mean_decoder, mean_encoder = np.mean(losses, axis=0)
            losses.clear()
            print(
                f"{plan.name}: step {step + 1}/{plan.steps} "
                f"decoder {mean_decoder:.3f} ctc {mean_encoder:.3f} "
                f"wall {time.time() - began:.0f} s cpu {time.process_time() - began_cpu:.0f} s",
                flush=True,
            )
    model.eval()


@torch.no_grad()
def held_out_loss(model: WhisperForConditionalGeneration, data: TrainingData, seed: int) -> float:
    """The decoder's loss on the development sentences, for the log."""
    indices = data.indices("dev")
    features = data.noisy_features(indices, np.random.default_rng(seed))
    labels = pad_labels([data.processor.tokenizer(f" {data.utterances[i].text}").input_ids for i in indices])
    inputs = labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, data.processor.tokenizer.eos_token_id)
    logits = model(input_features=features, decoder_input_ids=inputs).logits
    return attention_loss(logits, labels).item()


def make_models(work: Path, models: Path, threads: int, quick: bool = False) -> None:
    """Train both checkpoints, one after the other, and write them under `models`."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    data = TrainingData(work / "asr")
    texts = sorted({data.utterances[index].text for index in data.indices("train")})
    processor = nano_whisper.build_processor(texts, work / "tokenizer")
    data.processor = processor
    model = nano_whisper.build_model(processor.tokenizer)
    ctc_head = nn.Linear(nano_whisper.WIDTH, CTC_BLANK + 1)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {len(processor.tokenizer)} tokens", flush=True)
    for index, plan in enumerate(PLANS):
        if quick:
            plan = Plan(plan.name, plan.part, 20, 5, plan.peak_rate)
        train(model, ctc_head, data, plan, SEED + index)
        nano_whisper.save(model, processor, models / plan.name)
        loss = held_out_loss(model, data, SEED)
        print(f"saved {models / plan.name}; decoder loss on held-out sentences {loss:.3f}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder with the training data")
    parser.add_argument("--models", type=Path, default=Path(__file__).resolve().parents[1] / "models")
    parser.add_argument("--threads", type=int, default=1, help="only one repeats bit for bit")
    parser.add_argument("--quick", action="store_true", help="20 steps each: only to see that it runs")
    options = parser.parse_args()
    make_models(options.work, options.models, options.threads, options.quick)


if __name__ == "__main__":
    main()
