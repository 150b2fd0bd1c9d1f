"""One process of a distributed training: `python -m utterflow.finetune.worker SPEC.json`, started by torchrun."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.finetune.processes import crash_line, die_with_parent, error_line
from utterflow.jobs import log


def main(spec: Path) -> int:
    die_with_parent(signal.SIGKILL)
    _log_to_launcher(int(os.environ["RANK"]))
    _tell(place_line(os.environ))
    try:
        from utterflow.finetune.train import Spec, allow_checkpoint_types, pass_over_shared_memory, run_training

        told = Spec.model_validate(read_json(spec))
        if told.training.get("deepspeed"):
            allow_checkpoint_types()
            if not told.training.get("gpus"):
                pass_over_shared_memory()
        run_training(told)
    except UserError as error:
        _tell(error_line(error))
        return 1
    except Exception as error:
        _tell(crash_line(error))
        raise
    return 0


def place_line(environment: Mapping[str, str]) -> str:
    """Where a process is, for the log: Slurm's name of the node where there is one, and the GPUs that it may use."""
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    devices = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = f", CUDA_VISIBLE_DEVICES={devices}" if devices else ""
    return f"process {environment['RANK']} of {environment['WORLD_SIZE']} on node {node}{gpus}"


def _tell(line: str) -> None:
    """One write for line and line end: all processes write to one pipe, and `print` makes two."""
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), f"{line}\n".encode())


def _log_to_launcher(rank: int) -> None:
    """The first process logs its progress, the others only what is wrong."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"process {rank}: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    log.propagate = False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
