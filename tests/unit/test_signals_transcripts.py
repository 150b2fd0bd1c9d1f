"""Transcripts of stored logits: plain data of a pickle is read, everything else is refused and never runs."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from utterflow.errors import UserError
from utterflow.signals.transcripts import load_plain_pickle, read_transcripts

TEXTS = ["hello there", "", "naïve café"]


class Calls:
    """Its pickle calls a function when it is opened."""

    def __init__(self, function, *arguments) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def codes(text: str) -> np.ndarray:
    return np.array([*map(ord, text), 0, 0, 7], dtype=np.int32)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        [np.str_(text) for text in TEXTS],
        [text.encode() for text in TEXTS],
        [[text] for text in TEXTS],
        [np.array(text) for text in TEXTS],
        [codes(text) for text in TEXTS],
        [codes(text).tolist() for text in TEXTS],
        dict(enumerate(TEXTS)),
    ],
    ids=["list", "tuple", "array", "objects", "numpy texts", "bytes", "nested", "scalars", "codes", "lists", "dict"],
)
def test_texts_in_all_their_forms_are_read(tmp_path, value, protocol):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_transcripts(tmp_path / "t.pkl", "text") == TEXTS


def test_names_of_numpy_2_are_known(tmp_path):
    data = pickle.dumps(np.array(TEXTS), protocol=2).replace(b"numpy.core.multiarray", b"numpy._core.multiarray")
    assert b"numpy._core" in data
    (tmp_path / "t.pkl").write_bytes(data)
    assert read_transcripts(tmp_path / "t.pkl", "text") == TEXTS


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("place", ["whole", "entry", "array", "key"])
def test_a_pickle_that_would_run_something_is_refused_and_does_not_run(tmp_path, place, protocol):
    witness = tmp_path / "witness"
    evil = Calls(os.system, f"touch {witness}")
    value = {
        "whole": evil,
        "entry": ["fine", evil],
        "array": np.array(["fine", evil], dtype=object),
        "key": {0: evil},
    }[place]
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(UserError, match=r"not read: it would run (posix|os|nt)\.system") as error:
        read_transcripts(tmp_path / "t.pkl", "text")
    assert "t.pkl" in str(error.value) and ".txt" in str(error.value)
    assert not witness.exists()
    pickle.loads(pickle.dumps(Calls(Path.touch, witness)))  # the trap works where it is opened
    assert witness.exists()


@pytest.mark.parametrize(
    "value",
    [
        Calls(eval, "1"),
        Calls(getattr, "a", "upper"),
        Calls(np.load, "x.npy"),
        Calls(np.dtype, "O"),
        Calls(np.ndarray, (10**12,)),
        OrderedDict(a=1),
        {1, 2},
        Path("a"),
    ],
    ids=["eval", "getattr", "numpy.load", "dtype", "huge array", "class", "set", "path"],
)
def test_what_is_no_list_of_texts_is_refused_plainly(tmp_path, value):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"not read|expected a list"):
        read_transcripts(tmp_path / "t.pkl", "text")


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(TEXTS)[:-5], b"\x80\x05."], ids=range(4))
def test_a_broken_pickle_is_refused_plainly(tmp_path, data):
    (tmp_path / "t.pkl").write_bytes(data)
    with pytest.raises(UserError, match="not read"):
        load_plain_pickle(tmp_path / "t.pkl")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.5], "entry 0"),
        (["a", {"text": "b"}], "entry 1"),
        ([["a", "b"]], "no text"),
        ("abc", "found str"),
        ({"a": "b"}, "expected 0, 1"),
        ([b"\xff\xfe"], "not UTF-8"),
    ],
)
def test_entries_that_are_no_texts_are_named(tmp_path, value, message):
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=message):
        read_transcripts(tmp_path / "t.pkl", "text")


def test_lines_of_a_text_file_stay_in_their_places(tmp_path):
    (tmp_path / "t.txt").write_bytes("one\r\n\nthree\u2028still\n".encode())
    assert read_transcripts(tmp_path / "t.txt", "text") == ["one", "", "three\u2028still"]
    (tmp_path / "t.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        read_transcripts(tmp_path / "t.txt", "text")
    with pytest.raises(UserError, match="file not found"):
        read_transcripts(tmp_path / "none.txt", "text")


def test_the_field_of_a_jsonl_is_read_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"said": "a"}\n{"said": null}\n')
    assert read_transcripts(path, "said") == ["a", None]
    with pytest.raises(UserError, match="no key `text` in this row; it has said"):
        read_transcripts(path, "text")
    path.write_text('{"said": 3}\n')
    with pytest.raises(UserError, match="`said` is no text: 3"):
        read_transcripts(path, "said")
