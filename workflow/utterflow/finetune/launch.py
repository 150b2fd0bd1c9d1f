"""Start the processes of a training: by torchrun on this machine, or by srun and torchrun on several nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import utterflow
from utterflow.config.training import Training
from utterflow.errors import UserError
from utterflow.finetune import worker
from utterflow.finetune.processes import LAST_LINES, die_with_parent, read_crash, read_error
from utterflow.jobs import log

GRACE_SECONDS = 20
FIRST_PORT, PORTS = 20_000, 20_000
# Each node's torchrun is told which one it is. Rank 0 is then on the first node, whose name all others can look up.
ON_EACH_NODE = ("sh", "-c", 'exec env PET_NODE_RANK="$SLURM_NODEID" "$@"', "sh")
# How torchrun and Slurm tell of a process that failed. What torchrun prints after it would push away why.
FAILURE = "failed (exitcode:"
SLURM_LINES = ("srun: error:", "slurmstepd")
SIGNS = 10
# What of a job's own variables a step may inherit: others describe the step that we are in, and would bind the new one.
SLURM_IDENTITY = {"SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME", "SLURM_CONF"}


def launch_command(
    training: Training, environment: Mapping[str, str], spec: Path, *, host: str = "localhost", threads: int = 1
) -> list[str]:
    """The command that starts all processes of a training.

    Several nodes: one torchrun on each node of the Slurm job, which meet at `host`, the node where this is called.

    Args:
        environment: where SLURM_JOB_ID and SLURM_JOB_NUM_NODES are looked up.
        spec: file with a `Spec`.
        threads: CPU threads per process.

    Raises:
        UserError: several nodes are wanted outside Slurm, or the job has fewer.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    processes = [f"--nproc-per-node={training.processes_per_node}", "--max-restarts=0"]
    program = ["-m", worker.__name__, str(spec)]
    if training.nodes == 1:
        return [*torchrun, "--standalone", *processes, *program]
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"nodes: {training.nodes}, but this is no job of a Slurm cluster",
            where="nodes",
            fix="write `nodes: 1`, or run on a cluster: snakemake --profile profiles/slurm",
        )
    granted = environment.get("SLURM_JOB_NUM_NODES") or environment.get("SLURM_NNODES")
    if granted is not None and int(granted) < training.nodes:
        raise UserError(
            f"nodes: {training.nodes}, but job {job} has {granted}",
            where="nodes",
            fix="do not set `nodes` for this rule in the profile, or lower it here",
        )
    port = FIRST_PORT + int(job) % PORTS
    return [
        "srun",
        f"--nodes={training.nodes}",
        f"--ntasks={training.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={threads * training.processes_per_node}",
        *([f"--gres=gpu:{training.gpus}"] if training.gpus else []),
        "--overlap",
        "--kill-on-bad-exit=1",
        *ON_EACH_NODE,
        *torchrun,
        f"--nnodes={training.nodes}",
        f"--master-addr={host}",
        f"--master-port={port}",
        *processes,
        *program,
    ]


def launch_environment(environment: Mapping[str, str], *, threads: int, several_nodes: bool) -> dict[str, str]:
    """The environment of training processes.

    `TORCH_FORCE_WEIGHTS_ONLY_LOAD`: no pickle is executed, DeepSpeed's checkpoints included.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if not several_nodes or not name.startswith(("SLURM_", "SRUN_", "SBATCH_")) or name in SLURM_IDENTITY
    }
    library = str(Path(utterflow.__file__).resolve().parents[1])
    paths = [library, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def run_processes(command: Sequence[str], environment: Mapping[str, str], keep_open: Sequence[int] = ()) -> None:
    """Run training processes and log what they print; none of them outlives this function.

    Args:
        keep_open: file descriptors that they inherit.

    Raises:
        UserError: a process failed; with its own message, or with the last lines of output before the failure.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    signs: list[str] = []
    crash: list[str] = []
    told: list[UserError] = []
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
        pass_fds=tuple(keep_open),
    )
    with _interrupted_by_sigterm():
        try:
            for line in process.stdout or ():
                text = line.rstrip()
                if error := read_error(text):
                    told.append(error)
                elif lines := read_crash(text):
                    crash = crash or lines
                elif text:
                    log.info("%s", text)
                    if FAILURE in text or text.startswith(SLURM_LINES):
                        signs.append(text)
                    elif not signs:
                        last.append(text)
            code = process.wait()
        finally:
            end_group(process)
    if told:
        raise told[0]
    if code:
        lines_told = [*(crash or last), *signs[:SIGNS]]
        raise UserError(
            "\n  | ".join([f"a training process failed with code {code}, its last lines:", *lines_told]),
            where=" ".join(command[:1]),
            fix="the whole output stands in the job's log; the next run goes on from the last checkpoint",
        )


def end_group(process: subprocess.Popen[str]) -> None:
    """End a process and its group: torchrun then ends its workers, which are in groups of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt, so that it ends the group too; only the main thread can ask for that."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
