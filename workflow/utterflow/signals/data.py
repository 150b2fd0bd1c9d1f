"""The recordings of a training: checked, normalised, and laid out so that batches are quickly read."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utterflow.beams.tokens import Tokens
from utterflow.config.signals import CtcEncoder
from utterflow.errors import UserError
from utterflow.jobs import check_rejected, log
from utterflow.records import RejectedRow
from utterflow.signals.checkpoints import FULL, fold_of
from utterflow.signals.encoder import UNKNOWN_SESSION, frames_of
from utterflow.signals.hdf5 import (
    Moments,
    Normalisation,
    Reader,
    Trial,
    common_channels,
    list_trials,
    no_bins,
    normalisation_of,
    parted,
    reject,
)

STAGE = "train_ctc"


@dataclass(frozen=True)
class Example:
    """A trial ready for training: where its features are in the store, and its target."""

    id: str
    start: int
    bins: int
    session: int
    classes: NDArray[np.int32]


@dataclass(frozen=True)
class Data:
    """Both partitions; the features of all trials one after the other."""

    store: NDArray[np.float16]  # [all bins, channels], normalised; a file on disk that has no name
    train: Sequence[Example]
    val: Sequence[Example]  # in sessions that training has not seen, with that session's own statistics
    normalisations: Mapping[str, Normalisation]  # by session of the train trials, in the order of their layers
    left_out: int
    rejected: Sequence[RejectedRow]


@dataclass
class Survey:
    """The usable ones of a list of trials, with what two passes over them need."""

    trials: list[Trial] = field(default_factory=list)
    bins: list[int] = field(default_factory=list)
    classes: list[NDArray[np.int32]] = field(default_factory=list)
    moments: dict[str, Moments] = field(default_factory=dict)  # by session
    rejected: list[RejectedRow] = field(default_factory=list)


def load_data(
    train: Sequence[Path], val: Sequence[Path], tokens: Tokens, fold: str, cfg: CtcEncoder, folder: Path
) -> Data:
    """Check all trials, take each session's statistics from the train trials, and lay out the normalised features.

    The trials are read twice: for the statistics, and to write them, normalised, to a file without a name in `folder`,
    from which batches are read. So memory does not grow with the recordings, and a killed job leaves nothing there.

    Raises:
        UserError: a file cannot be read, no train trial is left, or too many were rejected.
    """
    if fold != FULL and int(fold) >= cfg.folds:
        raise UserError(f"no fold {fold}: the encoder has {cfg.folds}", where="encoders: folds", fix="raise `folds`")
    listed, faults = parted(list_trials(train))
    held, more_faults = parted(list_trials(val))
    kept = [trial for trial in listed if fold == FULL or fold_of(cfg.seed, trial.id, cfg.folds) != int(fold)]
    channels = common_channels(kept)
    learnt, checked = (survey(trials, tokens, cfg, channels) for trials in (kept, held))
    rejected = [*faults, *more_faults, *learnt.rejected, *checked.rejected]
    check_rejected(rejected, len(kept) + len(held) + len(faults) + len(more_faults), cfg.max_rejected)
    if channels is None or not learnt.trials:
        raise UserError(
            f"nothing to train on: {len(listed)} trials in the files, {len(kept)} of them for fold {fold}, none usable",
            where=", ".join(map(str, train)) or "recordings: no files for the partition `train`",
            fix="name hdf5 files with trials as `train` under `recordings`" if fold == FULL else "lower `folds`",
        )
    if not checked.trials:
        log.warning("no val trials: the last weights are kept, and no error rate is measured")
    if strange := sorted(checked.moments.keys() - learnt.moments.keys()):
        log.warning("val has sessions that are not trained on, for them the mean session layer: %s", ", ".join(strange))
    scaling = {name: normalisation_of(item) for name, item in (checked.moments | learnt.moments).items()}
    sessions = sorted(learnt.moments)
    store = _store([learnt, checked], scaling, channels, folder)
    return Data(
        store=store,
        train=_examples(learnt, sessions, 0),
        val=_examples(checked, sessions, sum(learnt.bins)),
        normalisations={name: scaling[name] for name in sessions},
        left_out=len(listed) - len(kept),
        rejected=rejected,
    )


def survey(trials: Sequence[Trial], tokens: Tokens, cfg: CtcEncoder, channels: int | None) -> Survey:
    """Read all trials once; those that cannot be used are rejected with the reason."""
    found = Survey()
    with Reader() as reader:
        for trial in trials:
            try:
                features = reader.features(trial)
                classes = reader.classes(trial, len(tokens.names), tokens.blank)
                check_channels(features, channels)
                check_length(len(features), classes, cfg)
            except (ValueError, OSError) as error:
                found.rejected.append(reject(trial, str(error), STAGE))
                continue
            found.trials.append(trial)
            found.bins.append(len(features))
            found.classes.append(classes)
            before = found.moments.get(trial.session, no_bins(features.shape[1]))
            found.moments[trial.session] = before.with_bins(features)
    return found


def check_channels(features: NDArray[np.float32], channels: int | None) -> None:
    """Raises a ValueError with the reason when a trial has another number of channels."""
    if features.shape[1] != channels:
        raise ValueError(f"wrong channel count: {features.shape[1]}, expected {channels}")


def check_length(bins: int, classes: NDArray[np.int32] | None, cfg: CtcEncoder) -> int:
    """The frames that an encoder makes of so many bins.

    Raises:
        ValueError: none, or fewer than CTC needs for these classes (one each, and a blank between two equal ones).
    """
    frames = frames_of(bins, cfg.patch_size, cfg.patch_stride)
    if not frames:
        raise ValueError(f"no frames: {bins} bins, a patch has {cfg.patch_size}")
    if classes is not None:
        needed = len(classes) + int((classes[1:] == classes[:-1]).sum())
        if frames < needed:
            raise ValueError(f"target longer than the frames: {needed} needed, {bins} bins give {frames}")
    return frames


def _store(
    surveys: Sequence[Survey], scaling: Mapping[str, Normalisation], channels: int, folder: Path
) -> NDArray[np.float16]:
    total = sum(sum(item.bins) for item in surveys)
    with tempfile.TemporaryFile(dir=folder) as handle, Reader() as reader:
        store = np.memmap(handle, dtype=np.float16, mode="w+", shape=(total, channels))
        start = 0
        for item in surveys:
            for trial, bins in zip(item.trials, item.bins, strict=True):
                store[start : start + bins] = scaling[trial.session].apply(reader.features(trial))
                start += bins
    return store


def _examples(item: Survey, sessions: Sequence[str], start: int) -> list[Example]:
    places = {name: place for place, name in enumerate(sessions)}
    starts = start + np.cumsum([0, *item.bins])[:-1]
    return [
        Example(trial.id, int(first), bins, places.get(trial.session, UNKNOWN_SESSION), classes)
        for trial, first, bins, classes in zip(item.trials, starts, item.bins, item.classes, strict=True)
    ]
