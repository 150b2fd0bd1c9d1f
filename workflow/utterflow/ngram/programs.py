"""Running other programs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LAST_LINES = 12


def find_program(*names: str) -> str | None:
    """The first of these programs that is there: beside this Python, where pip puts programs, or on the path."""
    beside = str(Path(sys.executable).parent)
    return next(
        (found for name in names for place in (beside, None) if (found := shutil.which(name, path=place))), None
    )


def run_program(command: Sequence[object], folder: Path) -> str | None:
    """Run a program in a folder; None where it ends well, otherwise the end of what it said."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return last_lines(done.stdout) or f"exit status {done.returncode}" if done.returncode else None


def last_lines(text: str) -> str:
    """The end of a program's output."""
    return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:])
