"""Logits of the workflow's encoders, and stored ones: which trial gets which, and what is rejected."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from simulated_recordings import change_trial, simulate, tiny_encoder, train

from utterflow.config.signals import EncoderLogits
from utterflow.errors import UserError
from utterflow.files import read_json, read_jsonl
from utterflow.gather import Shard
from utterflow.records import TrialRow, read_records
from utterflow.signals.checkpoints import fold_of
from utterflow.signals.index import index_logits
from utterflow.signals.logits import ShardFiles, save_encoder_logits
from utterflow.signals.stored import load_trial_logits

FOLDS = 2


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for partition, count in (("train", 14), ("val", 4), ("test", 7)):
        simulate(folder, partition, count)
    return folder


@pytest.fixture(scope="module")
def encoders(recordings, tmp_path_factory):
    out = tmp_path_factory.mktemp("encoders")
    for fold in ("full", "0", "1"):
        train(recordings, out, tiny_encoder(steps=3, folds=0 if fold == "full" else FOLDS), fold=fold)
    return out


def save(
    out: Path, encoders: Path, recordings: Path, partition: str, folds: list[str], shard: Shard | None = None, **keys
) -> list[TrialRow]:
    shard = shard or Shard(0, 1)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{shard.index}-of-{shard.count}"
    files = ShardFiles(*(out / f"{stem}{end}" for end in (".npz", ".trials.jsonl", ".rejected.jsonl", ".meta.json")))
    cfg = {"source": "encoder", "encoder": "tiny", "max_rejected": 0.5, **keys}
    save_encoder_logits(
        recordings=[recordings / f"{partition}.hdf5"],
        weights=[encoders / fold / "model.safetensors" for fold in folds],
        abouts=[encoders / fold / "config.json" for fold in folds],
        partition=partition,
        shard=shard,
        cfg=EncoderLogits.model_validate(cfg),
        code="code",
        threads=1,
        files=files,
    )
    return list(read_records(files.trials, TrialRow))


def arrays(rows: list[TrialRow]) -> dict[str, np.ndarray]:
    return {row.id: load_trial_logits(row) for row in rows}


def assert_close(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], atol=1e-4)


def test_rows_tell_where_the_logits_are_and_what_was_said(recordings, encoders, tmp_path):
    rows = save(tmp_path, encoders, recordings, "test", ["full"])
    texts = (recordings / "test.txt").read_text().splitlines()
    assert [row.text for row in rows] == texts
    assert [row.index for row in rows] == list(range(7)) and [row.array for row in rows] == [
        f"arr_{i}" for i in range(7)
    ]
    assert {row.logits for row in rows} == {"held_out"} and rows[1].session == "simulated.day_01"
    with h5py.File(recordings / "test.hdf5") as file:
        bins = [group.attrs["n_time_steps"] for group in file.values()]
    assert [row.frames for row in rows] == [(count - 4) // 2 + 1 for count in bins]
    for array in arrays(rows).values():
        assert array.dtype == np.float32 and array.shape[1] == 11
        np.testing.assert_allclose(np.exp(array).sum(1), 1, atol=1e-5)
    meta = read_json(tmp_path / "0-of-1.meta.json")
    assert meta["rows"] == {"in": 7, "out": 7, "rejected": 0} and meta["origin"] == "held_out"


def test_neither_batch_size_nor_shards_change_the_logits(recordings, encoders, tmp_path):
    together = arrays(save(tmp_path / "a", encoders, recordings, "test", ["full"], batch_size=32))
    assert_close(together, arrays(save(tmp_path / "b", encoders, recordings, "test", ["full"], batch_size=1)))
    parts = [save(tmp_path / "c", encoders, recordings, "test", ["full"], Shard(index, 3)) for index in range(3)]
    assert [[row.index for row in rows] for rows in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert_close(together, {name: array for rows in parts for name, array in arrays(rows).items()})


def test_the_same_inputs_give_the_same_bytes(recordings, encoders, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, encoders, recordings, "test", ["full"])
    assert (tmp_path / "a" / "0-of-1.npz").read_bytes() == (tmp_path / "b" / "0-of-1.npz").read_bytes()


def test_cross_fitted_logits_come_from_the_fold_that_has_not_learnt_the_trial(recordings, encoders, tmp_path):
    rows = save(tmp_path / "crossed", encoders, recordings, "train", ["0", "1"])
    assert {row.logits for row in rows} == {"cross_fitted"} and [row.index for row in rows] == list(range(14))
    found = arrays(rows)
    alone = {}
    for fold in ("0", "1"):
        about = json.loads((encoders / fold / "config.json").read_text())
        shutil.copytree(encoders / fold, tmp_path / fold)
        (tmp_path / fold / "config.json").write_text(json.dumps({**about, "fold": "full"}))
        shutil.move(tmp_path / fold, tmp_path / f"as_full_{fold}")
        alone[fold] = arrays(save(tmp_path / f"out_{fold}", tmp_path, recordings, "train", [f"as_full_{fold}"]))
    folds = {name: str(fold_of(42, name, FOLDS)) for name in found}
    assert set(folds.values()) == {"0", "1"}
    for name, fold in folds.items():
        np.testing.assert_allclose(found[name], alone[fold][name], atol=1e-4)
        assert np.abs(found[name] - alone["1" if fold == "0" else "0"][name]).max() > 1e-2


def test_learnt_logits_are_called_so_and_half_of_the_folds_are_refused(recordings, encoders, tmp_path, caplog):
    assert {row.logits for row in save(tmp_path, encoders, recordings, "train", ["full"])} == {"learnt"}
    assert "the encoder has learnt the train trials" in caplog.text
    for folds in (["0"], ["1", "0"], ["full", "0"]):
        with pytest.raises(UserError, match="not the folds of one configuration"):
            save(tmp_path, encoders, recordings, "train", folds)


def test_bad_trials_are_rejected_in_their_shard_and_good_ones_stay_as_they_were(recordings, encoders, tmp_path):
    path = tmp_path / "test.hdf5"
    shutil.copy(recordings / "test.hdf5", path)
    change_trial(path, "trial_0002", lambda group: group.attrs.__setitem__("n_time_steps", 2))

    def spoil(group):
        group["input_features"][5, 1] = np.nan

    change_trial(path, "trial_0003", spoil)
    before = arrays(save(tmp_path / "before", encoders, recordings, "test", ["full"]))
    rows = save(tmp_path / "after", encoders, tmp_path, "test", ["full"])
    after = arrays(rows)
    assert [row.index for row in rows] == [0, 1, 4, 5, 6]
    assert_close({name: before[name] for name in after}, after)
    lost = [row for _, row in read_jsonl(tmp_path / "after" / "0-of-1.rejected.jsonl")]
    assert {row["id"].rsplit(".", 1)[1]: row["reason"] for row in lost} == {
        "2": "no frames: 2 bins, a patch has 4",
        "3": "not numbers: input_features at bin 5",
    }
    with pytest.raises(UserError, match="2 of 7 rows were rejected"):
        save(tmp_path / "strict", encoders, tmp_path, "test", ["full"], max_rejected=0.1)


def test_trials_without_transcripts_and_of_unknown_sessions_get_logits(recordings, encoders, tmp_path, caplog):
    path = tmp_path / "test.hdf5"
    shutil.copy(recordings / "test.hdf5", path)
    with h5py.File(path, "r+") as file:
        for number, group in enumerate(file.values()):
            for name in ("seq_class_ids", "transcription"):
                del group[name]
            for name in ("sentence_label", "seq_len"):
                del group.attrs[name]
            if number % 2:
                group.attrs["session"] = "strange"
    rows = save(tmp_path / "whole", encoders, tmp_path, "test", ["full"])
    assert len(rows) == 7 and {row.text for row in rows} == {None}
    assert "1 sessions that the encoder was not trained on" in caplog.text
    parts = [save(tmp_path / "parts", encoders, tmp_path, "test", ["full"], Shard(index, 2)) for index in range(2)]
    assert_close(arrays(rows), arrays(sorted((row for part in parts for row in part), key=lambda row: row.index)))


def index(tmp_path: Path, transcripts: Path | None, shard: Shard | None = None, **keys) -> list[TrialRow]:
    index_logits(
        logits=tmp_path / "own.npz",
        transcripts=transcripts,
        partition="val",
        shard=shard or Shard(0, 1),
        cfg={"field": "text", "held_out": True, "max_rejected": 0.5, **keys},
        code="code",
        trials=tmp_path / "trials.jsonl",
        rejected=tmp_path / "rejected.jsonl",
        meta=tmp_path / "meta.json",
    )
    return list(read_records(tmp_path / "trials.jsonl", TrialRow))


def test_stored_logits_are_indexed_in_the_order_of_their_numbers(tmp_path):
    np.savez(tmp_path / "own.npz", *(np.full((number + 1, 3), -1.0) for number in range(11)))
    texts = [f"text {number}" for number in range(11)]
    (tmp_path / "t.pkl").write_bytes(pickle.dumps(texts))
    rows = index(tmp_path, tmp_path / "t.pkl", Shard(1, 2))
    assert [(row.id, row.index, row.frames, row.text) for row in rows] == [
        (f"val.arr_{number}", number, number + 1, f"text {number}") for number in range(1, 11, 2)
    ]
    assert {row.logits for row in rows} == {"held_out"}
    np.testing.assert_allclose(load_trial_logits(rows[1]), np.full((4, 3), np.log(1 / 3)), rtol=1e-6)
    assert {row.logits for row in index(tmp_path, None, held_out=False)} == {"unknown"}


def test_another_number_of_transcripts_is_an_error_with_both_counts(tmp_path):
    np.savez(tmp_path / "own.npz", np.zeros((2, 3)), np.zeros((2, 3)))
    (tmp_path / "t.txt").write_text("one\n\nthree\n")
    with pytest.raises(UserError, match=r"2 arrays in .*own\.npz, but 3 transcripts in .*t\.txt"):
        index(tmp_path, tmp_path / "t.txt")


def test_arrays_that_are_no_logits_are_rejected_rows(tmp_path):
    bad = [np.zeros(4), np.zeros((0, 3)), np.array([["a"]]), np.array([[{}]], dtype=object)]
    np.savez(tmp_path / "own.npz", np.zeros((2, 3)), *bad)
    rows = index(tmp_path, None, max_rejected=0.9)
    assert [row.id for row in rows] == ["val.arr_0"]
    reasons = [row["reason"].split(":")[0] for _, row in read_jsonl(tmp_path / "rejected.jsonl")]
    assert reasons == ["wrong shape", "no frames", "not numbers", "not numbers"]
    assert read_json(tmp_path / "meta.json")["rows"] == {"in": 5, "out": 1, "rejected": 4}
    with pytest.raises(UserError, match="4 of 5 rows were rejected"):
        index(tmp_path, None)
