"""Manifests of short noises: what the stages that read audio are tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from utterflow.files import file_sha256, write_jsonl
from utterflow.records import ManifestRow


def write_manifest(folder: Path, seconds: Sequence[float], describe: Callable[[int], dict[str, Any]]) -> Path:
    """Write a noise per duration and a manifest of them; its path.

    Args:
        describe: the index of a row -> its fields beside id and audio.
    """
    generator = np.random.default_rng(0)
    rows = []
    for index, duration in enumerate(seconds):
        path = folder / f"{index}.wav"
        soundfile.write(path, generator.normal(0, 0.2, int(duration * 16000)), 16000)
        row = ManifestRow(id=f"row{index}", **audio_fields(path), seconds=duration, **describe(index))
        rows.append(row.row())
    write_jsonl(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def audio_fields(path: Path) -> dict[str, Any]:
    """What a manifest's row says of its file."""
    return {"audio": str(path), "audio_sha256": file_sha256(path), "audio_bytes": path.stat().st_size}
