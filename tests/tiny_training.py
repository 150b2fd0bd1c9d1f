"""Fine-tunings of a tiny model that take a second: rows, settings, and one call that runs the rule's function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_lm import save_tiny_lm

from utterflow.files import read_json, read_jsonl, write_jsonl

ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
WHOLE_MODEL = ("model/model.safetensors", "model/config.json", "model/tokenizer.json", "model/chat_template.jinja")
QUICK = {"batch_size": 2, "accumulation": 2, "learning_rate": 0.01, "epochs": 2, "log_every": 3, "max_length": 256}
FULL = {"adapter": {"kind": "none"}}


def make_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows of very different lengths; the answer can be learnt from the prompt."""
    return [
        {
            "id": f"row{number}",
            "task": "copy",
            "messages": [{"role": "user", "content": f"say {number % 7}" + " the lazy dog" * (number * 5 % 13)}],
            "target": f"number {number % 7}",
        }
        for number in range(first, first + count)
    ]


@dataclass(frozen=True)
class Workplace:
    """A folder with a model and data, in which trainings are run."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "pretrained"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def arguments(self, name: str = "run", **training: Any) -> dict[str, Any]:
        """What `finetune` takes, as JSON values but for the outputs."""
        settings = {**QUICK, **training}
        model = str(self.model) if self.model.is_absolute() else f"./{self.model}"
        return {
            "name": name,
            "train": str(self.folder / "train.jsonl"),
            "validation": str(self.folder / "validation.jsonl"),
            "cfg": {
                "training": settings,
                "model": {"model": model},
            },
            "code": "code",
            "state": str(self.state),
            "threads": settings.get("processes", 1),
        }

    def run(self, name: str = "run", **training: Any) -> Path:
        """Train; the folder of the outputs."""
        run_arguments(self.arguments(name, **training), self.folder / name)
        return self.folder / name


def make_workplace(folder: Path, train: int = 24, validation: int = 6, **model: Any) -> Workplace:
    save_tiny_lm(folder / "pretrained", **model)
    write_jsonl(folder / "train.jsonl", make_rows(train))
    write_jsonl(folder / "validation.jsonl", make_rows(validation, first=1000))
    return Workplace(folder)


def run_arguments(arguments: dict[str, Any], out: Path) -> None:
    """Call `finetune` with outputs below `out`."""
    from utterflow.finetune.job import Outputs, finetune

    full = arguments["cfg"]["training"].get("adapter", {}).get("kind") == "none"
    paths = {name: Path(arguments[name]) for name in ("train", "validation", "state")}
    finetune(
        **{**arguments, **paths},
        outputs=Outputs(
            weights=[out / name for name in (WHOLE_MODEL if full else ADAPTER)],
            history=out / "history.jsonl",
            metrics=out / "metrics.json",
            rejected=out / "rejected.jsonl",
            meta=out / "training.meta.json",
        ),
    )


def results(out: Path) -> dict[str, bytes]:
    """Everything that must be the same, by file name."""
    names = [*ADAPTER, *WHOLE_MODEL, "history.jsonl", "metrics.json", "rejected.jsonl"]
    return {name: (out / name).read_bytes() for name in names if (out / name).is_file()}


def history(out: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(out / "history.jsonl")]


def metrics(out: Path) -> dict[str, Any]:
    return dict(read_json(out / "metrics.json"))


def train_until_killed(arguments: dict[str, Any], out: Path, where: str, step: int) -> None:
    """Train, and kill this process before the trainer's callback `where` of a step."""
    import os
    import signal

    from utterflow.finetune.trainer import Watch

    original = getattr(Watch, where)

    def replaced(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, args, state, control, **more)

    setattr(Watch, where, replaced)
    run_arguments(arguments, out)
