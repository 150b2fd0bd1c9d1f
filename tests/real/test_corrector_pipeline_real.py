"""200 real Whisper 5-best lists through the corrector's rules: data set, mixture, LoRA, answers, scores.

A nano model and a few steps: what is tested is that rows, counts and scores are right, not that answers get better.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import workspace
import yaml

from utterflow.corrector.records import CorrectionMetrics, CorrectionRow
from utterflow.evaluate.files import score_lists
from utterflow.files import read_json, read_jsonl, write_jsonl
from utterflow.records import CandidatesRow, PredictionRow, RejectedRow, SftRow, read_records

LISTS = Path(__file__).resolve().parents[3] / "shared/data/nbest/hyporadise_sample_200.jsonl"
TRAIN, TEST = 150, 50
LIMIT = 300  # tokens of a training row; the model's tokenizer has short pieces for words that it does not know

pytestmark = pytest.mark.skipif(not LISTS.is_file(), reason=f"real n-best lists are not here: {LISTS}")

CONFIG: dict[str, Any] = {
    "name": "real",
    "models": {"nano": {"model": "resources/demo/models/nano-llm"}},
    "datasets": {
        "real": {
            "builder": "corrector",
            "train": [{"lists": "lists/train.jsonl"}],
            "test": [{"lists": "lists/test.jsonl"}],
            "candidates": 5,
        },
    },
    "trainings": {
        "real": {
            "model": "nano",
            "train": [{"dataset": "real"}],
            "validation_share": 0.1,
            "adapter": {"r": 4, "targets": "all-linear"},
            "max_length": LIMIT,
            "max_rejected": 0.9,
            "max_steps": 4,
            "batch_size": 4,
            "accumulation": 1,
            "evaluate_every": 2,
            "log_every": 1,
        },
    },
    "predictions": {
        "real": {"dataset": "real", "training": "real", "max_new_tokens": 24, "batch_size": 10, "max_rejected": 0.2},
    },
    "corrections": {"real": {"prediction": "real"}},
    "scoring": {"default": {"normalizer": "whisper_english", "oracle_at": [1, 2, 5], "bootstrap": {"samples": 200}}},
    "runs": [{"corrections": ["real"], "scoring": ["default"]}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    workspace.copy_workflow(folder, "resources")
    rows = [row for _, row in read_jsonl(LISTS)]
    assert len(rows) == TRAIN + TEST
    (folder / "lists").mkdir()
    write_jsonl(folder / "lists/train.jsonl", (row for place, row in enumerate(rows) if place % 4))
    write_jsonl(folder / "lists/test.jsonl", (row for place, row in enumerate(rows) if place % 4 == 0))
    (folder / "real.yaml").write_text(yaml.safe_dump(CONFIG))
    done = workspace.snakemake(folder, "all", "--configfile", "real.yaml")
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def test_every_list_becomes_a_row(folder: Path) -> None:
    for split, count in (("train", TRAIN), ("test", TEST)):
        source = [row for _, row in read_jsonl(folder / f"lists/{split}.jsonl")]
        items = list(read_records(folder / f"results/sft/real/{split}.candidates.jsonl", CandidatesRow))
        rows = list(read_records(folder / f"results/sft/real/{split}.jsonl", SftRow))
        assert len(source) == len(items) == len(rows) == count
        for entry, item, row in zip(source, items, rows, strict=True):
            assert item.input_beams == list(dict.fromkeys(entry["input"])) and item.cut == 0
            assert row.target == item.ground_truth == entry["output"]
            assert row.messages[-1].content == item.formatted_input
        meta = read_json(folder / f"results/sft/real/{split}.meta.json")
        assert meta["rows"] == {"in": count, "out": count, "rejected": 0}


def test_the_training_has_every_row_or_its_reason(folder: Path) -> None:
    home = folder / "results/finetune/real"
    train, validation = (list(read_records(home / f"data/{part}.jsonl", SftRow)) for part in ("train", "validation"))
    assert (len(train), len(validation)) == (135, 15)
    assert not {row.id for row in train} & {row.id for row in validation}
    rejected = list(read_records(home / "rejected.jsonl", RejectedRow))
    metrics = read_json(home / "metrics.json")
    assert metrics["rows"] == {"in": TRAIN, "out": TRAIN - len(rejected), "rejected": len(rejected)}
    assert 0 < len(rejected) < TRAIN and all("too long" in row.reason for row in rejected)
    assert metrics["train"]["longest"] <= LIMIT and metrics["steps"] == 4
    assert (home / "adapter/adapter_model.safetensors").stat().st_size > 0


def test_every_prompt_has_its_answer_or_its_reason(folder: Path) -> None:
    home = folder / "results/generate/real"
    asked = [row.id for row in read_records(folder / "results/sft/real/test.jsonl", SftRow)]
    answers = list(read_records(home / "predictions.jsonl", PredictionRow))
    rejected = list(read_records(home / "predictions.rejected.jsonl", RejectedRow))
    lost = {row.id for row in rejected}
    assert [row.id for row in answers] == [name for name in asked if name not in lost]
    assert len(answers) + len(rejected) == TEST and len(lost) == len(rejected)
    assert read_json(home / "predictions.meta.json")["rows"] == {"in": TEST, "out": len(answers), "rejected": len(lost)}
    for row in answers:
        assert 1 <= row.output_tokens[0] <= 24 and (row.finish[0] == "length") == (row.output_tokens[0] == 24)


def test_scores_are_those_of_the_lists(folder: Path, tmp_path: Path) -> None:
    """First candidate, MBR choice and oracles are what `utterflow score nbest` says of the lists that have answers."""
    metrics = CorrectionMetrics.model_validate(read_json(folder / "results/corrections/real/default.json"))
    answered = {row.id for row in read_records(folder / "results/generate/real/predictions.jsonl", PredictionRow)}
    lists = [row for _, row in read_jsonl(folder / "lists/test.jsonl") if f"test:{row['id']}" in answered]
    assert len(lists) == len(answered) == metrics.total.utterances == metrics.rows["out"] > 0.8 * TEST
    write_jsonl(tmp_path / "answered.jsonl", lists)
    whole = score_lists(tmp_path / "answered.jsonl", "whisper_english")
    systems = metrics.total.systems
    for system in ("first", "mbr", "oracle", "compositional_oracle"):
        assert systems[system].wer.value == whole[system], system
    assert systems["first"].cer == whole["cer"]
    assert systems["oracle@1"] == systems["first"] and systems["oracle@5"] == systems["oracle"]
    assert systems["oracle"].edits <= systems["mbr"].edits
    assert metrics.rejected_before == {"build_corrector_data": 0, "generate": TEST - len(answered)}


def test_metrics_are_complete(folder: Path) -> None:
    home = folder / "results/corrections/real"
    metrics = read_json(home / "default.json")
    total = metrics["total"]
    for system, scores in total["systems"].items():
        rate = scores["wer"]
        assert rate["low"] <= rate["value"] <= rate["high"], system
    assert total["beats_first"] in ("true", "false", "not significant")
    assert total["beats_mbr"] in ("true", "false", "not significant")
    for baseline in ("first", "mbr"):
        difference = total["systems"]["corrected"]["wer"]["value"] - total["systems"][baseline]["wer"]["value"]
        assert total[f"corrected_less_{baseline}"]["value"] == pytest.approx(difference)
        assert 0 <= total[f"corrected_less_{baseline}"]["p_value"] <= 1
    rows = list(read_records(home / "default.rows.jsonl", CorrectionRow))
    assert len(rows) == total["utterances"]
    for name, system in (("first", "first"), ("corrected", "corrected"), ("mbr", "mbr"), ("oracle", "oracle")):
        assert sum(getattr(row, f"{name}_edits") for row in rows) == total["systems"][system]["edits"]
    assert sum(part["utterances"] for part in metrics["by_reference_words"]) == len(rows)
    assert (home / "default.tsv").read_text().count("\n") > 20
    page = (folder / "results/report/corrections.html").read_text()
    assert "real" in page and (folder / "results/report/training_loss.svg").stat().st_size > 1000
