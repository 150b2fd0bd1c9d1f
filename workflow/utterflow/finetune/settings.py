"""A fine-tuning's settings in the terms of the libraries: transformers, TRL, PEFT, DeepSpeed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utterflow.config.base import placement_keys
from utterflow.config.language_models import LanguageModel
from utterflow.config.training import DeepSpeed, Training
from utterflow.errors import UserError
from utterflow.finetune.parts import saved_modules, target_names, without_adapters
from utterflow.finetune.resources import NOT_IN_TRAINING
from utterflow.models.parts import Parts

MIN_LR_RATE = 0.1  # of the peak, for cosine_with_min_lr
BITSANDBYTES = "pip install bitsandbytes (it needs an NVIDIA GPU)"
# Keys that do not change what comes out.
NOT_IN_RESULT = {"max_rejected", "report_to"} | placement_keys(Training)


def training_of(cfg: Mapping[str, Any]) -> Training:
    """The section again, from what the rule knows of it: the mixed files stand for `train` and `validation`."""
    mixed = [{"dataset": "mixed"}]
    return Training.model_validate({**cfg, "model": "model", "train": mixed, "validation": mixed})


def result_settings(training: Training, model: LanguageModel) -> dict[str, Any]:
    """What of the configuration the trained weights depend on."""
    return {
        "training": training.model_dump(mode="json", exclude=NOT_IN_TRAINING | NOT_IN_RESULT),
        "model": model.model_dump(mode="json", exclude={"model", "revision"}),
    }


def check_packages(training: Training) -> None:
    """Raises a UserError for an option whose package is not installed."""
    needed = {
        "adapter.quantize": ("bitsandbytes", training.adapter.quantize != "none", BITSANDBYTES),
        "optimizer: paged_adamw_8bit": ("bitsandbytes", training.optimizer == "paged_adamw_8bit", BITSANDBYTES),
        "report_to: wandb": ("wandb", training.report_to == "wandb", "pip install wandb, or `report_to: tensorboard`"),
        "deepspeed": ("deepspeed", training.deepspeed is not None, "pip install deepspeed"),
    }
    for option, (package, wanted, fix) in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"{option} needs the package {package}, which is not installed", fix=fix)


def check_settings(training: Training, model: LanguageModel) -> None:
    """Raises a UserError for settings that cannot work together.

    These are limits of the libraries, found when a job starts; what the configuration alone can tell is checked there.
    """
    check_packages(training)
    targets = training.adapter.targets
    if training.adapter.kind == "lora" and "lm_head" in targets:
        raise UserError(
            "an adapter on lm_head would not be trained: the loss reads that layer's own weights",
            where="adapter.targets",
            fix="take lm_head out of `targets` and write `modules_to_save: [lm_head]`",
        )
    if training.adapter.kind == "none" and model.dtype == "float16":
        raise UserError(
            "float16 weights cannot be trained in full: small gradients become zero",
            where="dtype of the model",
            fix="write `dtype: auto` (or bfloat16) under the model",
        )
    if training.gpus and training.processes_per_node > training.gpus:
        raise UserError(
            f"{training.processes_per_node} processes per node cannot share {training.gpus} GPU(s)",
            where="processes",
            fix="leave `processes` out: one process per GPU",
        )
    if training.adapter.quantize != "none" and training.deepspeed is not None and training.deepspeed.stage == 3:
        raise UserError(
            "quantized weights cannot be cut over processes",
            where="deepspeed.stage",
            fix="write stage 2, or `quantize: none`",
        )


def is_distributed(training: Training) -> bool:
    """Whether the training wants processes of its own; DeepSpeed does even for one."""
    return training.world_size > 1 or training.deepspeed is not None


def steps_per_epoch(training: Training, sequences: int) -> int:
    """Optimizer steps of a pass over so many sequences; the last one may be smaller than the others."""
    batches = math.ceil(math.ceil(sequences / training.batch_size) / training.world_size)
    return math.ceil(batches / training.accumulation)


def total_steps(training: Training, sequences: int) -> int:
    """Optimizer steps of the whole training."""
    return training.max_steps or math.ceil(training.epochs * steps_per_epoch(training, sequences))


def warmup_steps(training: Training, steps: int) -> int:
    return math.ceil(training.warmup_ratio * steps)


def deepspeed_settings(deepspeed: DeepSpeed, *, on_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration; `auto` fields are filled in by transformers from its own settings.

    There is no `optimizer` section: the optimizer is that of other trainings, and nothing is compiled for it.
    """
    zero: dict[str, Any] = {
        "stage": deepspeed.stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
    }
    if deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if deepspeed.stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if deepspeed.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def lora_settings(training: Training, parts: Parts | None = None) -> Any:
    """The `LoraConfig` of a training; `parts`: the model's modules beside its language model."""
    from peft import LoraConfig

    parts = parts or Parts()

    adapter = training.adapter
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]
        lora_dropout=adapter.dropout,
        target_modules=target_names(parts, adapter),
        exclude_modules=without_adapters(parts, adapter),
        modules_to_save=saved_modules(parts, adapter) or None,
        use_rslora=adapter.rslora,
    )


def quantization_settings(training: Training, parts: Parts | None = None) -> Any:
    """The `BitsAndBytesConfig` of a training with a quantized base, else None (QLoRA: arXiv:2305.14314).

    Of a model that listens, the language model alone is quantized: a projector in 4 bits could not be trained in full.
    """
    beside = [name for name in (parts.encoder, parts.projector, *parts.fixed) if name] if parts else []
    whole = ["lm_head", *beside] if beside else None
    if training.adapter.quantize == "none":
        return None
    import torch
    from transformers import BitsAndBytesConfig

    if training.adapter.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=whole)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=whole,
    )


def trainer_settings(
    training: Training, *, folder: Path, steps: int, bf16: bool, evaluates: bool, name: str, workers: int = 0
) -> Any:
    """The `SFTConfig` of a training.

    Args:
        folder: where checkpoints go.
        steps: optimizer steps of the whole training.
        evaluates: there is a validation set.
        name: of the run, where losses are reported.
        workers: processes that make batches ahead.
    """
    from trl.trainer.sft_config import SFTConfig

    interval = "epoch" if training.evaluate_every is None else "steps"
    every = training.evaluate_every or 1
    on_gpu = training.gpus > 0
    settings = SFTConfig(
        output_dir=str(folder),
        seed=training.seed,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.scheduler,
        lr_scheduler_kwargs={"min_lr_rate": MIN_LR_RATE} if training.scheduler == "cosine_with_min_lr" else {},
        warmup_steps=warmup_steps(training, steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optimizer,
        bf16=bf16,
        fp16=False,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        eval_strategy=interval if evaluates else "no",
        eval_steps=every,
        save_strategy=interval,
        save_steps=every,
        save_total_limit=None,
        load_best_model_at_end=evaluates and training.keep_best,
        metric_for_best_model="eval_loss" if evaluates else None,
        greater_is_better=False,
        prediction_loss_only=True,
        restore_callback_states_from_checkpoint=True,
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,
        report_to=[] if training.report_to == "none" else [training.report_to],
        run_name=name,
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        use_cpu=not on_gpu,
        ddp_backend=("nccl" if on_gpu else "gloo") if is_distributed(training) else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=on_gpu,
        deepspeed=deepspeed_settings(training.deepspeed, on_gpu=on_gpu) if training.deepspeed else None,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=training.max_length,
    )
    if on_gpu:
        settings._n_gpu = 1  # a process has one device, however many it sees
    return settings
