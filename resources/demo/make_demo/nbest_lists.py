"""n-best lists on which a corrector is trained: the generic recogniser on noisy speech that does not ship.

The sentences are those of the SLURP-shaped train split, which has no recordings, and for devel the ones that
watched over the recogniser's training. The recogniser has heard none of them. The decoder is the project's own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from acoustics import add_noise
from grammar import Sentence
from synthesise import (
    SEED,
    SHARDS,
    fits,
    generator_for,
    speak_clean,
    split_sentences,
    write_json_lines,
)
from voices import ALL_VOICES, TRAINING_VOICES, Synthesiser

RECOGNISER = "whisper-nano-generic"
METHOD = "beam"
SNR_RANGE = (10.0, 20.0)
BETA_RANGE = (0.0, 1.2)
HYPOTHESES = 5
BATCH = 16


@dataclass(frozen=True)
class Line:
    """A sentence to be spoken."""

    id: str
    split: str
    sentence: Sentence
    voice: str

    @property
    def text(self) -> str:
        return self.sentence.text

    @property
    def labels(self) -> dict[str, object]:
        """Its meaning, as SLURP names it."""
        entities = [{"type": entity.kind, "filler": entity.filler} for entity in self.sentence.entities]
        return {"scenario": self.sentence.scenario, "action": self.sentence.action, "entities": entities}


def plan_lists(parts: dict[str, list[Sentence]]) -> list[Line]:
    """Give each sentence a voice; the ids of train are those of the SLURP-shaped rows."""
    rng = random.Random(SEED + 6)
    train = [(f"slurp-{10_000 + index}", "train", sentence) for index, sentence in enumerate(parts["slurp_train"])]
    devel = [(f"devel-{index:03d}", "devel", sentence) for index, sentence in enumerate(parts["asr_dev"])]
    return [Line(name, split, s, rng.choice(TRAINING_VOICES).name) for name, split, s in [*train, *devel]]


def speak_shard(task: tuple[int, list[Line]]) -> list[np.ndarray | None]:
    """Speak one shard of the plan with noise; None for what is too long."""
    shard, lines = task
    synthesiser = Synthesiser(SEED + 200 + shard)
    clips: list[np.ndarray | None] = []
    for line in lines:
        rng = generator_for("nbest", line.id)
        clean = speak_clean(synthesiser, line.text, ALL_VOICES[line.voice], rng)
        noisy = add_noise(clean, rng.uniform(*SNR_RANGE), rng.uniform(*BETA_RANGE), rng)
        clips.append(noisy if fits(clean) else None)
    return clips


def speak_lines(lines: Sequence[Line], processes: int) -> tuple[list[Line], list[np.ndarray]]:
    """The lines that fit the recogniser's window, and their clips."""
    tasks = [(shard, list(lines[shard::SHARDS])) for shard in range(SHARDS)]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        spoken = pool.map(speak_shard, tasks, chunksize=1)
    clips = [spoken[index % SHARDS][index // SHARDS] for index in range(len(lines))]
    kept = [index for index, clip in enumerate(clips) if clip is not None]
    return [lines[index] for index in kept], [clips[index] for index in kept]


def recognise_lists(model: Path, clips: Sequence[np.ndarray], ids: Sequence[str], method: str) -> list[list[str]]:
    """The n-best list of each clip, best first, as the workflow makes them."""
    import torch

    from utterflow.asr.recognise import recognise
    from utterflow.asr.whisper import load_whisper
    from utterflow.config.asr import AsrVariant

    cfg = AsrVariant(model=str(model), diversity_method=method, num_hypotheses=HYPOTHESES, batch_size=BATCH)
    whisper = load_whisper(model, torch.device("cpu"), torch.float32)
    found = recognise(whisper, clips, ids, cfg)
    return [[hypothesis.text for hypothesis in row.hypotheses] for row in found]


def make_lists(folder: Path, model: Path, parts: dict[str, list[Sentence]], processes: int) -> None:
    """Speak, recognise, and write train.jsonl and devel.jsonl: id, hypotheses, sentence, labels."""
    import torch

    torch.set_num_threads(1)
    planned = plan_lists(parts)
    lines, clips = speak_lines(planned, processes)
    lists = recognise_lists(model, clips, [line.id for line in lines], METHOD)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "devel"):
        rows = [
            {"id": line.id, "input": hypotheses, "output": line.text, **line.labels}
            for line, hypotheses in zip(lines, lists, strict=True)
            if line.split == split and hypotheses
        ]
        write_json_lines(folder / f"{split}.jsonl", rows)
        print(f"{split}: {len(rows)} lists", flush=True)
    print(f"n-best lists: {len(lines)} of {len(planned)} sentences fit the window", flush=True)


def main() -> None:
    """Command line."""
    demo = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=demo / "nbest")
    parser.add_argument("--model", type=Path, default=demo / "models" / RECOGNISER)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    make_lists(options.folder, options.model, split_sentences(), options.processes)


if __name__ == "__main__":
    main()
