"""What a training asks of a cluster; known without torch, so that the workflow can be parsed quickly."""

from __future__ import annotations

from utterflow.config.training import Training

# Keys of `trainings` that are used up when the training set is mixed, or that only choose a model or targets.
NOT_IN_TRAINING = {"train", "validation", "validation_share", "split_by", "merge", "model"}


def slurm_resources(training: Training) -> dict[str, int | str]:
    """Resources in the words of Snakemake's Slurm executor (2.8), beside threads, memory and time.

    One node: `gpu` GPUs, and `nodes` 1, for `--gpus` alone may spread over nodes. Several nodes: `gres`, which counts
    per node, one task per node, and `mpi`, with which the job is not put into a step of one node; our launcher then
    starts the step over all of them. `tasks_per_gpu` 0 keeps the executor from deriving tasks from GPUs.
    """
    if training.nodes == 1:
        return {"nodes": 1, "gpu": training.gpus} if training.gpus else {"nodes": 1}
    several: dict[str, int | str] = {"nodes": training.nodes, "tasks": training.nodes, "mpi": "srun"}
    if training.gpus:
        several |= {"tasks_per_gpu": 0, "gres": f"gpu:{training.gpus}"}
    return several


def node_threads(training: Training) -> int:
    """CPU threads of all processes of a node."""
    return training.threads * training.processes_per_node
