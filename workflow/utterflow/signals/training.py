"""Rule `train_ctc`: recordings -> a CTC encoder."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torch.nn import functional as F

from utterflow.beams.tokens import read_tokens
from utterflow.config.base import placement_keys
from utterflow.config.signals import CtcEncoder
from utterflow.errors import UserError
from utterflow.files import atomic_writer, digest_of, seed_of, write_json, write_jsonl
from utterflow.jobs import Progress, log
from utterflow.models.devices import choose_device, device_name
from utterflow.provenance import Stopwatch, input_digest, write_meta
from utterflow.records import Record, RejectedRow
from utterflow.signals.checkpoints import EncoderFile, save_weights
from utterflow.signals.data import STAGE, Data, Example, load_data
from utterflow.signals.encoder import Encoder, Sizes

CHECK_EVERY = 50  # steps between two looks at the loss
JITTER = 0.1  # lengths are multiplied by 1 +- this before sorting: batches differ from epoch to epoch


class CtcStep(Record):
    """A line of a CTC training's history."""

    RECORD: ClassVar[str] = "ctc_history/1"
    step: int = Field(ge=1, description="optimizer steps done")
    loss: float = Field(description="mean CTC loss per target class since the line before")
    learning_rate: float = Field(description="of the last step")
    per: float | None = Field(description="greedy phone error rate on `val`, separators included; null without one")


class CtcMetrics(Record):
    """What came out of a CTC training (`metrics.json`)."""

    RECORD: ClassVar[str] = "ctc_metrics/1"
    fold: str
    parameters: int
    steps: int
    best_step: int = Field(description="the step whose weights were kept: the lowest error rate, the first of equals")
    per: float | None = Field(description="greedy phone error rate on `val` at that step, separators included")
    errors: int | None = Field(description="edits on `val` at that step")
    phones: int = Field(description="target classes of `val`")
    trials: dict[str, int] = Field(description="trials that were used, by partition")
    left_out: int = Field(description="train trials of the fold")
    sessions: int
    precision: str
    rejected: list[RejectedRow]


@dataclass(frozen=True)
class Batch:
    features: Tensor  # [B, T, C]
    bins: Tensor  # [B]
    sessions: Tensor  # [B]
    classes: Tensor  # [all targets one after the other]
    lengths: Tensor  # [B]


@dataclass
class Progressed:
    """Where a training stands: all that a checkpoint holds beside model and optimizer."""

    step: int
    history: list[dict[str, Any]]
    best_step: int
    best_errors: int | None
    best: dict[str, Tensor]


def train_ctc(
    *,
    train: Sequence[Path],
    val: Sequence[Path],
    tokens: Path,
    fold: str,
    cfg: CtcEncoder,
    code: str,
    state: Path,
    threads: int,
    model: Path,
    config: Path,
    history: Path,
    metrics: Path,
    meta: Path,
) -> None:
    """Train an encoder on the train partition, or on what fold `fold` leaves of it.

    A killed training goes on from its last checkpoint and, on a CPU with the same number of threads, ends with the
    same bytes as one that was not killed: what is drawn at a step depends on seed and step alone.

    Raises:
        UserError: the recordings cannot be used, too many trials were rejected, or the loss is not a number.
    """
    watch = Stopwatch()
    torch.set_num_threads(threads)
    device = choose_device(cfg.device)
    precision = choose_precision(cfg.precision, device)
    names = read_tokens(tokens)
    digest = digest_of(
        {
            "cfg": {key: value for key, value in cfg.model_dump(mode="json").items() if key not in _not_in_result()},
            "fold": fold,
            "code": code,
            "precision": precision,
            "inputs": [input_digest(path) for path in (*train, *val, tokens)],
        }
    )
    folder = state / STAGE / digest[:32]
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data(train, val, names, fold, cfg, folder)
    sizes = Sizes(data.store.shape[1], len(data.normalisations), len(names.names))
    log.info(
        "fold %s: %d train trials of %d sessions, %d val trials, %d channels; %s, %s",
        fold, len(data.train), sizes.sessions, len(data.val), sizes.channels, device, precision,
    )  # fmt: skip
    torch.manual_seed(seed_of(cfg.seed, "weights"))
    encoder = Encoder(cfg, sizes).to(device)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    done = fit(encoder, data, cfg, names.blank, device, precision, folder / "checkpoint.pt")
    about = EncoderFile(
        encoder=cfg.model_dump(mode="json", exclude=placement_keys(CtcEncoder)),
        fold=fold,
        tokens=list(names.names),
        blank=names.blank,
        channels=sizes.channels,
        sessions=list(data.normalisations),
    )
    phones = sum(len(example.classes) for example in data.val)
    found = CtcMetrics(
        fold=fold,
        parameters=parameters,
        steps=cfg.steps,
        best_step=done.best_step,
        per=_rate(done.best_errors, phones),
        errors=done.best_errors,
        phones=phones,
        trials={"train": len(data.train), "val": len(data.val)},
        left_out=data.left_out,
        sessions=sizes.sessions,
        precision=precision,
        rejected=list(data.rejected),
    )
    save_weights(model, done.best, data.normalisations)
    write_json(config, about.row())
    write_jsonl(history, done.history)
    write_json(metrics, found.row())
    log.info("kept step %d: phone error rate %s on val", done.best_step, found.per)
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[*train, *val, tokens],
        outputs={
            "safetensors": model,
            EncoderFile.RECORD: config,
            CtcStep.RECORD: history,
            CtcMetrics.RECORD: metrics,
        },
        seconds=watch.seconds(),
        rows={
            "in": len(data.train) + len(data.val) + len(data.rejected),
            "out": len(data.train) + len(data.val),
            "rejected": len(data.rejected),
        },
        device=device_name(device),
        extra={"threads": threads, "precision": precision, "parameters": parameters},
    )


