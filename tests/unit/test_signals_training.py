"""Training of the encoder: it learns, goes on after a kill with the same bytes, and fails plainly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from simulated_recordings import simulate, tiny_encoder, train

from utterflow.errors import UserError
from utterflow.records import read_records
from utterflow.signals import training
from utterflow.signals.checkpoints import EncoderFile, fold_of, load_encoder
from utterflow.signals.hdf5 import list_trials, parted
from utterflow.signals.training import (
    Batch,
    CtcMetrics,
    CtcStep,
    augment,
    batches_of_epoch,
    collapse,
    learning_rate,
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    simulate(folder, "train", 40)
    simulate(folder, "val", 12)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(recordings, tmp_path_factory):
    return train(recordings, tmp_path_factory.mktemp("whole"), tiny_encoder(steps=12, evaluate_every=3))


RESULTS = ("model.safetensors", "config.json", "history.jsonl", "metrics.json")


def same_bytes(left: Path, right: Path) -> bool:
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in RESULTS)


def test_training_learns_phones_and_keeps_the_best_step(recordings, tmp_path):
    out = train(recordings, tmp_path, tiny_encoder(steps=160, evaluate_every=40, batch_size=10))
    steps = list(read_records(out / "history.jsonl", CtcStep))
    metrics = CtcMetrics.model_validate(json.loads((out / "metrics.json").read_text()))
    assert [step.step for step in steps] == [40, 80, 120, 160]
    assert metrics.per == min(step.per for step in steps) < 0.35
    assert metrics.best_step == next(step.step for step in steps if step.per == metrics.per)
    assert metrics.errors == round(metrics.per * metrics.phones)
    assert metrics.trials == {"train": 40, "val": 12} and metrics.sessions == 2 and metrics.rejected == []
    assert steps[-1].loss < steps[0].loss / 3
    assert steps[-1].learning_rate < 1e-5


def test_the_result_is_the_best_checkpoint_and_not_the_last(recordings, tmp_path, monkeypatch):
    errors = iter((50, 20, 20, 30))
    kept = {}
    monkeypatch.setattr(training, "count_errors", lambda encoder, *_: (
        kept.setdefault(len(kept), {name: item.clone() for name, item in encoder.state_dict().items()}),
        next(errors),
    )[1])  # fmt: skip
    out = train(recordings, tmp_path, tiny_encoder(steps=4, evaluate_every=1))
    assert json.loads((out / "metrics.json").read_text())["best_step"] == 2
    saved = load_file(out / "model.safetensors")
    assert all(torch.equal(saved[name], item) for name, item in kept[1].items())
    assert not torch.equal(saved["head.weight"], kept[2]["head.weight"])


def test_the_same_keys_give_the_same_bytes_and_another_seed_gives_others(recordings, uninterrupted, tmp_path):
    assert same_bytes(train(recordings, tmp_path / "again", tiny_encoder(steps=12, evaluate_every=3)), uninterrupted)
    other = train(recordings, tmp_path / "other", tiny_encoder(steps=12, evaluate_every=3, seed=7))
    assert not same_bytes(other, uninterrupted)


@pytest.mark.parametrize("last", [1, 4, 6, 11])
def test_a_training_that_broke_goes_on_to_the_same_bytes(recordings, uninterrupted, tmp_path, monkeypatch, last):
    cfg = tiny_encoder(steps=12, evaluate_every=3)
    original, seen = training.batch_loss, []

    def breaks(*arguments):
        if len(seen) == last:
            raise RuntimeError("killed")
        seen.append(1)
        return original(*arguments)

    monkeypatch.setattr(training, "batch_loss", breaks)
    with pytest.raises(RuntimeError, match="killed"):
        train(recordings, tmp_path, cfg)
    assert not (tmp_path / "full" / "model.safetensors").exists()
    computed = []
    monkeypatch.setattr(training, "batch_loss", lambda *arguments: computed.append(1) or original(*arguments))
    assert same_bytes(train(recordings, tmp_path, cfg), uninterrupted)
    assert len(computed) == 12 - last // 3 * 3


def test_a_killed_process_goes_on_to_the_same_bytes(recordings, tmp_path):
    """SIGKILL after the first checkpoint, of 16."""
    keys = "steps=80, evaluate_every=5"
    script = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path\n"
        "from simulated_recordings import tiny_encoder, train\n"
        f"train(Path(sys.argv[1]), Path(sys.argv[2]), tiny_encoder({keys}))\n"
    )
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "workflow")]
    command = [sys.executable, "-c", script, str(recordings), str(tmp_path / "killed"), *paths]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("state/train_ctc/*/checkpoint.pt")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    (checkpoint,) = (tmp_path / "killed").glob("state/train_ctc/*/checkpoint.pt")
    assert 0 < torch.load(checkpoint, weights_only=True)["done"]["step"] < 80
    assert not (tmp_path / "killed" / "full").exists()
    subprocess.run(command, env=environment, check=True)
    command[4] = str(tmp_path / "whole")
    subprocess.run(command, env=environment, check=True)
    assert same_bytes(tmp_path / "killed" / "full", tmp_path / "whole" / "full")


def test_folds_leave_out_their_trials_and_together_all_of_them(recordings, tmp_path):
    cfg = tiny_encoder(steps=2, folds=3)
    ids = [trial.id for trial in parted(list_trials([recordings / "train.hdf5"]))[0]]
    left_out = []
    for fold in range(3):
        out = train(recordings, tmp_path, cfg, fold=str(fold))
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["trials"]["train"] + metrics["left_out"] == 40
        assert metrics["left_out"] == sum(fold_of(cfg.seed, trial, 3) == fold for trial in ids) > 0
        left_out.append(metrics["left_out"])
    assert sum(left_out) == 40


def test_without_val_the_last_weights_are_kept(recordings, tmp_path):
    (tmp_path / "train.hdf5").symlink_to(recordings / "train.hdf5")
    (tmp_path / "tokens.txt").symlink_to(recordings / "tokens.txt")
    files = {name: tmp_path / f"{name}.out" for name in ("model", "config", "history", "metrics", "meta")}
    training.train_ctc(
        train=[tmp_path / "train.hdf5"], val=[], tokens=tmp_path / "tokens.txt", fold="full",
        cfg=tiny_encoder(steps=4, evaluate_every=2), code="code", state=tmp_path / "state", threads=1, **files,
    )  # fmt: skip
    metrics = json.loads(files["metrics"].read_text())
    assert metrics["per"] is None and metrics["best_step"] == 4


def test_a_loss_that_is_no_number_ends_the_job_plainly(recordings, tmp_path, monkeypatch):
    original = training.batch_loss
    monkeypatch.setattr(training, "batch_loss", lambda *arguments: original(*arguments) * float("inf"))
    with pytest.raises(UserError, match="the loss is not a number at step 4"):
        train(recordings, tmp_path, tiny_encoder())


def test_an_encoder_is_loaded_as_it_was_saved_and_a_broken_one_is_refused(recordings, uninterrupted, tmp_path):
    encoder = load_encoder(uninterrupted / "model.safetensors", uninterrupted / "config.json", torch.device("cpu"))
    assert encoder.about.sessions == ["simulated.day_00", "simulated.day_01"]
    assert encoder.about.tokens[0] == "-" and encoder.about.tokens[-1] == "|" and encoder.about.fold == "full"
    assert encoder.normalisations["simulated.day_01"].mean.shape == (8,)
    assert EncoderFile.model_validate(json.loads((uninterrupted / "config.json").read_text())) == encoder.about
    torn = tmp_path / "model.safetensors"
    torn.write_bytes((uninterrupted / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot load this encoder"):
        load_encoder(torn, uninterrupted / "config.json", torch.device("cpu"))


def test_sessions_of_val_that_training_has_not_seen_are_used_all_the_same(recordings, tmp_path, caplog):
    for name in ("train.hdf5", "val.hdf5", "tokens.txt"):
        (tmp_path / name).write_bytes((recordings / name).read_bytes())
    with h5py.File(tmp_path / "val.hdf5", "r+") as file:
        for name in list(file)[:3]:
            file[name].attrs["session"] = "strange"
    out = train(tmp_path, tmp_path / "out", tiny_encoder(steps=2))
    assert json.loads((out / "metrics.json").read_text())["trials"]["val"] == 12
    assert "strange" in caplog.text


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing():
    cfg = tiny_encoder(steps=100, warmup_steps=10, learning_rate=2.0)
    rates = [learning_rate(step, cfg) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0) and 0 < rates[99] < 0.001


def test_each_epoch_has_every_trial_once_in_batches_of_similar_length_and_another_order():
    lengths = list(np.random.default_rng(0).integers(10, 500, 50))
    first, second = (batches_of_epoch(lengths, 8, seed=1, epoch=epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(place for batch in batches for place in batch) == list(range(50))
        spread = [max(lengths[place] for place in batch) / min(lengths[place] for place in batch) for batch in batches]
        assert np.median(spread) < 2
    assert first != second and first == batches_of_epoch(lengths, 8, seed=1, epoch=0)


def test_augmentation_draws_noise_offsets_and_masks_as_configured():
    torch.manual_seed(0)
    batch = Batch(torch.ones(40, 100, 5), torch.full((40,), 100), torch.zeros(40), torch.zeros(0), torch.zeros(0))
    nothing = {"white_noise": 0, "offset_noise": 0, "time_masks": 0}
    assert augment(batch, tiny_encoder(**nothing)).features.equal(batch.features)
    noisy = augment(batch, tiny_encoder(**{**nothing, "white_noise": 0.3})).features - 1
    assert noisy.std() == pytest.approx(0.3, rel=0.05)
    offset = augment(batch, tiny_encoder(**{**nothing, "offset_noise": 0.5})).features - 1
    assert offset.std(dim=1).max() < 1e-6 and offset.std() == pytest.approx(0.5, rel=0.2)
    masked = augment(batch, tiny_encoder(**{**nothing, "time_masks": 2, "time_mask_share": 0.1})).features == 0
    assert masked.all(-1).equal(masked.any(-1))
    assert 0 < masked[..., 0].sum(1).max() <= 20 and 5 < masked[..., 0].sum(1).float().mean() < 14


def test_a_path_collapses_to_its_classes():
    assert collapse([0, 3, 3, 0, 3, 4, 4, 0, 0], blank=0) == [3, 3, 4]
    assert collapse([], blank=0) == []
