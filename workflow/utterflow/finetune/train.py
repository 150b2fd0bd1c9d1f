"""The training itself, as each process runs it: model, trainer, resume, and what is kept at the end."""

from __future__ import annotations

import os
import pickle
import random
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from utterflow.config.language_models import LanguageModel
from utterflow.config.training import Training
from utterflow.errors import UserError
from utterflow.files import write_json, write_jsonl
from utterflow.finetune.batches import EpochSampler, check_packing, make_collator
from utterflow.finetune.checkpoints import FINAL, mark_complete
from utterflow.finetune.data import is_grouped
from utterflow.finetune.parts import check_targets, freeze, training_dtype
from utterflow.finetune.records import HistoryRow
from utterflow.finetune.saving import save_weights, stored_dtype
from utterflow.finetune.settings import (
    lora_settings,
    quantization_settings,
    steps_per_epoch,
    total_steps,
    trainer_settings,
    training_of,
)
from utterflow.finetune.trainer import Finetuner, Watch
from utterflow.jobs import log
from utterflow.models.devices import choose_device, device_name, has_bfloat16
from utterflow.models.kinds import TEXT, kind_of

WEIGHTS = "weights"
MAKERS = 4  # processes that make features of recordings beside a GPU, where there are threads for them


class Spec(BaseModel):
    """What a training process is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    training: dict[str, Any]
    model: dict[str, Any]
    folder: Path
    state: Path
    tensorboard: Path
    resume: Path | None
    lengths: list[int]
    evaluates: bool
    threads: int


def run_training(spec: Spec) -> None:
    """Train, and leave `final/` below the state folder: weights, history, result, timing, marker.

    Raises:
        UserError: the model cannot be loaded or trained so, or memory is too small.
    """
    training, cfg = training_of(spec.training), LanguageModel.model_validate(spec.model)
    _make_deterministic(training, spec.threads)
    try:
        _train(spec, training, cfg)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is too small: {error}",
            fix="lower `batch_size` and raise `accumulation`, write `gradient_checkpointing: true`, or lower "
            "`max_length`",
        ) from None
    except pickle.UnpicklingError as error:
        raise UserError(
            f"the checkpoint holds what may not be loaded: {str(error).splitlines()[0]}",
            where=str(spec.resume),
            fix="delete this folder; training then begins anew",
        ) from None


def _train(spec: Spec, training: Training, cfg: LanguageModel) -> None:
    from datasets import load_from_disk  # type: ignore[import-untyped]
    from transformers import EarlyStoppingCallback, PrinterCallback

    device = choose_device("cuda" if training.gpus else "cpu")
    kind = kind_of(cfg)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(spec.tensorboard)
    steps = total_steps(training, len(spec.lengths))
    bf16 = uses_bfloat16(training, device)
    settings = trainer_settings(
        training,
        folder=spec.state,
        steps=steps,
        bf16=bf16,
        evaluates=spec.evaluates,
        name=spec.name,
        workers=min(MAKERS, spec.threads - 1) if training.gpus and kind is not TEXT else 0,
    )
    device = settings.device
    processor = kind.load_processor(spec.folder, cfg)
    parts = kind.parts(spec.folder)
    model = kind.load_model(
        spec.folder,
        cfg,
        device,
        dtype=training_dtype(cfg, full=not is_adapter(training), bf16=bf16),
        quantization=quantization_settings(training, parts),
    )
    if is_adapter(training):
        check_targets(model, training, parts)
    freeze(model, parts, training.adapter)
    if training.packing and not (training.deepspeed and training.deepspeed.stage == 3):
        check_packing(model, device)
    batch = training.batch_size * training.world_size
    sampler = EpochSampler(spec.lengths, batch, grouped=is_grouped(training), seed=training.seed)
    watch = Watch(sampler, spec.state, steps_per_epoch(training, len(spec.lengths)))
    patience = [EarlyStoppingCallback(training.patience)] if training.patience and spec.evaluates else []
    data = spec.state / "data"
    tokenizer = kind.tokenizer(processor)
    trainer = Finetuner(
        sampler=sampler,
        own_loss=kind is not TEXT,
        model=model,
        args=settings,
        processing_class=tokenizer,
        data_collator=make_collator(
            int(tokenizer.pad_token_id),
            flatten=cfg.attention == "flash_attention_2",
            media=partial(kind.media_inputs, processor),
        ),
        train_dataset=load_from_disk(str(data / "train")),
        eval_dataset=load_from_disk(str(data / "validation")) if spec.evaluates else None,
        peft_config=lora_settings(training, parts) if is_adapter(training) else None,
        callbacks=[watch, *patience],
    )
    trainer.remove_callback(PrinterCallback)
    log.info(
        "training %s on %s in %s: %d steps of %d sequences (batch_size %d x accumulation %d x %d processes)%s",
        *(cfg.model, device_name(device), "bf16" if bf16 else "fp32", steps),
        training.batch_size * training.accumulation * training.world_size,
        *(training.batch_size, training.accumulation, training.world_size),
        f"; going on from {spec.resume.name}" if spec.resume else "",
    )
    start = time.monotonic()
    trainer.train(resume_from_checkpoint=str(spec.resume) if spec.resume else None)
    seconds = time.monotonic() - start
    _keep(spec, training, trainer, processor, seconds=seconds, bf16=bf16, device=device)


def _keep(
    spec: Spec, training: Training, trainer: Any, processor: Any, *, seconds: float, bf16: bool, device: torch.device
) -> None:
    """Write `final/`: all processes take part, for weights may be spread over them; the first one writes."""
    final = spec.state / FINAL
    save_weights(trainer, processor, final / WEIGHTS, stored_dtype(spec.folder) if not is_adapter(training) else None)
    if not trainer.is_world_process_zero():
        return
    state = trainer.state
    history = history_of(state.log_history)
    write_jsonl(final / "history.jsonl", (row.row() for row in history))
    best = state.best_model_checkpoint if training.keep_best and spec.evaluates else None
    write_json(
        final / "result.json",
        {
            "parameters": count_parameters(trainer.model, trainable=False),
            "trainable_parameters": count_parameters(trainer.model, trainable=True),
            "steps": state.global_step,
            "planned_steps": state.max_steps,
            "epochs": round(float(state.epoch or 0), 6),
            "precision": "bf16" if bf16 else "fp32",
            "kept_step": int(Path(best).name.rpartition("-")[2]) if best else state.global_step,
            "best_step": state.best_global_step if spec.evaluates else None,
            "best_eval_loss": state.best_metric if spec.evaluates else None,
            "final_loss": next((row.loss for row in reversed(history) if row.loss is not None), None),
            "final_eval_loss": next((row.eval_loss for row in reversed(history) if row.eval_loss is not None), None),
        },
    )
    first = int(spec.resume.name.rpartition("-")[2]) if spec.resume else 0
    write_json(
        final / "timing.json",
        {
            "training_seconds": round(seconds, 3),
            "steps_of_this_run": state.global_step - first,
            "resumed_from_step": first or None,
            "device": device_name(device),
            "gpu_memory_mb": torch.cuda.max_memory_allocated() // 2**20 if device.type == "cuda" else None,
        },
    )
    mark_complete(final)


def allow_checkpoint_types() -> None:
    """Let DeepSpeed's own checkpoints be read without executing pickles: these types may stand in them."""
    from deepspeed.runtime.fp16.loss_scaler import (  # type: ignore[import-untyped]
        DynamicLossScaler,
        LossScaler,
    )
    from deepspeed.runtime.zero.config import ZeroStageEnum  # type: ignore[import-untyped]
    from deepspeed.utils.tensor_fragment import fragment_address  # type: ignore[import-untyped]

    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])


