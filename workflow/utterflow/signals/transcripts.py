"""Transcripts of stored logits: from a pickle that is read without executing it, a JSON Lines or a text file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utterflow.errors import UserError
from utterflow.files import read_jsonl
from utterflow.records import short

# What numpy's own pickles of arrays and numbers name; they build arrays and run nothing.
NUMPY_MODULES = ("numpy", *(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric")))
ARRAY = object()  # stands for numpy.ndarray, which a pickle only names and must not call
INSTEAD = "write the transcripts as .txt, one per line, or as .jsonl"


def read_transcripts(path: Path, field: str) -> list[str | None]:
    """The texts of a partition, in their order.

    - `.pkl`: a list, tuple or array of texts, or of character codes up to the first zero; or a dictionary of them by
      their places 0, 1, ...
    - `.jsonl`: the key `field` of each line; null where there is no text.
    - any other: one text per line; an empty line is an empty text.

    Raises:
        UserError: the file is missing, is none of these, or has an entry that is no text.
    """
    if not path.is_file():
        raise UserError("file not found", where=str(path), fix="correct the path of the transcripts")
    if path.suffix in (".pkl", ".pickle"):
        return list(_texts(load_plain_pickle(path), path))
    if path.suffix == ".jsonl":
        return [_field(row, field, f"{path}, line {number}") for number, row in read_jsonl(path)]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path), fix=INSTEAD) from None
    lines = text.split("\n")
    return [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]


class PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, dictionaries, texts, numbers and numpy arrays of them; refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module in NUMPY_MODULES and name in NUMPY_NAMES:
            return NUMPY_NAMES[name]
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        if module in ("builtins", "__builtin__") and name == "bytes":
            return _no_bytes
        raise pickle.UnpicklingError(f"it would run {module}.{name}")


def load_plain_pickle(path: Path) -> Any:
    """The plain data of a pickle; nothing in it is executed.

    Raises:
        UserError: it is no pickle, or holds more than plain data.
    """
    try:
        return PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
        MemoryError, RecursionError, UnicodeDecodeError, ImportError,
    ) as error:  # fmt: skip
        raise UserError(
            f"this pickle is not read: {error or type(error).__name__}", where=str(path), fix=INSTEAD
        ) from None


def _empty_array(kind: Any, shape: Any, code: Any) -> Any:
    """What a pickled array starts from; its content comes afterwards."""
    if kind is not ARRAY or shape != (0,):
        raise pickle.UnpicklingError("it holds an unknown kind of array")
    return np.ndarray((0,), dtype=np.int8)


def _number(dtype: Any, data: Any = None) -> Any:
    """A pickled numpy number or text."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("it holds an unknown kind of number")
    if len(data) != dtype.itemsize:
        raise pickle.UnpicklingError("it holds a number of the wrong size")
    return np.frombuffer(data, dtype=dtype)[0] if dtype.itemsize else dtype.type()


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """A pickled array of the newest form."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an unknown kind of array")
    if not data:
        return np.zeros(shape, dtype=dtype) if 0 in shape else np.array("").reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape, order=order)


def _no_bytes() -> bytes:
    """How old pickles write no bytes."""
    return b""


def _latin_bytes(text: Any, encoding: Any) -> bytes:
    """How old pickles write bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"it would encode a text as {encoding!r}")
    return text.encode("latin1")


NUMPY_NAMES = {
    "ndarray": ARRAY,
    "dtype": np.dtype,
    "_reconstruct": _empty_array,
    "_frombuffer": _array,
    "scalar": _number,
}


def _texts(value: Any, path: Path) -> list[str | None]:
    if isinstance(value, Mapping):
        if set(value) != set(range(len(value))):
            raise UserError(
                f"a dictionary with the keys {short(list(value)[:5])}, expected 0, 1, ...", where=str(path), fix=INSTEAD
            )
        value = [value[place] for place in range(len(value))]
    if isinstance(value, np.ndarray) and value.ndim:
        value = list(value)
    if not isinstance(value, list | tuple):
        raise UserError(f"expected a list of texts, found {type(value).__name__}", where=str(path), fix=INSTEAD)
    return [_text(item, f"{path}, entry {place}") for place, item in enumerate(value)]


def _text(item: Any, where: str) -> str | None:
    if item is None:
        return None
    if isinstance(item, str):
        return str(item)
    if isinstance(item, bytes):
        try:
            return item.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text: {error.reason}", where=where, fix=INSTEAD) from None
    if isinstance(item, np.ndarray) and item.ndim <= 1:
        item = item.tolist()
    if isinstance(item, str):
        return item
    if isinstance(item, list | tuple):
        codes = list(item)
        if all(isinstance(code, int) and 0 <= code < 0x110000 for code in codes):
            return "".join(chr(code) for code in (codes[: codes.index(0)] if 0 in codes else codes))
        if len(codes) == 1 and isinstance(codes[0], str):
            return codes[0]
    raise UserError(f"no text: {short(item)}", where=where, fix=INSTEAD)


def _field(row: Mapping[str, Any], field: str, where: str) -> str | None:
    if field not in row:
        raise UserError(f"no key `{field}` in this row; it has {', '.join(row)}", where=where, fix="correct `field`")
    value = row[field]
    if value is None or isinstance(value, str):
        return value
    raise UserError(f"`{field}` is no text: {short(value)}", where=where)
