"""CTC logits in npz files: written array by array, read array by array."""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from utterflow.errors import UserError
from utterflow.files import atomic_writer
from utterflow.records import TrialRow

ARRAY_NAME = re.compile(r"arr_(\d+)")
SUFFIX = ".npy"
npy: Any = npy_format  # untyped
OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold: the same bytes whenever it is written


def load_trial_logits(row: TrialRow) -> NDArray[np.float32]:
    """The log-probabilities of a trial, from the npz that the row names.

    The log-softmax over the classes is taken here, in float64, whatever the file holds: it makes logits into
    log-probabilities and leaves log-probabilities as they are.

    Returns:
        Shape [frames, classes], natural logarithms, each row summing to 1 in probability.

    Raises:
        ValueError: the array is missing, is no numbers of shape [frames, classes], has no frames or other ones than
            the row says, or holds values that give no probabilities. The text is the reason for a rejected row.
        UserError: the npz itself cannot be read.
    """
    array = read_array(Path(row.npz), row.array)
    if len(array) != row.frames:
        raise ValueError(f"changed array: {row.array} had {row.frames} frames, has {len(array)}")
    return log_softmax(array)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Log-softmax over the last axis: float64 inside, float32 out.

    Raises:
        ValueError: a value is not a number or is plus infinity, or all of a frame are minus infinity.
    """
    values = logits.astype(np.float64)
    peak = values.max(axis=-1, keepdims=True)
    if not np.isfinite(peak).all():
        frame = int(np.argwhere(~np.isfinite(peak[..., 0]))[0, -1])
        raise ValueError(f"not numbers: frame {frame} holds values that give no probabilities")
    values -= peak
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values.astype(np.float32)


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One array of an npz; nothing else of the file is read and no pickle is opened.

    Raises:
        ValueError: no such array, or none of shape [frames, classes] with numbers.
        UserError: the file cannot be read.
    """
    check_array(path, name)
    try:
        with _open(path).open(name + SUFFIX) as member:
            return np.asarray(npy.read_array(member, allow_pickle=False))
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"broken array: {name} ({error})") from None


def check_array(path: Path, name: str) -> tuple[int, int]:
    """Frames and classes of an array, from its header alone.

    Raises:
        ValueError: no such array, or none of shape [frames, classes] with numbers.
        UserError: the file cannot be read.
    """
    try:
        with _open(path).open(name + SUFFIX) as member:
            shape, dtype = _read_header(member)
    except KeyError:
        raise ValueError(f"missing array: {name} is not in {path}") from None
    except (ValueError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"broken array: {name} ({error})") from None
    if dtype.kind not in "fiu":
        raise ValueError(f"not numbers: {name} has the type {dtype}")
    if len(shape) != 2:
        raise ValueError(f"wrong shape: {name} has {list(shape)}, expected [frames, classes]")
    if not shape[0]:
        raise ValueError(f"no frames: {name} has {list(shape)}")
    if shape[1] < 2:
        raise ValueError(f"wrong shape: {name} has {list(shape)}, expected two classes or more")
    return shape[0], shape[1]


def array_names(path: Path) -> list[str]:
    """The names `arr_0`, `arr_1`, ... of an npz in the order of their numbers.

    Raises:
        UserError: the file cannot be read, or has no such array.
    """
    found = (ARRAY_NAME.fullmatch(name.removesuffix(SUFFIX)) for name in _open(path).namelist())
    numbered = sorted((int(match[1]), match[0]) for match in found if match)
    if not numbered:
        others = ", ".join(_open(path).namelist()[:5]) or "nothing"
        raise UserError(
            f"no arrays arr_0, arr_1, ...; it holds {others}",
            where=str(path),
            fix="write it with numpy.savez(path, *arrays)",
        )
    return [name for _, name in numbered]


@contextmanager
def npz_writer(path: Path) -> Iterator[ArrayWriter]:
    """Write an npz atomically, one array after the other; the same arrays give the same bytes."""
    with atomic_writer(path, "wb") as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        yield ArrayWriter(archive)


class ArrayWriter:
    """An npz that is being written."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Write one array; it need not be kept afterwards."""
        entry = zipfile.ZipInfo(name + SUFFIX, OLDEST_DATE)
        with self._archive.open(entry, "w", force_zip64=True) as member:
            npy.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _open(path: Path) -> zipfile.ZipFile:
    """The zip behind an npz; kept open until another version of the file or some other files are asked for.

    Raises:
        UserError: it is missing, or is no npz.
    """
    try:
        status = path.stat()
        return _opened(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise UserError("file not found", where=str(path), fix="correct the path of the logits") from None
    except zipfile.BadZipFile as error:
        raise UserError(
            f"no npz: {error}", where=str(path), fix="write it with numpy.savez(path, *arrays); a .npy is none"
        ) from None


@functools.lru_cache(maxsize=4)
def _opened(path: Path, changed: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _read_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"format version {version}")
    shape, _, dtype = read(member)
    return shape, dtype
