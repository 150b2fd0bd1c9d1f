"""A tiny Qwen2-Audio through all rules: recordings in, prompts with audio, LoRA, answers, SLURP's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import workspace
from tiny_audio import save_tiny_audio

from utterflow.audio import SAMPLE_RATE, load_audio
from utterflow.files import read_jsonl
from utterflow.records import PredictionRow, SftRow, read_records

pytestmark = pytest.mark.timeout(600)

DEMO = workspace.REPOSITORY / "resources/demo"
AUDIO = DEMO / "slurp/audio"
LONGEST = 3.5  # seconds; the tiny model hears 4
TEST, TRAIN = 4, 6
CONFIG: dict[str, Any] = {
    "name": "listening",
    "corpora": {
        "heard": {
            "adapter": "slurp",
            "annotations": "test.jsonl",
            "audio_dir": str(AUDIO),
            "recordings": "first",
            "noise": {"snr_db": [20, 20]},
        }
    },
    "asr": {"nano": {"model": str(DEMO / "models/whisper-nano"), "diversity_method": "beam", "num_hypotheses": 2}},
    "models": {"ears": {"model": "./ears", "kind": "audio"}},
    "datasets": {
        "listening": {
            "builder": "slu",
            "train": [{"lists": "train.jsonl"}],
            "test": [{"corpus": "heard", "asr": "nano"}],
            "audio": True,
            "candidates": 2,
        }
    },
    "trainings": {
        "listening": {
            "model": "ears",
            "train": [{"dataset": "listening"}],
            "adapter": {"projector": True},
            "max_steps": 2,
            "batch_size": 2,
            "accumulation": 1,
        }
    },
    "predictions": {
        "listening": {"dataset": "listening", "training": "listening", "max_new_tokens": 8, "batch_size": 3}
    },
    "understandings": {"listening": {"prediction": "listening", "bootstrap_samples": 10}},
    "runs": [{"understandings": ["listening"]}],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listening")
    workspace.copy_workflow(folder)
    save_tiny_audio(folder / "ears", "qwen2_audio")
    rows = [
        row
        for _, row in read_jsonl(DEMO / "slurp/test.jsonl")
        if load_audio(AUDIO / row["recordings"][0]["file"]).size < LONGEST * SAMPLE_RATE
    ][: TEST + TRAIN]
    assert len(rows) == TEST + TRAIN
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:TEST]))
    lists = [
        {**row, "audio": str(AUDIO / row["recordings"][0]["file"]), "input": [row["sentence"]]} for row in rows[TEST:]
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    done = workspace.snakemake(folder, "all", "--configfile", workspace.write_config(folder, CONFIG))
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def test_prompts_hold_recordings_with_their_noise(place: Path) -> None:
    for split, count, noisy in (("train", TRAIN, False), ("test", TEST, True)):
        rows = list(read_records(place / f"results/sft/listening/{split}.jsonl", SftRow))
        assert len(rows) == count
        for row in rows:
            audio, text = row.messages[-1].content
            assert audio["type"] == "audio" and Path(audio["path"]).is_file()
            assert bool(audio.get("noise")) == noisy
            assert text["text"].startswith("<slu>\n")


def test_the_projector_is_in_the_adapter_and_every_row_is_answered(place: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(place / "results/finetune/listening/adapter/adapter_model.safetensors")
    assert any("multi_modal_projector" in name for name in weights)
    assert any("lora_A" in name for name in weights) and not any("audio_tower" in name for name in weights)
    answers = list(read_records(place / "results/generate/listening/predictions.jsonl", PredictionRow))
    assert len(answers) == TEST


def test_answers_of_a_model_that_has_learnt_nothing_count_as_wrong(place: Path) -> None:
    metrics = json.loads((place / "results/slu/listening/metrics_label_only.json").read_text())
    assert metrics["gold"] == metrics["scored"] == metrics["unparsable"] == TEST
    assert metrics["micro"]["intent_f1"] == 0
    understood = [row for _, row in read_jsonl(place / "results/slu/listening/prediction.jsonl")]
    assert all(row["raw_output"] is not None and row["problem"] for row in understood)
