"""What every rule's script does around its one function: log, plain errors, progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from utterflow.errors import UserError
from utterflow.records import RejectedRow

log = logging.getLogger("utterflow")

# What a scheduler tells a job: its number there, and the GPUs that it may use.
SCHEDULER_VARIABLES = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Log to the rule's log file; errors of user or system end the process with a message and no traceback."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    log.info("%s", _whereabouts(os.environ))
    try:
        yield
        log.info("done")
    except UserError as error:
        log.error("%s", error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        log.error("the system refused: %s%s", error.strerror or error, where)
        print(f"error: the system refused: {error.strerror or error}{where}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        log.warning("interrupted; finished rows are kept and the next run goes on from them")
        sys.exit(130)
    except Exception:
        log.exception("the job broke; this is a fault of the workflow or of its environment, please report it")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _whereabouts(environment: Mapping[str, str]) -> str:
    given = [f"{name}={environment[name]}" for name in SCHEDULER_VARIABLES if name in environment]
    return ", ".join([f"host {os.uname().nodename}", f"process {os.getpid()}", *given])


def check_rejected(rejected: Sequence[RejectedRow], total: int, limit: float) -> None:
    """Log why rows were rejected; too many of them end the job.

    The reasons stand in the log, since Snakemake removes the files of a failed job.

    Raises:
        UserError: more than `limit` (a share) of `total` rows were rejected.
    """
    kinds = Counter(row.reason.split(":")[0] for row in rejected).most_common(20)
    for kind, count in kinds:
        first = next(row for row in rejected if row.reason.startswith(kind))
        log.warning("%d rejected as %s; first: %s, %s", count, kind, first.id, first.reason)
    if total and len(rejected) / total > limit:
        raise UserError(
            f"{len(rejected)} of {total} rows were rejected, more than max_rejected {limit:g} allows; "
            f"the commonest reason: {kinds[0][0]}",
            where=f"{rejected[0].id}: {rejected[0].reason}",
            fix="the kinds of reasons stand in the job's log; mend the rows, or raise `max_rejected`",
        )


class Progress:
    """Logs rows done and left, with rate and time to go, at most every `every` seconds."""

    def __init__(self, total: int, unit: str = "rows", every: float = 10.0) -> None:
        self.total, self.unit, self.every = total, unit, every
        self.done = 0
        self._start = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self._last >= self.every or self.done >= self.total:
            rate = self.done / max(now - self._start, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            log.info("%d/%d %s, %.2f/s, %.0f s to go", self.done, self.total, self.unit, rate, left)
            self._last = now
