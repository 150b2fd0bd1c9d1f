"""Snakemake that looks after its cluster jobs every second: `python quick_snakemake.py <arguments of snakemake>`.

The Slurm plugin waits 20 s and more between two looks, and no option brings that down to what a test wants. Only the
main process is changed; its jobs start `python -m snakemake` as ever.
"""

import asyncio
import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

SECONDS = 1.0


async def sleep(_: RemoteExecutor) -> None:
    await asyncio.sleep(SECONDS)


if __name__ == "__main__":
    RemoteExecutor.sleep = sleep
    sys.argv[0] = "snakemake"
    main(sys.argv[1:])
