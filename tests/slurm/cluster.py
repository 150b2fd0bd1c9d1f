"""A throw-away Slurm cluster on this machine: controller and nodes are the real programs, on loopback, as root.

Everything (configuration, sockets, spool, logs) lies in one folder; the machine's own Slurm configuration is not
touched. GPUs are counted devices without hardware behind them: Slurm hands them out as it hands out real ones.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "slurmstepd")
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "sinfo", "scontrol")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
SLURM_VARIABLES = ("SLURM", "SBATCH", "SRUN", "SINFO", "SQUEUE", "CUDA_VISIBLE_DEVICES")
SOCKET_PATH_LIMIT = 90  # a Unix socket's path has at most 107 bytes
FIELD_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Node:
    """A node as Slurm is told of it, whatever this machine has."""

    name: str
    gpus: int = 0
    cpus: int = max(8, 2 + (os.cpu_count() or 1))
    memory_mb: int = 16_000

    @property
    def partition(self) -> str:
        return "gpu" if self.gpus else "cpu"


NODES = (Node("c1"), Node("c2"), Node("g1", gpus=2), Node("g2", gpus=2))


@dataclass
class Cluster:
    """A cluster that runs in `root`."""

    root: Path
    nodes: tuple[Node, ...] = NODES
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """For the program under test: this cluster's commands first on PATH."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(SLURM_VARIABLES)}
        return {**own, "PATH": f"{self.root}/bin:{own.get('PATH', SYSTEM_PATH)}"}

    def run(self, *command: str) -> str:
        """What one Slurm command prints; the call is not recorded."""
        environment = {**self.environment(), "PATH": SYSTEM_PATH, "SLURM_CONF": f"{self.root}/slurm.conf"}
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True, timeout=60)
        return done.stdout

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of each call of a Slurm program by the program under test and its jobs, oldest first."""
        recorded = (path.read_text().split(FIELD_SEPARATOR) for path in sorted((self.root / "calls").iterdir()))
        return [call[1:] for call in recorded if call[0] == program]

    def queue(self) -> list[str]:
        """Ids of the jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%A").split()

    def cancel_all(self) -> None:
        if jobs := self.queue():
            self.run("scancel", *jobs)

    def logs(self, lines: int = 30) -> str:
        """The ends of the daemons' logs."""
        tails = [
            f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted((self.root / "log").iterdir())
        ]
        return "\n".join(tails)


def missing_programs() -> list[str]:
    return [name for name in (*DAEMONS, *CLIENTS) if not shutil.which(name, path=SYSTEM_PATH)]


@contextmanager
def running_cluster(root: Path) -> Iterator[Cluster]:
    """A cluster for the length of the block.

    Args:
        root: a short path to a new folder; every folder above it must be open to others (o+x), or munged refuses it.
    """
    assert len(str(root)) <= SOCKET_PATH_LIMIT, f"too long for a socket's path: {root}"
    cluster = Cluster(root)
    for name in ("bin", "calls", "dev", "log", "state"):
        (root / name).mkdir(parents=True)
    _write_configuration(cluster)
    _write_commands(cluster)
    try:
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def _write_configuration(cluster: Cluster) -> None:
    root, host = cluster.root, socket.gethostname().split(".")[0]
    controller, *ports = _free_ports(1 + len(cluster.nodes))
    lines = [
        "ClusterName=throwaway",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={controller}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={root}/munge.sock",
        "CredType=cred/munge",
        "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool.%n",
        f"SlurmctldPidFile={root}/slurmctld.pid",
        f"SlurmdPidFile={root}/slurmd.%n.pid",
        f"SlurmctldLogFile={root}/log/slurmctld.log",
        f"SlurmdLogFile={root}/log/slurmd.%n.log",
        "MpiDefault=none",
        "AccountingStorageType=accounting_storage/none",
        # Memory limits are kept without control groups: by sampling, every second.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=1",
        "JobAcctGatherParams=OverMemoryKill",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SchedulerParameters=sched_min_interval=50000,sched_interval=2,bf_interval=2,batch_sched_delay=0",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        "ReturnToService=2",
        "MinJobAge=300",
        "KillWait=2",
        "CompleteWait=0",
    ]
    devices = []
    for node, port in zip(cluster.nodes, ports, strict=True):
        gres = f" Gres=gpu:{node.gpus}" if node.gpus else ""
        lines.append(
            f"NodeName={node.name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={node.cpus} RealMemory={node.memory_mb}{gres}"
        )
        for index in range(node.gpus):
            device = root / "dev" / f"{node.name}-{index}"
            os.mknod(device, 0o020666, os.makedev(1, 3))  # a character device, or Slurm sets no CUDA_VISIBLE_DEVICES
            devices.append(f"NodeName={node.name} Name=gpu File={device}\n")
    for partition in ("cpu", "gpu"):
        names = ",".join(node.name for node in cluster.nodes if node.partition == partition)
        lines.append(f"PartitionName={partition} Nodes={names} MaxTime=1-00:00:00 DefaultTime=5 DefMemPerCPU=100")
    (root / "slurm.conf").write_text("\n".join(lines) + "\n")
    (root / "gres.conf").write_text("".join(devices))
    key = root / "munge.key"
    key.write_bytes(os.urandom(256))
    key.chmod(0o400)


