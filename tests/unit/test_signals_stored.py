"""Logits in npz files: what is read, what is refused, which bytes are written."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from utterflow.errors import UserError
from utterflow.records import TrialRow
from utterflow.signals.stored import array_names, check_array, load_trial_logits, log_softmax, npz_writer, read_array


def row(path: Path, array: str, frames: int) -> TrialRow:
    return TrialRow(id="t", index=0, npz=str(path), array=array, frames=frames, logits="unknown")


def save(path: Path, *arrays, **named) -> Path:
    np.savez(path, *arrays, **named)
    return path


def test_logits_become_log_probabilities_and_those_stay_as_they_are(tmp_path):
    logits = np.random.default_rng(0).normal(0, 30, (7, 41)).astype(np.float16)
    path = save(tmp_path / "a.npz", logits)
    found = load_trial_logits(row(path, "arr_0", 7))
    assert found.dtype == np.float32 and found.shape == (7, 41)
    exact = logits.astype(np.longdouble)
    exact = exact - np.log(np.exp(exact - exact.max(1, keepdims=True)).sum(1, keepdims=True)) - exact.max(1)[:, None]
    np.testing.assert_allclose(found, exact.astype(float), rtol=1e-6)
    again = save(tmp_path / "b.npz", found)
    np.testing.assert_allclose(load_trial_logits(row(again, "arr_0", 7)), found, atol=1e-5)


def test_impossible_classes_are_kept_and_do_no_harm():
    found = log_softmax(np.array([[0.0, -np.inf, 0.0]]))
    np.testing.assert_allclose(found, [[np.log(0.5), -np.inf, np.log(0.5)]], rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((3, 4), np.nan), "not numbers: frame 0"),
        (np.array([[1.0, 2.0], [np.inf, 0.0]]), "not numbers: frame 1"),
        (np.full((2, 3), -np.inf), "not numbers: frame 0"),
        (np.zeros(5), "wrong shape: arr_0 has [5]"),
        (np.zeros((5, 1)), "wrong shape: arr_0 has [5, 1]"),
        (np.zeros((0, 4)), "no frames: arr_0"),
        (np.array([["a", "b"]]), "not numbers: arr_0 has the type"),
    ],
)
def test_arrays_that_are_no_logits_are_refused_with_a_reason(tmp_path, array, reason):
    path = save(tmp_path / "a.npz", array)
    with pytest.raises(ValueError) as error:
        load_trial_logits(row(path, "arr_0", len(array)))
    assert str(error.value).startswith(reason)


class Evil:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_an_array_of_objects_is_refused_and_its_pickle_is_not_opened(tmp_path):
    path = save(tmp_path / "a.npz", np.array([[Evil(tmp_path / "witness")] * 2], dtype=object))
    for read in (lambda: load_trial_logits(row(path, "arr_0", 1)), lambda: read_array(path, "arr_0")):
        with pytest.raises(ValueError, match="type object"):
            read()
    assert not (tmp_path / "witness").exists()


def test_a_missing_array_a_changed_one_and_a_torn_one_are_reasons_for_rejection(tmp_path):
    path = save(tmp_path / "a.npz", np.zeros((3, 4)))
    with pytest.raises(ValueError, match="missing array: arr_9"):
        load_trial_logits(row(path, "arr_9", 3))
    with pytest.raises(ValueError, match="had 5 frames, has 3"):
        load_trial_logits(row(path, "arr_0", 5))
    with zipfile.ZipFile(tmp_path / "torn.npz", "w") as archive:
        archive.writestr("arr_0.npy", zipfile.ZipFile(path).read("arr_0.npy")[:-9])
        archive.writestr("arr_1.npy", b"no array")
    for name in ("arr_0", "arr_1"):
        with pytest.raises(ValueError, match="broken array"):
            load_trial_logits(row(tmp_path / "torn.npz", name, 3))


def test_a_missing_file_and_another_kind_of_file_end_the_job_plainly(tmp_path):
    with pytest.raises(UserError, match="file not found"):
        load_trial_logits(row(tmp_path / "none.npz", "arr_0", 3))
    np.save(tmp_path / "single.npy", np.zeros((2, 3)))
    with pytest.raises(UserError, match="no npz"):
        array_names(tmp_path / "single.npy")
    with pytest.raises(UserError, match=r"it holds other\.npy"):
        array_names(save(tmp_path / "named.npz", other=np.zeros((2, 3))))


def test_arrays_are_named_in_the_order_of_their_numbers(tmp_path):
    path = save(tmp_path / "a.npz", *(np.zeros((index + 1, 2)) for index in range(12)))
    assert array_names(path) == [f"arr_{index}" for index in range(12)]
    assert check_array(path, "arr_10") == (11, 2)


def test_a_file_that_was_replaced_is_opened_anew(tmp_path):
    path = save(tmp_path / "a.npz", np.zeros((2, 3)))
    assert len(load_trial_logits(row(path, "arr_0", 2))) == 2
    save(path, np.zeros((4, 3)), np.ones((1, 3)))
    assert len(load_trial_logits(row(path, "arr_0", 4))) == 4


def test_written_files_are_read_by_numpy_and_have_the_same_bytes_each_time(tmp_path):
    arrays = [np.random.default_rng(index).normal(size=(index + 1, 5)).astype(np.float32) for index in range(3)]
    for name in ("a.npz", "b.npz"):
        with npz_writer(tmp_path / name) as writer:
            for index in (2, 0, 1):
                writer.add(f"arr_{index}", arrays[index])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        for index, array in enumerate(arrays):
            np.testing.assert_array_equal(found[f"arr_{index}"], array)


def test_a_write_that_breaks_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), npz_writer(tmp_path / "a.npz") as writer:
        writer.add("arr_0", np.zeros((1, 2)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