def choose_precision(precision: str, device: torch.device) -> str:
    """`auto`: float32 on the CPU, bfloat16 autocast on a GPU."""
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision


def fit(
    encoder: Encoder, data: Data, cfg: CtcEncoder, blank: int, device: torch.device, precision: str, checkpoint: Path
) -> Progressed:
    """Train `encoder` from its checkpoint, or from the start, to the last step.

    Raises:
        UserError: the loss is not a number.
    """
    optimizer = make_optimizer(encoder, cfg)
    done = load_checkpoint(checkpoint, encoder, optimizer)
    if done.step:
        log.info("going on from step %d of %d", done.step, cfg.steps)
    progress = Progress(cfg.steps - done.step, "steps")
    total, count = torch.zeros((), device=device), 0
    for step, batch in _prefetched(data, cfg, done.step, device):
        encoder.train()
        rate = learning_rate(step, cfg)
        for group in optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed_of(cfg.seed, "step", step))
        loss = batch_loss(encoder, augment(batch, cfg), blank, precision)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), cfg.max_grad_norm)
        optimizer.step()
        total, count = total + loss.detach(), count + 1
        progress.advance(1)
        if (step + 1) % cfg.evaluate_every == 0 or step + 1 == cfg.steps:
            _check_loss(total, step, cfg)
            errors = count_errors(encoder, data.val, data.store, cfg.batch_size, blank, device) if data.val else None
            _note(done, encoder, data, CtcStep(
                step=step + 1,
                loss=round(float(total) / count, 6),
                learning_rate=rate,
                per=_rate(errors, sum(len(example.classes) for example in data.val)),
            ), errors)  # fmt: skip
            save_checkpoint(checkpoint, encoder, optimizer, done)
            total, count = torch.zeros((), device=device), 0
        elif (step + 1) % CHECK_EVERY == 0:
            _check_loss(total, step, cfg)
    return done


def make_optimizer(encoder: Encoder, cfg: CtcEncoder) -> torch.optim.Optimizer:
    """AdamW; no decay on biases, norms and session layers, which begin at one or at the identity."""
    parameters = list(encoder.named_parameters())
    free = [item for name, item in parameters if item.ndim < 2 or name.startswith("session.")]
    decayed = [item for name, item in parameters if item.ndim >= 2 and not name.startswith("session.")]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, fused=True)


def learning_rate(step: int, cfg: CtcEncoder) -> float:
    """Of step 0, 1, ...: linear warm-up to the peak, then a cosine that would reach 0 after the last step."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    passed = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))


def batches_of_epoch(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Places of an epoch's batches: trials of similar length together, in an order drawn from seed and epoch."""
    rng = np.random.default_rng(seed_of(seed, "epoch", epoch))
    jittered = np.asarray(lengths) * rng.uniform(1 - JITTER, 1 + JITTER, len(lengths))
    order = [int(place) for place in np.argsort(jittered, kind="stable")]
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batches[int(place)] for place in rng.permutation(len(batches))]


def make_batch(examples: Sequence[Example], store: NDArray[np.float16]) -> Batch:
    """Features padded with zeros to the longest trial, on the CPU."""
    longest = max(example.bins for example in examples)
    features = np.zeros((len(examples), longest, store.shape[1]), dtype=np.float32)
    for row, example in enumerate(examples):
        features[row, : example.bins] = store[example.start : example.start + example.bins]
    return Batch(
        features=torch.from_numpy(features),
        bins=torch.tensor([example.bins for example in examples]),
        sessions=torch.tensor([example.session for example in examples]),
        classes=torch.from_numpy(np.concatenate([example.classes for example in examples]).astype(np.int64)),
        lengths=torch.tensor([len(example.classes) for example in examples]),
    )


def augment(batch: Batch, cfg: CtcEncoder) -> Batch:
    """White noise, an offset per trial and channel, and stretches of time set to zero; draws from torch's state."""
    features = batch.features
    trials, longest, channels = features.shape
    device = features.device
    if cfg.white_noise:
        features = features + cfg.white_noise * torch.randn_like(features)
    if cfg.offset_noise:
        features = features + cfg.offset_noise * torch.randn(trials, 1, channels, device=device)
    if cfg.time_masks and cfg.time_mask_share:
        shape = (trials, cfg.time_masks)
        bins = batch.bins[:, None]
        widths = (torch.rand(shape, device=device) * (cfg.time_mask_share * bins + 1)).long().clamp(max=bins)
        starts = (torch.rand(shape, device=device) * (bins - widths + 1)).long()
        places = torch.arange(longest, device=device)[:, None]
        masked = ((places >= starts[:, None]) & (places < (starts + widths)[:, None])).any(-1)
        features = features.masked_fill(masked[..., None], 0.0)
    return Batch(features, batch.bins, batch.sessions, batch.classes, batch.lengths)


