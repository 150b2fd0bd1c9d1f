"""Neural recordings in the hdf5 layout of the brain-to-text benchmarks.

A file has one group per trial. Datasets: `input_features` [bins, channels]; `seq_class_ids`, class numbers in the order
of the tokens file, a separator after each word, padded with zeros; `transcription`, character codes up to the first
zero. Attributes: `n_time_steps`, `seq_len`, `sentence_label`, `session`, `block_num`, `trial_num`. The test partition
may have neither labels nor transcripts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from utterflow.errors import UserError
from utterflow.records import RejectedRow, short

FEATURES, CLASSES, TRANSCRIPT = "input_features", "seq_class_ids", "transcription"
NO_SESSION = ""
LISTING = "list_trials"
DEAD = 1e-6  # a channel whose standard deviation is below this is set to zero


@dataclass(frozen=True)
class Trial:
    """A trial's place, and what its attributes say; its features are not read yet."""

    id: str
    index: int  # position in the partition, from 0
    file: Path
    group: str
    session: str
    text: str | None

    @property
    def where(self) -> str:
        return f"{self.file}, {self.group}"


@dataclass(frozen=True)
class Moments:
    """Per channel: how many bins, their mean, and the sum of their squared distances from it."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    def with_bins(self, features: NDArray[np.float32]) -> Moments:
        """The moments of both together (Chan, Golub and LeVeque 1983)."""
        values = features.astype(np.float64)
        count, mean = len(values), values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        total, apart = self.count + count, mean - self.mean
        return Moments(
            total,
            self.mean + apart * count / total,
            self.squares + squares + apart**2 * self.count * count / total,
        )


@dataclass(frozen=True)
class Normalisation:
    """Per session: each channel's mean and the factor that gives it unit variance."""

    mean: NDArray[np.float32]  # [channels]
    factor: NDArray[np.float32]  # [channels]

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float16]:
        """Features with zero mean and unit variance, in the number format that training and inference share."""
        scaled = (features - self.mean) * self.factor
        return np.clip(scaled, -1e4, 1e4).astype(np.float16)


def list_trials(files: Sequence[Path]) -> list[Trial | RejectedRow]:
    """All trials of a partition, files in their order, groups by the numbers in their names.

    A trial's id is `<session>.<block_num>.<trial_num>`; without these attributes the group's name stands for them.

    Returns:
        At its place each trial, or a rejected row for what is none: no group, or an id that another trial has.

    Raises:
        UserError: a file is missing, is no hdf5 file, or holds nothing.
    """
    found: list[Trial | RejectedRow] = []
    owners: dict[str, str] = {}
    for path in files:
        with open_recordings(path) as file:
            names = sorted(file, key=_by_numbers)
            if not names:
                raise UserError("no trials in this file", where=str(path), fix="expected one group per trial")
            for name in names:
                trial = _describe(file, path, name, len(found))
                if isinstance(trial, Trial) and trial.id in owners:
                    reason = f"repeated id: {trial.id} is that of {owners[trial.id]}"
                    found.append(RejectedRow(id=trial.id, stage=LISTING, reason=reason, where=trial.where))
                    continue
                found.append(trial)
                if isinstance(trial, Trial):
                    owners[trial.id] = trial.where
    return found


def parted(entries: Iterable[Trial | RejectedRow]) -> tuple[list[Trial], list[RejectedRow]]:
    """The trials, and what is none."""
    trials: list[Trial] = []
    faults: list[RejectedRow] = []
    for entry in entries:
        if isinstance(entry, Trial):
            trials.append(entry)
        else:
            faults.append(entry)
    return trials, faults


def reject(trial: Trial, reason: str, stage: str) -> RejectedRow:
    return RejectedRow(id=trial.id, stage=stage, reason=reason, where=trial.where)


