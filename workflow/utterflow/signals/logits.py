"""Rule `save_logits`, source encoder: recordings -> CTC logits of the workflow's own encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utterflow.config.signals import EncoderLogits
from utterflow.errors import UserError
from utterflow.files import read_json, write_jsonl
from utterflow.gather import Shard
from utterflow.jobs import Progress, check_rejected, log
from utterflow.models.devices import choose_device, device_name
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import RejectedRow, TrialRow, parse_record
from utterflow.signals.checkpoints import FULL, EncoderFile, TrainedEncoder, fold_of, load_encoder
from utterflow.signals.data import check_channels, check_length
from utterflow.signals.encoder import UNKNOWN_SESSION
from utterflow.signals.hdf5 import (
    Moments,
    Normalisation,
    Reader,
    Trial,
    list_trials,
    no_bins,
    normalisation_of,
    parted,
    reject,
)
from utterflow.signals.stored import npz_writer

STAGE = "save_logits"
RECORD = "logits/1"
NO_NUMBERS = "not numbers: the encoder gives values that are none"

Computed = tuple[TrialRow, NDArray[np.float32]] | RejectedRow


@dataclass(frozen=True)
class ShardFiles:
    """What a job of `save_logits` writes."""

    logits: Path
    trials: Path
    rejected: Path
    meta: Path


def save_encoder_logits(
    *,
    recordings: Sequence[Path],
    weights: Sequence[Path],
    abouts: Sequence[Path],
    partition: str,
    shard: Shard,
    cfg: EncoderLogits,
    code: str,
    threads: int,
    files: ShardFiles,
) -> None:
    """Write the log-probabilities of one shard of a partition, float32.

    Args:
        weights, abouts: `model.safetensors` and `config.json` of the encoder, or of each of its folds: then a trial's
            logits come from the encoder that was trained without it.

    Raises:
        UserError: recordings or encoders cannot be used, or too many trials were rejected.
    """
    watch = Stopwatch()
    torch.set_num_threads(threads)
    device = choose_device(cfg.device)
    described = [parse_record(EncoderFile, read_json(path), str(path)) for path in abouts]
    origin = origin_of(partition, described)
    if partition == "train" and origin == "learnt":
        log.warning("the encoder has learnt the train trials: their beams will look better than those of test trials")
    entries = list_trials(recordings)
    trials, faults = parted(entries[shard.index :: shard.count])
    log.info("shard %d of %d: %d trials, %s, %s", shard.index, shard.count, len(trials), device, origin)

    def computed() -> Iterator[Computed]:
        progress = Progress(len(trials), "trials")
        for place, about in enumerate(described):
            mine = [trial for trial in trials if is_for(trial, about)]
            encoder = load_encoder(weights[place], abouts[place], device)
            scaling = dict(encoder.normalisations) | strange_sessions(mine, parted(entries)[0], encoder)
            for item in compute(encoder, mine, scaling, cfg.batch_size):
                trial, logits = item
                progress.advance(1)
                yield logits if isinstance(logits, RejectedRow) else (_row(trial, logits, origin), logits)

    kept, lost = write_shard(files, (*faults,), computed(), shard)
    write_meta(
        files.meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[*recordings, *weights, *abouts],
        outputs={RECORD: files.logits, TrialRow.RECORD: files.trials, RejectedRow.RECORD: files.rejected},
        seconds=watch.seconds(),
        rows={"in": len(trials) + len(faults), "out": kept, "rejected": len(lost)},
        device=device_name(device),
        extra={"origin": origin, "threads": threads},
    )
    check_rejected(lost, len(trials) + len(faults), cfg.max_rejected)


def write_shard(
    files: ShardFiles, faults: Sequence[RejectedRow], computed: Iterator[Computed], shard: Shard
) -> tuple[int, list[RejectedRow]]:
    """Write arrays as they come, then the rows in the partition's order.

    An array is named by its trial's place in the shard: `arr_0` belongs to the shard's first trial, and a rejected
    trial leaves a gap.

    Returns:
        The number of rows written, and the rejected ones.
    """
    rows: list[TrialRow] = []
    lost = list(faults)
    with npz_writer(files.logits) as writer:
        for item in computed:
            if isinstance(item, RejectedRow):
                lost.append(item)
                continue
            row, logits = item
            name = f"arr_{row.index // shard.count}"
            writer.add(name, logits)
            rows.append(row.model_copy(update={"npz": str(files.logits), "array": name}))
    rows.sort(key=lambda row: row.index)
    write_jsonl(files.trials, (row.row() for row in rows))
    write_jsonl(files.rejected, (row.row() for row in lost))
    return len(rows), lost


def origin_of(partition: str, described: Sequence[EncoderFile]) -> str:
    """What `TrialRow.logits` says of logits of these encoders.

    Raises:
        UserError: the encoders are not one for all trials, or all folds of one configuration.
    """
    folds = [about.fold for about in described]
    expected = [str(fold) for fold in range(int(described[0].encoder.get("folds", 0)))] if described else []
    if folds == [FULL]:
        return "learnt" if partition == "train" else "held_out"
    same = len({(about.encoder.get("seed"), tuple(about.tokens)) for about in described}) == 1
    if folds != expected or not same:
        raise UserError(
            f"these encoders are not the folds of one configuration: {', '.join(folds)}",
            fix="delete results/encoders/<name> and run train_ctc again",
        )
    return "cross_fitted"


def is_for(trial: Trial, about: EncoderFile) -> bool:
    """Whether a trial's logits come from this encoder."""
    if about.fold == FULL:
        return True
    return fold_of(int(about.encoder["seed"]), trial.id, int(about.encoder["folds"])) == int(about.fold)


