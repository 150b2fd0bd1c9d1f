"""TRL's SFTTrainer with an order of its own, exact validation loss and checkpoints that count only when whole."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from utterflow.errors import UserError
from utterflow.finetune.batches import EpochSampler
from utterflow.finetune.checkpoints import mark_complete, prune
from utterflow.jobs import log
from utterflow.sft.tokenize import IGNORED


class Finetuner(SFTTrainer):
    """Trains on sequences of token ids and labels.

    The order comes from `EpochSampler`, so that it is the same in all processes and after a resume: the library's own
    length-grouped order is drawn from the global random state, which dropout moves on.
    """

    def __init__(self, *, sampler: EpochSampler, own_loss: bool = False, **settings: Any) -> None:
        self._sampler, self._own_loss = sampler, own_loss
        super().__init__(**settings)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        return self._sampler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """No card beside checkpoints."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """On a GPU as the library does it; on the CPU without the logits of the prompt, which it would compute.

        Rows with weights, and models whose own loss the library cannot take over (`own_loss`), are done so everywhere.
        The loss is sum_i w_i * sum_t nll_it / N, with N the answer tokens of all accumulated batches of all processes,
        whatever their weights: as the library scales, and the same where all weights are 1.
        """
        by_itself = self.args.device.type != "cpu" and not self._own_loss and "weights" not in inputs
        if "weights" in inputs and (self.aux_loss_enabled or num_items_in_batch is None):
            raise UserError("the loss of this model takes no weights of rows", fix="leave `weight` out of the rows")
        if by_itself or self.aux_loss_enabled or return_outputs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        losses, _ = answer_losses(model, inputs)
        if "weights" in inputs:
            losses = losses * inputs["weights"]
        return losses.sum() / torch.as_tensor(num_items_in_batch).clamp(min=1) * self.accelerator.num_processes

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Loss per answer token over the whole set, whatever the batches.

        The library takes the mean of each batch and then of the batches, which depends on how rows fall into them.
        """
        model = self.model_wrapped
        model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        for batch in dataloader:
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                sums = torch.stack(answer_losses(model, inputs), dim=-1)
            total += self.accelerator.gather_for_metrics(sums).double().sum(0).cpu()
        loss, tokens = total.tolist()
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]
            label_ids=None,
            metrics={f"{metric_key_prefix}_loss": loss / max(tokens, 1.0)},
            num_samples=len(dataloader.dataset),
        )


def answer_losses(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Summed negative log-probability of the trained tokens of each row, and their number: [rows] each, unweighted.

    Logits are made only where some row of the batch has a trained token next.
    """
    given = {name: value for name, value in inputs.items() if name not in ("labels", "weights")}
    labels = inputs["labels"][:, 1:]
    columns = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
    logits = model(**given, use_cache=False, logits_to_keep=columns).logits
    labels = labels[:, columns]
    trained = labels != IGNORED
    losses = torch.zeros(labels.shape, device=logits.device)
    found = torch.nn.functional.cross_entropy(logits[trained].float(), labels[trained], reduction="none")
    return losses.masked_scatter(trained, found).sum(-1), trained.sum(-1).float()


class Watch(TrainerCallback):
    """Sets the epoch's order, logs progress, refuses a loss that is no number, and completes checkpoints."""

    def __init__(self, sampler: EpochSampler, state: Path, steps_per_epoch: int) -> None:
        self._sampler, self._state, self._steps_per_epoch = sampler, state, steps_per_epoch
        self._start, self._first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start, self._first_step = time.monotonic(), state.global_step

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sampler.set_epoch(state.global_step // self._steps_per_epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint begins a new entry of the loss curve: a resumed training knows no steps before it."""
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        for name in ("loss", "eval_loss"):
            if name in logs and not math.isfinite(logs[name]):
                raise UserError(
                    f"{name} is no longer a number at step {state.global_step}",
                    fix="lower `learning_rate`, raise `warmup_ratio`, or write `precision: fp32`",
                )
        if "loss" in logs:
            done = state.global_step - self._first_step
            left = (time.monotonic() - self._start) / max(done, 1) * (state.max_steps - state.global_step)
            log.info(
                "step %d of %d, epoch %.2f, loss %.4f, learning rate %.3g, %.0f s to go",
                *(state.global_step, state.max_steps, state.epoch or 0, logs["loss"], logs["learning_rate"], left),
            )
        if "eval_loss" in logs:
            log.info("step %d: validation loss %.4f", state.global_step, logs["eval_loss"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            ended = bool(control.should_training_stop)
            mark_complete(self._state / f"checkpoint-{state.global_step}", ended=ended)
            if not ended:
                prune(self._state, state.best_model_checkpoint)