class Reader:
    """Reads trials of several files; keeps the file of the last one open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None

    def features(self, trial: Trial) -> NDArray[np.float32]:
        """A trial's features, shape [bins, channels].

        Raises:
            ValueError: they are missing, have another shape, have no bins, or are no numbers; the text is the reason.
        """
        group = self._group(trial)
        data = _dataset(group, FEATURES)
        if data.ndim != 2 or data.dtype.kind not in "fiu":
            raise ValueError(
                f"wrong shape: {FEATURES} has {list(data.shape)} of {data.dtype}, expected [bins, channels]"
            )
        bins = _whole(group, "n_time_steps", len(data))
        if not 0 < bins <= len(data):
            raise ValueError(f"no frames: n_time_steps is {bins}, {FEATURES} has {len(data)} bins")
        features = np.asarray(data[:bins], dtype=np.float32)
        if not np.isfinite(features).all():
            bad = int(np.argwhere(~np.isfinite(features))[0, 0])
            raise ValueError(f"not numbers: {FEATURES} at bin {bad}")
        return features

    def shape(self, trial: Trial) -> tuple[int, ...]:
        """The shape of a trial's features; empty where it has none."""
        data = self._group(trial).get(FEATURES)
        return tuple(data.shape) if isinstance(data, h5py.Dataset) else ()

    def classes(self, trial: Trial, count: int, blank: int) -> NDArray[np.int32]:
        """A trial's target classes, without padding.

        Args:
            count: number of classes.
            blank: the one that no target holds.

        Raises:
            ValueError: they are missing, out of range, or none; the text is the reason.
        """
        group = self._group(trial)
        data = _dataset(group, CLASSES)
        if data.ndim != 1 or data.dtype.kind not in "iu":
            raise ValueError(f"wrong shape: {CLASSES} has {list(data.shape)} of {data.dtype}, expected class numbers")
        found = np.asarray(data[:], dtype=np.int64)
        padding = np.flatnonzero(found == 0)
        length = _whole(group, "seq_len", int(padding[0]) if padding.size else len(found))
        if not 0 < length <= len(found):
            raise ValueError(f"no target: seq_len is {length}, {CLASSES} has {len(found)} entries")
        found = found[:length]
        wrong = found[(found < 0) | (found >= count) | (found == blank)]
        if wrong.size:
            raise ValueError(
                f"class out of range: {int(wrong[0])}; the tokens file has 0 .. {count - 1}, blank {blank}"
            )
        return found.astype(np.int32)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._path = self._file = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _group(self, trial: Trial) -> Any:
        if self._path != trial.file:
            self.close()
            self._file, self._path = open_recordings(trial.file), trial.file
        return self._file[trial.group]


def open_recordings(path: Path) -> Any:
    """Open an hdf5 file for reading.

    Raises:
        UserError: it is missing or is no hdf5 file.
    """
    if not path.is_file():
        raise UserError("file not found", where=str(path), fix="correct the path of the recordings")
    try:
        return h5py.File(path, "r", locking=False)  # several shards read it, also where locks do not work
    except OSError as error:
        raise UserError(f"not a readable hdf5 file: {error}", where=str(path)) from None


def common_channels(trials: Iterable[Trial]) -> int | None:
    """The number of channels that most of these trials have; None where none has features."""
    counts: Counter[int] = Counter()
    with Reader() as reader:
        for trial in trials:
            shape = reader.shape(trial)
            if len(shape) == 2:
                counts[shape[1]] += 1
    return counts.most_common(1)[0][0] if counts else None


def no_bins(channels: int) -> Moments:
    return Moments(0, np.zeros(channels), np.zeros(channels))


def normalisation_of(moments: Moments) -> Normalisation:
    """What makes these bins' channels have zero mean and unit variance; dead channels become zero."""
    deviation = np.sqrt(moments.squares / max(moments.count, 1))
    factor = np.where(deviation < DEAD, 0.0, 1 / np.maximum(deviation, DEAD))
    return Normalisation(moments.mean.astype(np.float32), factor.astype(np.float32))


def _describe(file: Any, path: Path, name: str, index: int) -> Trial | RejectedRow:
    group = file[name]
    if not isinstance(group, h5py.Group):
        reason = "not a trial: expected a group"
        return RejectedRow(id=f"{path.stem}.{name}", stage=LISTING, reason=reason, where=f"{path}, {name}")
    attributes = group.attrs
    session = _text(attributes.get("session", NO_SESSION))
    numbers = [str(attributes[key]) for key in ("block_num", "trial_num") if key in attributes]
    place = ".".join(numbers) if len(numbers) == 2 else name
    return Trial(
        id=f"{session}.{place}" if session else f"{path.stem}.{name}",
        index=index,
        file=path,
        group=name,
        session=session,
        text=_transcript(group),
    )


def _transcript(group: Any) -> str | None:
    data = group.get(TRANSCRIPT)
    if isinstance(data, h5py.Dataset) and data.ndim and data.dtype.kind in "iu":
        codes = [int(code) for code in data[:].ravel()]
        letters = codes[: codes.index(0)] if 0 in codes else codes
        return "".join(chr(code) for code in letters if 0 < code < 0x110000)
    label = group.attrs.get("sentence_label")
    return None if label is None else _text(label)


def _dataset(group: Any, name: str) -> Any:
    found = group.get(name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"missing dataset: {name}")
    return found


def _whole(group: Any, name: str, default: int) -> int:
    """A whole number among a trial's attributes."""
    value = group.attrs.get(name, default)
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"not a number: {name} is {short(value)}") from None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _by_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