def pass_over_shared_memory() -> None:
    """Let DeepSpeed's processes on a CPU talk by gloo: else it compiles a transport of its own first, for a minute."""
    from deepspeed import ops  # type: ignore[import-untyped]

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _make_deterministic(training: Training, threads: int) -> None:
    """The same bytes on the same machine: one seed, fixed threads, deterministic kernels where there are any."""
    from transformers import set_seed
    from transformers.utils import logging as transformers_logging

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.filterwarnings("ignore", message=".*deterministic.*")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    set_seed(training.seed)
    random.seed(training.seed)
    np.random.seed(training.seed % 2**32)


def uses_bfloat16(training: Training, device: torch.device) -> bool:
    """Whether the computation is in bfloat16.

    Raises:
        UserError: it was asked for, and the GPU cannot.
    """
    if training.precision == "bf16" and device.type == "cuda" and not has_bfloat16(device):
        raise UserError("this GPU cannot compute in bfloat16", where="precision", fix="write `precision: fp32`")
    return training.precision == "bf16" or (training.precision == "auto" and has_bfloat16(device))


def is_adapter(training: Training) -> bool:
    return training.adapter.kind == "lora"


def history_of(entries: list[dict[str, Any]]) -> list[HistoryRow]:
    """The loss curve without what differs between runs: times and rates."""
    fields = HistoryRow.model_fields
    return [
        HistoryRow(**{name: value for name, value in entry.items() if name in fields})
        for entry in entries
        if "loss" in entry or "eval_loss" in entry
    ]


def count_parameters(model: Any, *, trainable: bool) -> int:
    """Number of weights; those that ZeRO-3 keeps elsewhere count too."""
    return sum(
        int(getattr(weight, "ds_numel", weight.numel()))
        for weight in model.parameters()
        if weight.requires_grad or not trainable
    )