def batch_loss(encoder: Encoder, batch: Batch, blank: int, precision: str) -> Tensor:
    """Mean over the trials of the CTC loss per target class."""
    with torch.autocast(batch.features.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits, frames = encoder(batch.features, batch.bins, batch.sessions)
    logs = logits.float().log_softmax(-1).transpose(0, 1)
    return F.ctc_loss(logs, batch.classes, frames, batch.lengths, blank=blank)


@torch.inference_mode()
def count_errors(
    encoder: Encoder,
    examples: Sequence[Example],
    store: NDArray[np.float16],
    batch_size: int,
    blank: int,
    device: torch.device,
) -> int:
    """Edits between the greedy paths' classes and the targets, summed over the trials."""
    encoder.eval()
    ordered = sorted(examples, key=lambda example: example.bins)
    errors = 0
    for start in range(0, len(ordered), batch_size):
        part = ordered[start : start + batch_size]
        batch = _moved(make_batch(part, store), device)
        logits, frames = encoder(batch.features, batch.bins, batch.sessions)
        for path, length, example in zip(logits.argmax(-1).cpu(), frames.tolist(), part, strict=True):
            errors += Levenshtein.distance(collapse(path[:length].tolist(), blank), example.classes.tolist())
    return errors


def collapse(path: Sequence[int], blank: int) -> list[int]:
    """The classes of a CTC path: repeats joined, blanks left out."""
    return [item for place, item in enumerate(path) if item != blank and (place == 0 or path[place - 1] != item)]


def save_checkpoint(path: Path, encoder: Encoder, optimizer: torch.optim.Optimizer, done: Progressed) -> None:
    """Write all that a training needs to go on; atomically, so that a kill leaves the one before."""
    with atomic_writer(path, "wb") as handle:
        torch.save({"model": encoder.state_dict(), "optimizer": optimizer.state_dict(), "done": vars(done)}, handle)


def load_checkpoint(path: Path, encoder: Encoder, optimizer: torch.optim.Optimizer) -> Progressed:
    """Put a checkpoint's state into model and optimizer; where the training stands (step 0 without a checkpoint)."""
    if not path.is_file():
        return Progressed(step=0, history=[], best_step=0, best_errors=None, best={})
    found = torch.load(path, map_location=next(encoder.parameters()).device, weights_only=True)
    encoder.load_state_dict(found["model"])
    optimizer.load_state_dict(found["optimizer"])
    return Progressed(**found["done"])


def _prefetched(data: Data, cfg: CtcEncoder, start: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
    """Each step from `start` on with its batch; the next one is read meanwhile."""
    lengths = [example.bins for example in data.train]
    per_epoch = math.ceil(len(lengths) / cfg.batch_size)
    plan = functools.lru_cache(maxsize=2)(lambda epoch: batches_of_epoch(lengths, cfg.batch_size, cfg.seed, epoch))

    def load(step: int) -> Batch:
        places = plan(step // per_epoch)[step % per_epoch]
        return make_batch([data.train[place] for place in places], data.store)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load, start)
        for step in range(start, cfg.steps):
            batch = coming.result()
            if step + 1 < cfg.steps:
                coming = pool.submit(load, step + 1)
            yield step, _moved(batch, device)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: tensor.to(device) for name, tensor in vars(batch).items()})


def _note(done: Progressed, encoder: Encoder, data: Data, line: CtcStep, errors: int | None) -> None:
    """Add a line to the history; keep the weights when they are the best, or when nothing tells which are."""
    done.step = line.step
    done.history.append(line.row())
    log.info("step %d: loss %.4f, phone error rate on val %s", line.step, line.loss, line.per)
    if errors is None or done.best_errors is None or errors < done.best_errors:
        done.best_step, done.best_errors = line.step, errors
        done.best = {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}


def _check_loss(total: Tensor, step: int, cfg: CtcEncoder) -> None:
    if not torch.isfinite(total):
        raise UserError(
            f"the loss is not a number at step {step + 1} or shortly before",
            where=f"learning_rate {cfg.learning_rate:g}, max_grad_norm {cfg.max_grad_norm:g}",
            fix="lower `learning_rate`, or take more `warmup_steps`",
        )


def _rate(errors: int | None, phones: int) -> float | None:
    return None if errors is None or not phones else round(errors / phones, 6)


def _not_in_result() -> set[str]:
    """Keys whose effect the state's digest takes in another form, or that only place the job."""
    return {"device", "precision", "max_rejected", "recordings", "tokens"} | placement_keys(CtcEncoder)
