"""Simulated recordings, and recordings as they are read: what is used, what is rejected and why."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
from simulated_recordings import change_trial, simulate, tiny_encoder, write_lexicon

from utterflow.beams.tokens import read_tokens
from utterflow.errors import UserError
from utterflow.records import RejectedRow
from utterflow.signals.data import load_data
from utterflow.signals.hdf5 import Reader, list_trials, no_bins, normalisation_of, parted
from utterflow.signals.simulate import read_sentences


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    simulate(folder, "train", 12)
    return folder


@pytest.fixture
def writable(recordings, tmp_path):
    for name in ("train.hdf5", "tokens.txt"):
        (tmp_path / name).write_bytes((recordings / name).read_bytes())
    return tmp_path


def replace(group, name, values):
    if name in group:
        del group[name]
    if values is not None:
        group[name] = values


def test_a_trial_has_the_datasets_and_attributes_of_the_benchmarks(recordings):
    sentence = (recordings / "train.txt").read_text().splitlines()[3]
    with h5py.File(recordings / "train.hdf5") as file:
        assert list(file) == [f"trial_{number:04d}" for number in range(12)]
        assert "SIMULATED" in file.attrs["description"] and file.attrs["simulated"]
        group = file["trial_0003"]
        attributes = dict(group.attrs)
        features, classes, letters = (group[name][:] for name in ("input_features", "seq_class_ids", "transcription"))
    assert features.dtype == np.float32 and features.shape == (attributes["n_time_steps"], 8)
    assert attributes["sentence_label"] == sentence
    assert attributes["session"] == "simulated.day_01"
    assert (attributes["block_num"], attributes["trial_num"]) == (0, 3)
    assert "".join(map(chr, letters[: list(letters).index(0)])) == sentence
    names = ["-", "AA", "AH", "AO", "AW", "F", "IY", "N", "S", "UW", "|"]
    lexicon = dict(line.split(" ", 1) for line in (recordings / "lexicon.txt").read_text().splitlines())
    expected = [names.index(phone) for word in sentence.split() for phone in lexicon[word].split()]
    assert classes[: attributes["seq_len"]].tolist() == expected
    assert not classes[attributes["seq_len"] :].any()


def test_the_same_keys_give_the_same_bytes_and_another_seed_gives_others(recordings, tmp_path):
    again = simulate(tmp_path / "again", "train", 12)
    other = simulate(tmp_path / "other", "train", 12, seed=2)
    assert again.read_bytes() == (recordings / "train.hdf5").read_bytes() != other.read_bytes()


def test_a_trial_does_not_depend_on_how_many_follow_and_a_session_is_the_same_in_all_partitions(recordings, tmp_path):
    shorter = simulate(tmp_path, "train", 5)
    with h5py.File(shorter) as one, h5py.File(recordings / "train.hdf5") as other:
        for name in one:
            np.testing.assert_array_equal(one[name]["input_features"][:], other[name]["input_features"][:])
    means = {}
    for partition in ("train", "val"):
        path = simulate(tmp_path / partition, partition, 30)
        moments = moments_of(path)
        means[partition] = np.stack([moments[session].mean for session in sorted(moments)])
    apart = np.abs(means["train"][0] - means["train"][1]).max()
    assert np.abs(means["train"] - means["val"]).max() < apart / 2


def moments_of(path):
    moments = {}
    with Reader() as reader:
        for trial in parted(list_trials([path]))[0]:
            features = reader.features(trial)
            before = moments.get(trial.session, no_bins(features.shape[1]))
            moments[trial.session] = before.with_bins(features)
    return moments


def test_words_that_the_lexicon_lacks_are_named(tmp_path):
    write_lexicon(tmp_path)
    with pytest.raises(UserError, match=r"1 words .* are not in the lexicon .*: blue"):
        simulate_with(tmp_path, "see blue\n")


def simulate_with(folder, text):
    from utterflow.beams.lexicon import read_lexicon
    from utterflow.signals.simulate import spell

    (folder / "s.txt").write_text(text)
    lexicon = read_lexicon(folder / "lexicon.txt", read_tokens(folder / "tokens.txt"))
    return spell(read_sentences(folder / "s.txt", None), lexicon, folder / "s.txt", folder / "lexicon.txt")


def test_sentences_come_from_lines_or_from_slurp_rows(tmp_path):
    (tmp_path / "a.txt").write_text("See  A\n\non\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in ("See A", "on")))
    assert read_sentences(tmp_path / "a.txt", None) == read_sentences(tmp_path / "a.jsonl", None) == ["see a", "on"]
    assert read_sentences(tmp_path / "a.txt", 1) == ["see a"]
    (tmp_path / "b.jsonl").write_text('{"text": "see"}\n')
    with pytest.raises(UserError, match="no `sentence`"):
        read_sentences(tmp_path / "b.jsonl", None)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="no sentences"):
        read_sentences(tmp_path / "empty.txt", None)


def test_statistics_of_trials_one_after_the_other_are_those_of_all_together(recordings):
    with Reader() as reader:
        trials = [trial for trial in parted(list_trials([recordings / "train.hdf5"]))[0] if "day_00" in trial.session]
        features = [reader.features(trial) for trial in trials]
    found = moments_of(recordings / "train.hdf5")["simulated.day_00"]
    together = np.concatenate(features).astype(np.float64)
    np.testing.assert_allclose(found.mean, together.mean(0))
    np.testing.assert_allclose(found.squares / found.count, together.var(0))
    scaled = normalisation_of(found).apply(np.concatenate(features)).astype(np.float64)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-3)


def test_a_dead_channel_becomes_zero():
    features = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    features[:, 1] = 7
    scaled = normalisation_of(no_bins(2).with_bins(features)).apply(features)
    assert not scaled[:, 1].any() and scaled[:, 0].any()


def test_trials_are_listed_in_the_order_of_files_and_numbers_and_without_attributes_by_name(tmp_path):
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        for name in ("trial_10", "trial_9"):
            file.create_group(name)["input_features"] = np.zeros((5, 2), np.float32)
        file["note"] = 1
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for name in ("trial_0", "trial_1"):
            group = file.create_group(name)
            group.attrs.update({"session": np.bytes_(b"s"), "block_num": 4, "trial_num": 7, "sentence_label": "Hi."})
    entries = list_trials([tmp_path / "b.hdf5", tmp_path / "a.hdf5"])
    assert [entry.id for entry in entries] == ["b.note", "b.trial_9", "b.trial_10", "s.4.7", "s.4.7"]
    assert isinstance(entries[0], RejectedRow) and entries[0].reason.startswith("not a trial")
    assert isinstance(entries[4], RejectedRow) and "trial_0" in entries[4].reason
    assert [entry.index for entry in entries[1:4]] == [1, 2, 3]
    assert entries[3].text == "Hi." and entries[3].session == "s" and entries[1].text is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda group: replace(group, "input_features", None), "missing dataset: input_features"),
        (lambda group: replace(group, "input_features", np.zeros((99, 7), np.float32)), "wrong channel count: 7"),
        (lambda group: replace(group, "input_features", np.zeros(40, np.float32)), "wrong shape: input_features"),
        (lambda group: replace(group, "input_features", np.full((90, 8), np.nan)), "not numbers: input_features at"),
        (lambda group: group.attrs.__setitem__("n_time_steps", "many"), "not a number: n_time_steps is 'many'"),
        (
            lambda group: replace(group, "input_features", None) or group.create_group("input_features"),
            "missing dataset",
        ),
        (lambda group: group.attrs.__setitem__("n_time_steps", 0), "no frames: n_time_steps is 0"),
        (lambda group: group.attrs.__setitem__("n_time_steps", 9999), "no frames: n_time_steps is 9999"),
        (lambda group: group.attrs.__setitem__("n_time_steps", 3), "no frames: 3 bins, a patch has 4"),
        (lambda group: group.attrs.__setitem__("n_time_steps", 8), "target longer than the frames"),
        (lambda group: replace(group, "seq_class_ids", None), "missing dataset: seq_class_ids"),
        (lambda group: replace(group, "seq_class_ids", [1, 11] + [2] * 90), "class out of range: 11"),
        (lambda group: replace(group, "seq_class_ids", [1, 0, 2] + [0] * 90), "class out of range: 0"),
        (lambda group: group.attrs.__setitem__("seq_len", 0), "no target"),
        (lambda group: group.attrs.__setitem__("seq_len", 9999), "no target"),
    ],
)
def test_a_trial_that_cannot_be_learnt_is_rejected_with_its_place_and_the_others_stay(writable, change, reason):
    change_trial(writable / "train.hdf5", "trial_0004", change)
    cfg = tiny_encoder(max_rejected=0.5)
    data = load_data([writable / "train.hdf5"], [], read_tokens(writable / "tokens.txt"), "full", cfg, writable)
    assert len(data.train) == 11
    (row,) = data.rejected
    assert row.id == "simulated.day_00.0.4" and row.where == f"{writable / 'train.hdf5'}, trial_0004"
    assert row.reason.startswith(reason)


def test_features_are_laid_out_normalised_and_the_store_leaves_no_file(writable):
    tokens = read_tokens(writable / "tokens.txt")
    before = set(writable.iterdir())
    data = load_data([writable / "train.hdf5"], [], tokens, "full", tiny_encoder(), writable)
    assert set(writable.iterdir()) == before
    with Reader() as reader:
        for example, trial in zip(data.train, parted(list_trials([writable / "train.hdf5"]))[0], strict=True):
            expected = data.normalisations[trial.session].apply(reader.features(trial))
            np.testing.assert_array_equal(data.store[example.start : example.start + example.bins], expected)
            assert list(data.normalisations)[example.session] == trial.session


def test_too_many_bad_trials_no_trials_and_files_that_are_none_end_the_job_plainly(writable):
    tokens = read_tokens(writable / "tokens.txt")
    path = writable / "train.hdf5"

    def load(files, fold="full", **changes):
        return load_data(files, [], tokens, fold, tiny_encoder(**changes), writable)

    with pytest.raises(UserError, match="nothing to train on"):
        load([])
    with pytest.raises(UserError, match="file not found"):
        load([writable / "none.hdf5"])
    (writable / "text.hdf5").write_text("no hdf5")
    with pytest.raises(UserError, match="not a readable hdf5 file"):
        load([writable / "text.hdf5"])
    with h5py.File(writable / "empty.hdf5", "w"):
        pass
    with pytest.raises(UserError, match="no trials in this file"):
        load([writable / "empty.hdf5"])
    change_trial(path, "trial_0004", lambda group: replace(group, "input_features", None))
    with pytest.raises(UserError, match="1 of 12 rows were rejected"):
        load([path])
