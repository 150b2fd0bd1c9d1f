"""What a training process and the one that started it have in common."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import traceback

from utterflow.errors import UserError

ERROR_LINE = "utterflow-error: "
CRASH_LINE = "utterflow-crash: "
PR_SET_PDEATHSIG = 1
LAST_LINES = 30


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask Linux to send this process a signal when its parent is gone, killed without a chance to clean up."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def error_line(error: UserError) -> str:
    """How a training process tells its error to the process that started it."""
    return ERROR_LINE + json.dumps({"what": error.what, "where": error.where, "fix": error.fix})


def read_error(line: str) -> UserError | None:
    """The error that a line of output tells, if it tells one."""
    _, found, told = line.partition(ERROR_LINE)
    if not found:
        return None
    parts, _ = json.JSONDecoder().raw_decode(told)  # another process may have written on the same line
    return UserError(parts["what"], where=parts["where"], fix=parts["fix"])


def crash_line(error: Exception) -> str:
    """How a training process tells an error that nobody foresaw: with the end of its traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return CRASH_LINE + json.dumps(lines[-LAST_LINES:])


def read_crash(line: str) -> list[str]:
    """The end of the traceback that a line of output tells, if it tells one."""
    _, found, told = line.partition(CRASH_LINE)
    return [str(item) for item in json.JSONDecoder().raw_decode(told)[0]] if found else []
