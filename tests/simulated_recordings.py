"""A few simulated trials in hdf5, a lexicon for them, and a tiny encoder's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utterflow.config.signals import CtcEncoder
from utterflow.signals.simulate import Array, simulate_recordings
from utterflow.signals.training import train_ctc

WORDS = {"on": "AA N", "off": "AO F", "now": "N AW", "a": "AH", "sue": "S UW", "see": "S IY", "knee": "N IY"}
PHONES = ("AA", "AH", "AO", "AW", "F", "IY", "N", "S", "UW")


def write_lexicon(folder: Path) -> None:
    """`tokens.txt` and `lexicon.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokens.txt").write_text("".join(f"{name}\n" for name in ("-", *PHONES, "|")))
    (folder / "lexicon.txt").write_text("".join(f"{word} {phones} |\n" for word, phones in WORDS.items()))


def write_sentences(path: Path, count: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    lines = (" ".join(draw.choice(list(WORDS), draw.integers(2, 5))) for _ in range(count))
    path.write_text("".join(f"{line}\n" for line in lines))


def simulate(folder: Path, partition: str, count: int, **changes: Any) -> Path:
    """`<partition>.hdf5` with trials of 8 channels and 2 sessions; the lexicon is made on the way."""
    write_lexicon(folder)
    block = ("train", "val", "test").index(partition)
    write_sentences(folder / f"{partition}.txt", count, block)
    simulate_recordings(
        sentences=folder / f"{partition}.txt",
        tokens=folder / "tokens.txt",
        lexicon=folder / "lexicon.txt",
        partition=partition,
        block=block,
        limit=None,
        array=Array(**{"channels": 8, "sessions": 2, "noise": 0.1, "drift": 0.0, "seed": 1, **changes}),
        cfg={},
        code="code",
        recordings=folder / f"{partition}.hdf5",
        meta=folder / f"{partition}.meta.json",
    )
    return folder / f"{partition}.hdf5"


def tiny_encoder(**changes: Any) -> CtcEncoder:
    return CtcEncoder.model_validate(
        {
            "recordings": "simulated",
            "tokens": "tokens.txt",
            "smoothing": 1.0,
            "patch_size": 4,
            "patch_stride": 2,
            "dim": 48,
            "layers": 1,
            "heads": 4,
            "feedforward": 96,
            "dropout": 0.1,
            "white_noise": 0.1,
            "steps": 8,
            "batch_size": 8,
            "learning_rate": 5e-3,
            "warmup_steps": 5,
            "evaluate_every": 4,
            **changes,
        }
    )


def train(folder: Path, out: Path, cfg: CtcEncoder, fold: str = "full", state: Path | None = None) -> Path:
    """Train on the recordings in `folder`; the folder with the encoder's files."""
    train_ctc(
        train=[folder / "train.hdf5"],
        val=[folder / "val.hdf5"],
        tokens=folder / "tokens.txt",
        fold=fold,
        cfg=cfg,
        code="code",
        state=state or out / "state",
        threads=1,
        model=out / fold / "model.safetensors",
        config=out / fold / "config.json",
        history=out / fold / "history.jsonl",
        metrics=out / fold / "metrics.json",
        meta=out / fold / "model.meta.json",
    )
    return out / fold


def change_trial(path: Path, name: str, change: Any) -> None:
    """Apply `change` to the group of a trial."""
    with h5py.File(path, "r+") as file:
        change(file[name])