def _write_commands(cluster: Cluster) -> None:
    """Slurm's commands, each recording its call in a file of its own.

    They set SLURM_CONF, which the executor plugin takes out of the environment before its `srun`.
    """
    for name in CLIENTS:
        real = shutil.which(name, path=SYSTEM_PATH)
        command = cluster.root / "bin" / name
        command.write_text(
            "#!/bin/sh\n"
            f"{{ printf '%s' {name}; for item; do printf '\\037%s' \"$item\"; done; }} "
            f"> {cluster.root}/calls/$(date +%s.%N).$$\n"
            f'SLURM_CONF={cluster.root}/slurm.conf exec {real} "$@"\n'
        )
        command.chmod(0o755)


def _start(cluster: Cluster) -> None:
    root = cluster.root
    files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    places = [f"--{option}={root / name}" for option, name in files.items()]
    _spawn(cluster, "munged", "--foreground", *places, f"--log-file={root}/log/munged.log")
    _wait(cluster, "munged", (root / "munge.sock").is_socket)
    _spawn(cluster, "slurmctld", "-D", "-i")
    _wait(cluster, "the controller", lambda: "UP" in cluster.run("scontrol", "ping"))
    for node in cluster.nodes:
        _spawn(cluster, "slurmd", "-D", "-N", node.name)
    idle = ["idle"] * len(cluster.nodes)
    _wait(cluster, "the nodes", lambda: cluster.run("sinfo", "--noheader", "--Node", "--format=%t").split() == idle)


def _spawn(cluster: Cluster, program: str, *arguments: str) -> None:
    """Start a daemon that ends with this process, however this process ends."""
    name = " ".join([program, *arguments[-1:]]) if program == "slurmd" else program
    with (cluster.root / "log" / f"{name}.out").open("wb") as log:
        cluster.daemons[name] = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", program, *arguments],
            env={**cluster.environment(), "PATH": SYSTEM_PATH, "SLURM_CONF": f"{cluster.root}/slurm.conf"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(cluster: Cluster, what: str, ready: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if ready():
                return
        except subprocess.CalledProcessError:
            pass
        if ended := [name for name, daemon in cluster.daemons.items() if daemon.poll() is not None]:
            raise RuntimeError(f"ended early: {', '.join(ended)}\n{cluster.logs()}")
        time.sleep(0.05)
    raise TimeoutError(f"{what}: not ready after {seconds:g} s\n{cluster.logs()}")


def _stop(cluster: Cluster) -> None:
    """End the jobs first, whose processes would outlive the daemons; then these, the controller last but one."""
    try:
        end = time.monotonic() + 15
        cluster.cancel_all()
        while cluster.queue() and time.monotonic() < end:
            time.sleep(0.1)
    except (subprocess.SubprocessError, OSError):
        pass
    for daemon in reversed(cluster.daemons.values()):
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