def strange_sessions(
    trials: Sequence[Trial], partition: Sequence[Trial], encoder: TrainedEncoder
) -> dict[str, Normalisation]:
    """For sessions of `trials` that the encoder has not seen, the statistics of all the partition's trials of each."""
    names = sorted({trial.session for trial in trials} - encoder.normalisations.keys())
    if not names:
        return {}
    log.warning(
        "%d sessions that the encoder was not trained on: scaled by their own statistics, with the mean session "
        "layer: %s", len(names), ", ".join(names[:10]),
    )  # fmt: skip
    moments: dict[str, Moments] = {name: no_bins(encoder.about.channels) for name in names}
    with Reader() as reader:
        for trial in partition:
            if trial.session in moments:
                try:
                    features = reader.features(trial)
                    check_channels(features, encoder.about.channels)
                except (ValueError, OSError):
                    continue
                moments[trial.session] = moments[trial.session].with_bins(features)
    return {name: normalisation_of(item) for name, item in moments.items()}


def compute(
    encoder: TrainedEncoder, trials: Sequence[Trial], scaling: Mapping[str, Normalisation], batch_size: int
) -> Iterator[tuple[Trial, NDArray[np.float32] | RejectedRow]]:
    """Yield each trial with its log-probabilities [frames, classes], or the reason why there are none.

    Batches are of similar length, the longest first.
    """
    with Reader() as reader:
        lengths = {trial.id: sum(reader.shape(trial)[:1]) for trial in trials}
        ordered = sorted(trials, key=lambda trial: (-lengths[trial.id], trial.id))
        for start in range(0, len(ordered), batch_size):
            good: list[tuple[Trial, NDArray[np.float16]]] = []
            for trial in ordered[start : start + batch_size]:
                try:
                    features = reader.features(trial)
                    check_channels(features, encoder.about.channels)
                    check_length(len(features), None, encoder.cfg)
                    good.append((trial, scaling[trial.session].apply(features)))
                except (ValueError, OSError) as error:
                    yield trial, reject(trial, str(error), STAGE)
            if good:
                yield from _batch_logits(encoder, good)


@torch.inference_mode()
def _batch_logits(
    encoder: TrainedEncoder, batch: Sequence[tuple[Trial, NDArray[np.float16]]]
) -> list[tuple[Trial, NDArray[np.float32] | RejectedRow]]:
    places = {name: place for place, name in enumerate(encoder.about.sessions)}
    bins = [len(features) for _, features in batch]
    padded = np.zeros((len(batch), max(bins), encoder.about.channels), dtype=np.float32)
    for row, (_, features) in enumerate(batch):
        padded[row, : len(features)] = features
    logits, frames = encoder.model(
        torch.from_numpy(padded).to(encoder.device),
        torch.tensor(bins, device=encoder.device),
        torch.tensor([places.get(trial.session, UNKNOWN_SESSION) for trial, _ in batch], device=encoder.device),
    )
    logs = logits.log_softmax(-1).cpu().numpy()
    found: list[tuple[Trial, NDArray[np.float32] | RejectedRow]] = []
    for (trial, _), array, length in zip(batch, logs, frames.tolist(), strict=True):
        own = array[:length].copy()
        found.append((trial, own if np.isfinite(own).all() else reject(trial, NO_NUMBERS, STAGE)))
    return found


def _row(trial: Trial, logits: NDArray[Any], origin: str) -> TrialRow:
    return TrialRow(
        id=trial.id,
        index=trial.index,
        npz="",
        array="",
        frames=len(logits),
        text=trial.text,
        session=trial.session or None,
        logits=origin,
    )
