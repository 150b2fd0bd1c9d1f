"""Training state below `results/.state/finetune/<digest>/`: checkpoints that count only when they are whole.

A checkpoint folder is complete when `complete.json` stands in it, written last and at once, with the size of every
other file. A killed training goes on from the newest complete one. When all is done, `final/` holds what the rule
puts out, marked in the same way, and the checkpoints are deleted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utterflow.errors import UserError
from utterflow.files import read_json, write_json

MARKER = "complete.json"
PREFIX = "checkpoint-"
FINAL = "final"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder for this process and its children; the lock's file descriptor.

    Raises:
        UserError: another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        raise UserError(
            "another process is at this very training",
            where=str(folder),
            fix="wait for it, or end it (a job of an earlier run may still be on the cluster)",
        ) from None
    finally:
        os.close(descriptor)


def mark_complete(folder: Path, *, ended: bool = False) -> None:
    """Write all files of a folder to the disk, then its marker.

    Args:
        ended: no training follows this checkpoint.
    """
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_json(folder / MARKER, {"ended": ended, "files": sizes})


def is_complete(folder: Path) -> bool:
    """Whether the folder has its marker and all files that it lists."""
    if not (folder / MARKER).is_file():
        return False
    sizes = read_json(folder / MARKER)["files"]
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def checkpoints(state: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    found = [path for path in state.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len(PREFIX) :])


def prepare(state: Path) -> Path | None:
    """Delete what a killed training left half-written; the checkpoint to go on from.

    A checkpoint at which training had ended is gone past: what follows is repeated from the one before, so that it
    ends just there again.
    """
    whole = []
    for folder in checkpoints(state):
        if is_complete(folder):
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    if (state / FINAL).is_dir() and not is_complete(state / FINAL):
        shutil.rmtree(state / FINAL)
    going_on = [folder for folder in whole if not read_json(folder / MARKER)["ended"]]
    return going_on[-1] if going_on else None


def prune(state: Path, best: str | None) -> None:
    """Delete complete checkpoints but the newest and the best."""
    kept = {Path(best).name} if best else set()
    for folder in [folder for folder in checkpoints(state) if is_complete(folder)][:-1]:
        if folder.name not in kept:
            shutil.rmtree(folder)


def clear(state: Path) -> None:
    """Delete checkpoints and encoded data of a finished training."""
    for folder in [*checkpoints(state), state / "data"]:
        shutil.rmtree(folder, ignore_errors=True)
