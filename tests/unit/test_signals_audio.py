"""Logits of Hugging Face CTC models over audio."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from spoken_rows import audio_fields, write_manifest
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from utterflow.audio import load_row_audio
from utterflow.config.signals import AudioLogits
from utterflow.errors import UserError
from utterflow.files import read_json, read_jsonl, write_jsonl
from utterflow.gather import Shard
from utterflow.records import ManifestRow, Noise, TrialRow, read_records
from utterflow.signals import audio
from utterflow.signals.audio import load_ctc_model, save_audio_logits
from utterflow.signals.logits import ShardFiles
from utterflow.signals.stored import load_trial_logits

SECONDS = (0.5, 0.9, 0.3, 0.7, 0.61)


def save_tiny_ctc(folder: Path, norm: str) -> None:
    """A random Wav2Vec2 of 4 letters, with its processor."""
    folder.mkdir()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5, "b": 6}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8, 8, 8),
            conv_kernel=(10, 8, 4),
            conv_stride=(5, 8, 4),
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm=norm,
            do_stable_layer_norm=norm == "layer",
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(50)
    model.save_pretrained(folder)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for norm in ("layer", "group"):
        save_tiny_ctc(folder / norm, norm)
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    def describe(index: int) -> dict[str, Any]:
        noise = Noise(snr_db=5, color=1, seed=index) if index == 1 else None
        return {"text": f"text {index}", "group": f"g{index % 2}", "noise": noise}

    return write_manifest(tmp_path_factory.mktemp("corpus"), SECONDS, describe)


def save(out: Path, manifest: Path, model: Path, shard: Shard | None = None, **keys) -> list[TrialRow]:
    shard = shard or Shard(0, 1)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{shard.index}-of-{shard.count}"
    files = ShardFiles(*(out / f"{stem}{end}" for end in (".npz", ".trials.jsonl", ".rejected.jsonl", ".meta.json")))
    save_audio_logits(
        manifest=manifest,
        folder=model,
        shard=shard,
        cfg=AudioLogits.model_validate({"source": "audio", "model": f"{model}/", **keys}),
        code="code",
        state=out / "state",
        threads=1,
        files=files,
    )
    return list(read_records(files.trials, TrialRow))


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_the_logits_are_those_of_the_model_alone_whatever_the_batch_and_the_shards(models, manifest, tmp_path, norm):
    rows = save(tmp_path / "a", manifest, models / norm, batch_size=4)
    assert [(row.id, row.index, row.text, row.group) for row in rows] == [
        (f"row{index}", index, f"text {index}", f"g{index % 2}") for index in range(5)
    ]
    assert {row.logits for row in rows} == {"unknown"}
    model = Wav2Vec2ForCTC.from_pretrained(models / norm).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(models / norm)
    for row, source in zip(rows, read_records(manifest, ManifestRow), strict=True):
        inputs = extractor(load_row_audio(source), sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            expected = model(inputs.input_values).logits[0].log_softmax(-1).numpy()
        assert expected.std() > 0.5
        np.testing.assert_allclose(load_trial_logits(row), expected, atol=1e-4)
    parts = [save(tmp_path / "b", manifest, models / norm, Shard(index, 2), batch_size=3) for index in range(2)]
    assert [[row.index for row in part] for part in parts] == [[0, 2, 4], [1, 3]]
    for row in (row for part in parts for row in part):
        np.testing.assert_allclose(load_trial_logits(row), load_trial_logits(rows[row.index]), atol=1e-4)


def test_the_same_inputs_give_the_same_bytes(models, manifest, tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, manifest, models / "layer", batch_size=4)
    assert (tmp_path / "a" / "0-of-1.npz").read_bytes() == (tmp_path / "b" / "0-of-1.npz").read_bytes()


def test_a_job_that_broke_computes_only_the_other_batches_and_ends_with_the_same_bytes(
    models, manifest, tmp_path, monkeypatch
):
    save(tmp_path / "whole", manifest, models / "layer", batch_size=2)
    original, computed = audio.ctc_logits, []

    def breaks(model, signals):
        if len(computed) == 2:
            raise RuntimeError("killed")
        computed.append(len(signals))
        return original(model, signals)

    monkeypatch.setattr(audio, "ctc_logits", breaks)
    with pytest.raises(RuntimeError, match="killed"):
        save(tmp_path / "broken", manifest, models / "layer", batch_size=2)
    assert not (tmp_path / "broken" / "0-of-1.npz").exists()
    computed.clear()
    save(tmp_path / "broken", manifest, models / "layer", batch_size=2)
    assert computed == [1]
    assert (tmp_path / "broken" / "0-of-1.npz").read_bytes() == (tmp_path / "whole" / "0-of-1.npz").read_bytes()
    assert not list((tmp_path / "broken" / "state").rglob("*.npz"))


def test_only_models_that_do_not_mind_padding_are_run_in_batches(models):
    assert load_ctc_model(models / "layer", torch.device("cpu")).padded
    assert not load_ctc_model(models / "group", torch.device("cpu")).padded


def test_recordings_that_cannot_be_used_are_rejected_and_the_others_stay(models, manifest, tmp_path):
    rows = [row for _, row in read_jsonl(manifest)]
    short = tmp_path / "short.wav"
    soundfile.write(short, np.ones(20) / 2, 16000)
    rows[1] |= {"audio": str(tmp_path / "none.wav")}
    rows[2] |= audio_fields(short)
    write_jsonl(tmp_path / "manifest.jsonl", rows)
    whole = save(tmp_path / "whole", manifest, models / "layer")
    found = save(tmp_path / "part", tmp_path / "manifest.jsonl", models / "layer", max_rejected=0.5)
    assert [row.id for row in found] == ["row0", "row3", "row4"]
    for row in found:
        np.testing.assert_allclose(load_trial_logits(row), load_trial_logits(whole[row.index]), atol=1e-4)
    lost = {
        row["id"]: row["reason"].split(":")[0] for _, row in read_jsonl(tmp_path / "part" / "0-of-1.rejected.jsonl")
    }
    assert lost == {"row1": "missing", "row2": "too short"}
    assert read_json(tmp_path / "part" / "0-of-1.meta.json")["rows"] == {"in": 5, "out": 3, "rejected": 2}


def test_values_that_are_no_numbers_are_rejected(models, manifest, tmp_path):
    shutil.copytree(models / "layer", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["lm_head.bias"] = torch.full_like(weights["lm_head.bias"], float("nan"))
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    assert save(tmp_path / "out", manifest, tmp_path / "broken", max_rejected=1) == []
    reasons = {row["reason"] for _, row in read_jsonl(tmp_path / "out" / "0-of-1.rejected.jsonl")}
    assert {reason.split(":")[0] for reason in reasons} == {"not numbers"}


def test_a_folder_without_a_ctc_model_ends_the_job_plainly(models, tmp_path):
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="model folder not found"):
        load_ctc_model(tmp_path / "none", cpu)
    with pytest.raises(UserError, match="cannot load this CTC model"):
        load_ctc_model(tmp_path, cpu)
    shutil.copytree(models / "layer", tmp_path / "headless")
    weights = load_file(tmp_path / "headless" / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "headless" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of the model's weights, e\.g\. lm_head\.weight"):
        load_ctc_model(tmp_path / "headless", cpu)
