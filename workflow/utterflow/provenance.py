"""Where a result comes from: the side file that stands beside every output."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utterflow import __version__
from utterflow.files import file_sha256, read_json, write_json

SUFFIX = ".meta.json"
PACKAGES = (
    "snakemake",
    "torch",
    "transformers",
    "numpy",
    "av",
    "soxr",
    "rapidfuzz",
    "jiwer",
    "pydantic",
    "peft",
    "trl",
    "accelerate",
    "deepspeed",
    "h5py",
    "kenlm",
    "numba",
    "pyctcdecode",
    "llguidance",
    "openai",
    "httpx2",
    "whisper_normalizer",
)


def side_file(output: Path) -> Path:
    """The side file that describes an output: `x.jsonl` and `x.rejected.jsonl` share `x.meta.json`."""
    return output.with_name(output.name.split(".")[0] + SUFFIX)


def input_digest(path: Path) -> str:
    """SHA-256 of an input; taken from the side file of the job that made it, where there is one.

    So a large file is hashed once, by its maker, and not again by each of its readers. A file that was changed after
    its side file was written is hashed.
    """
    side = side_file(path)
    if side != path and side.is_file() and side.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        recorded = read_json(side).get("outputs", {}).get(path.name)
        if recorded:
            return str(recorded)
    return file_sha256(path)


class Stopwatch:
    """Wall seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        return round(time.perf_counter() - self._start, 3)


def write_meta(
    path: Path,
    *,
    rule: str,
    cfg: Mapping[str, Any],
    code: str,
    inputs: Iterable[Path],
    outputs: Mapping[str, Path],
    seconds: float,
    rows: Mapping[str, int] | None = None,
    device: str = "cpu",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the side file of a job, after its outputs.

    Args:
        outputs: record kind (e.g. `nbest/1`) -> file.
        rows: counts `in`, `out`, `rejected`; others where a stage has them.
    """
    write_json(
        path,
        {
            "rule": rule,
            "config": dict(cfg),
            "code": code,
            "inputs": {str(item): input_digest(item) for item in inputs if item.is_file()},
            "outputs": {item.name: file_sha256(item) for item in outputs.values()},
            "records": {item.name: kind for kind, item in outputs.items()},
            "rows": dict(rows or {}),
            "device": device,
            "seconds": seconds,
            "host": socket.gethostname(),
            "python": platform.python_version(),
            "packages": package_versions(),
            **(extra or {}),
        },
    )


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    versions = {"utterflow": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
