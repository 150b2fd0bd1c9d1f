"""Rules `finetune` and `finetune_full`: mixed SFT rows -> an adapter, or a model trained in full."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from utterflow.config.language_models import LanguageModel
from utterflow.config.training import Training
from utterflow.errors import UserError
from utterflow.files import digest_of, read_json, write_json, write_jsonl
from utterflow.finetune.checkpoints import FINAL, clear, is_complete, locked, prepare
from utterflow.finetune.data import STAGE, EncodedSet, encode_set, log_set, tokens_seen
from utterflow.finetune.launch import launch_command, launch_environment, run_processes
from utterflow.finetune.records import HistoryRow, TrainingMetrics
from utterflow.finetune.saving import place, place_weights
from utterflow.finetune.settings import check_settings, is_distributed, result_settings, training_of
from utterflow.finetune.train import WEIGHTS, Spec, run_training
from utterflow.jobs import check_rejected, log
from utterflow.models.folders import model_digest, model_folder_of
from utterflow.models.kinds import TEXT, kind_of
from utterflow.models.loading import check_model_folder
from utterflow.provenance import Stopwatch, input_digest, package_versions, write_meta
from utterflow.records import RejectedRow


@dataclass(frozen=True)
class Outputs:
    """Files of the rule; `weights` are the files of the adapter or model."""

    weights: Sequence[Path]
    history: Path
    metrics: Path
    rejected: Path
    meta: Path


def finetune(
    *,
    name: str,
    train: Path,
    validation: Path,
    cfg: Mapping[str, Any],
    code: str,
    state: Path,
    threads: int,
    outputs: Outputs,
) -> None:
    """Train one model as `cfg` (`training`, `model`) says, or go on with it, or only put out what is finished.

    Args:
        state: folder of the project's private state.
        threads: CPU threads of all processes of a node.

    Raises:
        UserError: model, data or settings cannot be used, too many rows were rejected, or a process failed.
    """
    watch = Stopwatch()
    training, model = training_of(cfg["training"]), LanguageModel.model_validate(cfg["model"])
    check_settings(training, model)
    folder = model_folder_of(model)
    check_model_folder(folder)
    weights = model_digest(folder)
    templates = [Path(model.chat_template)] if model.chat_template else []
    sets = _encode(folder, model, training, train, validation)
    digest = digest_of(
        {
            "settings": result_settings(training, model),
            "code": code,
            "data": [input_digest(path) for path in (train, validation, *templates)],
            "recordings": {path: sha256 for found in sets.values() for path, sha256 in found.recordings.items()},
            "model": weights,
            "packages": training_packages(),
        }
    )
    own = state / STAGE / digest[:32]
    with locked(own) as lock:
        resume = prepare(own)
        if is_complete(own / FINAL):
            log.info("the training is finished already: %s", own / FINAL)
        else:
            _save_sets(sets, own / "data")
            spec = Spec(
                name=name,
                training=dict(cfg["training"]),
                model=dict(cfg["model"]),
                folder=folder,
                state=own,
                tensorboard=state / "tensorboard" / name,
                resume=resume,
                lengths=sets["train"].lengths,
                evaluates=_has_rows(sets.get("validation")),
                threads=max(1, threads // training.processes_per_node),
            )
            _run(spec, training, own, lock)
        _put_out(own / FINAL, sets, training, outputs)
        clear(own)
    timing = read_json(own / FINAL / "timing.json")
    metrics = read_json(outputs.metrics)
    share = timing["steps_of_this_run"] / max(metrics["steps"], 1)
    per_second = round(metrics["tokens_seen"] * share / max(timing["training_seconds"], 1e-9), 1)
    write_meta(
        outputs.meta,
        rule=STAGE,
        cfg=cfg,
        code=code,
        inputs=[train, validation, *templates],
        outputs={
            **{f"{path.name}": path for path in outputs.weights},
            HistoryRow.RECORD: outputs.history,
            TrainingMetrics.RECORD: outputs.metrics,
            RejectedRow.RECORD: outputs.rejected,
        },
        seconds=watch.seconds(),
        rows=metrics["rows"],
        device=timing["device"],
        extra={
            "model": str(folder),
            "model_digest": weights,
            "threads": threads,
            "tokens_per_second": per_second,
            **{name: value for name, value in timing.items() if name != "device"},
            "packages": {**package_versions(), **training_packages()},
        },
    )


def training_packages() -> dict[str, str]:
    """Versions of what trains: a checkpoint is not gone on with under another one."""
    wanted = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
    versions: dict[str, str] = {}
    for name in wanted:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def _encode(
    folder: Path, model: LanguageModel, training: Training, train: Path, validation: Path
) -> dict[str, EncodedSet]:
    """Both sets as token ids; `validation` is not among them where its file is empty.

    Raises:
        UserError: too many rows were rejected, none is left to train on, or DeepSpeed cannot train on such a mixture.
    """
    kind = kind_of(model)
    processor = kind.load_processor(folder, model)
    sets: dict[str, EncodedSet] = {}
    for name, path in (("train", train), ("validation", validation)):
        found = encode_set(path, lambda row: kind.encode_row(processor, row)[1:], training, train=name == "train")
        if found is not None:
            log_set(name, found)
            check_rejected(found.rejected, found.statistics.rows + found.statistics.rejected, training.max_rejected)
            sets[name] = found
    if "train" not in sets or not sets["train"].lengths:
        raise UserError("no row to train on", where=str(train), fix="look at the mixture under `train`")
    if kind is not TEXT and any(encoded.all_have_audio is False for encoded in sets.values()):
        _check_mixture(training)
    return sets


def _check_mixture(training: Training) -> None:
    """Raises a UserError where processes would wait for each other's encoder, or mistake each other's gradients.

    DeepSpeed adds up gradients in the order in which they come, and cut weights as they are used; both differ between
    a process whose batch has recordings and one whose batch has none.
    """
    trains = training.adapter.audio_encoder or training.adapter.projector
    if training.deepspeed is None or training.world_size == 1 or not (trains or training.deepspeed.stage == 3):
        return
    raise UserError(
        "DeepSpeed cannot train this where some rows have recordings and some have none",
        where="deepspeed",
        fix="leave `deepspeed` out"
        + (", or leave encoder and projector as they are" if trains and training.deepspeed.stage < 3 else "")
        + (", or write stage 2" if not trains else "")
        + ", or leave out the rows without recordings",
    )


def _has_rows(encoded: EncodedSet | None) -> bool:
    return encoded is not None and len(encoded.lengths) > 0


def _save_sets(sets: Mapping[str, EncodedSet], folder: Path) -> None:
    """Encoded sets on disk, from where all processes map them into memory."""
    from datasets import disable_progress_bars  # type: ignore[import-untyped]

    disable_progress_bars()
    for name, encoded in sets.items():
        if _has_rows(encoded):
            encoded.sequences.save_to_disk(str(folder / name))


def _run(spec: Spec, training: Training, own: Path, lock: int) -> None:
    if not is_distributed(training):
        run_training(spec)
        return
    path = own / "spec.json"
    write_json(path, spec.model_dump(mode="json"))
    several = training.nodes > 1
    command = launch_command(training, os.environ, path, host=socket.gethostname(), threads=spec.threads)
    log.info("starting %d processes: %s", training.world_size, " ".join(command))
    environment = launch_environment(os.environ, threads=spec.threads, several_nodes=several)
    run_processes(command, environment, keep_open=[lock])
    if not is_complete(own / FINAL):
        raise UserError("the training processes ended without a result", where=str(own), fix="see the job's log")


def _put_out(final: Path, sets: Mapping[str, EncodedSet], training: Training, outputs: Outputs) -> None:
    """Files of the rule, from `final/`; weights as hard links where the file system has them."""
    place_weights(final / WEIGHTS, list(outputs.weights))
    place(final / "history.jsonl", outputs.history)
    rejected = [row for encoded in sets.values() for row in encoded.rejected]
    write_jsonl(outputs.rejected, (row.row() for row in rejected))
    write_json(outputs.metrics, _metrics(read_json(final / "result.json"), sets, training).row())


def _metrics(result: Mapping[str, Any], sets: Mapping[str, EncodedSet], training: Training) -> TrainingMetrics:
    statistics = {name: encoded.statistics for name, encoded in sets.items()}
    out, lost = (sum(getattr(item, key) for item in statistics.values()) for key in ("rows", "rejected"))
    return TrainingMetrics(
        adapter=training.adapter.kind,
        effective_batch=training.batch_size * training.accumulation * training.world_size,
        processes=training.world_size,
        tokens_seen=tokens_seen(sets["train"].lengths, training, result["epochs"]),
        stopped_early=result["steps"] < result["planned_steps"],
        train=statistics["train"],
        validation=statistics.get("validation"),
        rows={"in": out + lost, "out": out, "rejected": lost},
        **result,
    )
