"""Who answers: a server or a local model, as the configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utterflow.llm.api import open_server
from utterflow.llm.ask import Backend
from utterflow.rationale.settings import Settings


@dataclass(frozen=True)
class Machine:
    """What the job was given."""

    threads: int
    gpus: int
    vllm_python: str
    budget: float | None  # what this job may spend


def machine_of(placed: Mapping[str, Any], threads: int, gpus: int) -> Machine:
    """A job's machine out of its resources (`inputs.PLACEMENT`)."""
    budget = placed["job_budget"]
    return Machine(threads, gpus, str(placed["vllm_python"]), float(budget) if budget else None)


def open_backend(settings: Settings, machine: Machine) -> Backend:
    """The back end of a rationale; `close` it at the end.

    Raises:
        UserError: the model's folder is missing or incomplete, or the device is not there.
    """
    cfg = settings.rationale
    if settings.server:
        return open_server(settings.server, temperature=cfg.temperature, budget=machine.budget)
    from utterflow.llm.local import Local, open_local

    assert settings.model is not None and cfg.backend != "api"
    local = Local(
        backend=cfg.backend,
        temperature=cfg.temperature,
        thinking=cfg.thinking,
        batch_size=cfg.batch_size,
        device=cfg.device,
        threads=machine.threads,
        gpus=machine.gpus,
        vllm_python=machine.vllm_python,
    )
    return open_local(settings.model, local)


def device_of(settings: Settings, machine: Machine) -> str:
    """Where answers are made, for the side file."""
    if settings.server:
        return "server"
    if settings.rationale.backend == "vllm":
        return "cuda" if machine.gpus else "cpu"
    from utterflow.models.devices import choose_device, device_name

    return device_name(choose_device(settings.rationale.device))
