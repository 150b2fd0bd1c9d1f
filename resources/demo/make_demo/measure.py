"""Measure the nano Whispers on the shipped corpora, and fill in the error rates SLURP keeps per recording."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jiwer
import nano_whisper
import numpy as np
import torch
from acoustics import ETIOLOGIES, SAMPLE_RATE, add_noise, peak_normalise, read_audio
from synthesise import generator_for, write_json_lines
from transformers import (
    GenerationConfig,
    GenerationMixin,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.utils import logging

MODELS = ["whisper-nano", "whisper-nano-generic"]
SNRS_DB: list[float | None] = [None, 20.0, 15.0, 10.0, 6.0, 3.0, 0.0, -3.0]
ANNOTATION_SNR_DB = 3.0
BEAMS = 5
BATCH = 32
MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class Clip:
    """A clip to recognise, with what was said and the group it is counted in."""

    path: Path
    text: str
    group: str


def noisy(clip: Clip, snr_db: float | None) -> np.ndarray:
    """Read a clip and add noise as the workflow does: seeded by the file's name, colour 0 to 1.2."""
    samples = read_audio(clip.path)
    if snr_db is None:
        return peak_normalise(samples)
    rng = generator_for("noise", clip.path.name, f"{snr_db:g}")
    return add_noise(samples, snr_db, rng.uniform(0, 1.2), rng)


@torch.no_grad()
def recognise(
    model: WhisperForConditionalGeneration, processor: WhisperProcessor, clips: list[np.ndarray]
) -> list[list[str]]:
    """The n-best list of each clip, best first.

    Whisper's own `generate` gives n copies of the first hypothesis; the general one gives a true n-best list.
    """
    tokenizer = processor.tokenizer
    prefix = torch.tensor([tokenizer.prefix_tokens])
    settings = GenerationConfig(
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        decoder_start_token_id=int(prefix[0, 0]),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    lists = []
    for start in range(0, len(clips), BATCH):
        batch = clips[start : start + BATCH]
        features = processor.feature_extractor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        sequences = GenerationMixin.generate(
            model,
            features.input_features,
            decoder_input_ids=prefix.expand(len(batch), -1),
            generation_config=settings,
        )
        texts = [text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)]
        lists.extend(texts[row : row + BEAMS] for row in range(0, len(texts), BEAMS))
    return lists


def error_rates(references: list[str], lists: list[list[str]]) -> dict[str, float]:
    """Word error rate of the first hypotheses and of the best ones of each list, in percent."""
    best = [
        min(hypotheses, key=lambda hypothesis: jiwer.wer(reference, hypothesis))
        for reference, hypotheses in zip(references, lists, strict=True)
    ]
    first = [hypotheses[0] for hypotheses in lists]
    return {
        "utterances": len(references),
        "wer": round(100 * jiwer.wer(references, first), 2),
        "oracle": round(100 * jiwer.wer(references, best), 2),
    }


def read_json_lines(path: Path) -> list[dict]:
    """Read one JSON object per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def slurp_clips(demo: Path) -> list[Clip]:
    """The first recordings of the SLURP-shaped test set, grouped by known and held-out voices."""
    from voices import HELD_OUT_VARIANTS

    people = json.loads((demo / "slurp" / "metadata.json").read_text(encoding="utf-8"))
    clips = []
    for row in read_json_lines(demo / "slurp" / "test.jsonl"):
        name = row["recordings"][0]["file"]
        speaker = people[str(row["slurp_id"])]["recordings"][name]["usrid"]
        group = "held-out voice" if speaker in HELD_OUT_VARIANTS else "training voice"
        clips.append(Clip(demo / "slurp" / "audio" / name, row["sentence"], group))
    return clips


def atypical_clips(demo: Path) -> list[Clip]:
    """The atypical Dev set, grouped by etiology."""
    clips = []
    for path in sorted((demo / "atypical" / "Dev").glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        for entry in record["Files"]:
            text = entry["Prompt"]["Transcript"]
            clips.append(Clip(path.parent / entry["Filename"], text, record["Etiology"]))
    return clips


def by_group(
    clips: list[Clip],
    lists: list[list[str]],
    groups: tuple[str, ...],
) -> dict[str, dict[str, float]]:
    """Error rates over all clips and within each group."""
    rates = {}
    for group in ("all", *groups):
        chosen = [i for i, clip in enumerate(clips) if group in ("all", clip.group)]
        rates[group] = error_rates([clips[i].text for i in chosen], [lists[i] for i in chosen])
    return rates


def measure(demo: Path, report: Callable[[str], None]) -> dict[str, dict]:
    """All figures of both checkpoints; each is also reported as it is found."""
    test, atypical = slurp_clips(demo), atypical_clips(demo)
    figures: dict[str, dict] = {}
    logging.set_verbosity_error()  # generate() warns, at each batch, of the length limit set twice
    for name in MODELS:
        model, processor = nano_whisper.load(demo / "models" / name)
        figures[name] = {}
        for snr_db in SNRS_DB:
            label = "clean" if snr_db is None else f"{snr_db:g} dB"
            lists = recognise(model, processor, [noisy(clip, snr_db) for clip in test])
            figures[name][label] = by_group(test, lists, ("training voice", "held-out voice"))
            report(f"{name} | test {label} | {figures[name][label]}")
        lists = recognise(model, processor, [noisy(clip, None) for clip in atypical])
        figures[name]["atypical"] = by_group(atypical, lists, ETIOLOGIES)
        report(f"{name} | atypical Dev | {figures[name]['atypical']}")
    return figures


def entity_error_rate(row: dict, hypothesis: str) -> float:
    """The share of a sentence's entity words that the hypothesis gets wrong."""
    inside = {index for entity in row["entities"] for index in entity["span"]}
    right = set()
    for chunk in jiwer.process_words(row["sentence"], hypothesis).alignments[0]:
        if chunk.type == "equal":
            right.update(range(chunk.ref_start_idx, chunk.ref_end_idx))
    return len(inside - right) / len(inside) if inside else 0.0


def annotate_recordings(demo: Path) -> None:
    """Fill in `wer` and `ent_wer` of the recordings: those of whisper-nano's first hypothesis at 3 dB."""
    logging.set_verbosity_error()
    model, processor = nano_whisper.load(demo / "models" / MODELS[0])
    for split in ("devel", "test"):
        path = demo / "slurp" / f"{split}.jsonl"
        rows = read_json_lines(path)
        pairs = [(row, recording) for row in rows for recording in row["recordings"]]
        clips = [Clip(demo / "slurp" / "audio" / rec["file"], row["sentence"], "") for row, rec in pairs]
        lists = recognise(model, processor, [noisy(clip, ANNOTATION_SNR_DB) for clip in clips])
        for (row, recording), hypotheses in zip(pairs, lists, strict=True):
            recording["wer"] = round(jiwer.wer(row["sentence"], hypotheses[0]), 4)
            recording["ent_wer"] = round(entity_error_rate(row, hypotheses[0]), 4)
        write_json_lines(path, rows)


def annotate_and_measure(demo: Path, out: Path, threads: int) -> None:
    """Fill in the recordings' error rates, measure both checkpoints, write the figures to `out`."""
    torch.set_num_threads(threads)
    annotate_recordings(demo)
    figures = measure(demo, lambda line: print(line, flush=True))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=here.parent)
    parser.add_argument("--out", type=Path, default=here / "figures.json")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    annotate_and_measure(options.demo, options.out, options.threads)


if __name__ == "__main__":
    main()
