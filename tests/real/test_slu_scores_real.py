"""SLURP's devel set: predictions whose scores are known, over all its recordings and sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import pytest
from understood_runs import PLAIN, prediction, run

from utterflow.cli import main
from utterflow.files import read_jsonl, write_jsonl
from utterflow.slu.labels import majority
from utterflow.slu.metrics import char_distance, word_distance

DEVEL = Path(__file__).resolve().parents[3] / "shared/data/slurp/devel.jsonl"
NAMES = ("scenario_f1", "action_f1", "intent_f1", "entity_f1", "word_f1", "char_f1", "slu_f1")
SENTENCES, RECORDINGS = 2033, 8690

pytestmark = pytest.mark.skipif(not DEVEL.is_file(), reason=f"SLURP's annotations are not here: {DEVEL}")


def labels(row: dict[str, Any]) -> dict[str, Any]:
    """A record's gold labels in the prediction format."""
    fillers = [" ".join(row["tokens"][place]["surface"] for place in entity["span"]) for entity in row["entities"]]
    entities = [
        {"type": entity["type"], "filler": filler.lower()}
        for entity, filler in zip(row["entities"], fillers, strict=True)
    ]
    return {"scenario": row["scenario"], "action": row["action"], "entities": entities}


def perfect() -> Iterator[dict[str, Any]]:
    for _, row in read_jsonl(DEVEL):
        for recording in row["recordings"]:
            yield {"file": recording["file"], **labels(row)}


def score(capsys: pytest.CaptureFixture[str], folder: Path, rows: Any, *more: str) -> dict[str, Any]:
    write_jsonl(folder / "pred.jsonl", rows)
    assert main(["score", "slu", "--gold", str(DEVEL), "--pred", str(folder / "pred.jsonl"), *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_gold_labels_are_perfect(tmp_path: Path, capsys: pytest.CaptureFixture[str], average: str):
    made = score(capsys, tmp_path, perfect(), "--average", average)
    assert {made[name] for name in NAMES} == {made["strict"][name] for name in NAMES} == {1.0}
    assert (made["gold"], made["scored"], made["coverage"]) == (RECORDINGS, RECORDINGS, 1)
    by_sentence = ({"slurp_id": str(row["slurp_id"]), **labels(row)} for _, row in read_jsonl(DEVEL))
    texts = score(capsys, tmp_path, by_sentence, "--text", "--average", average)
    assert {texts[name] for name in NAMES} == {1.0}
    assert texts["gold"] == SENTENCES


def test_half_of_the_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = score(capsys, tmp_path, list(perfect())[::2])
    assert {made[name] for name in NAMES} == {1.0}
    assert made["coverage"] == made["strict"]["intent_f1"] == 0.5
    entities = [len(row["entities"]) for row in perfect()]
    found = sum(entities[::2])
    assert made["strict"]["entity_f1"] == pytest.approx(2 * found / (found + sum(entities)))


def test_the_corpus_own_intent_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [row for _, row in read_jsonl(DEVEL)]
    other = [row for row in rows if row["intent"] != f"{row['scenario']}_{row['action']}"]
    assert len(other) == 30
    made = score(capsys, tmp_path, ({"slurp_id": row["slurp_id"], **labels(row)} for row in other), "--text")
    assert made["intent_f1"] == 1


def test_swapped_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every recording has the next one's labels; each metric from its definition, counted apart."""
    rows = list(perfect())
    moved = rows[1:] + rows[:1]
    swapped = [{**later, "file": row["file"]} for row, later in zip(rows, moved, strict=True)]
    made = score(capsys, tmp_path, swapped)
    pairs = list(zip(rows, moved, strict=True))
    same = sum(gold["scenario"] == other["scenario"] and gold["action"] == other["action"] for gold, other in pairs)
    assert made["intent_f1"] == pytest.approx(same / RECORDINGS)
    hits = 0
    for gold, other in pairs:
        left = list(gold["entities"])
        for entity in other["entities"]:
            if entity in left:
                left.remove(entity)
                hits += 1
    entities = sum(len(row["entities"]) for row in rows)
    assert made["entity_f1"] == pytest.approx(hits / entities)  # as many predicted as gold ones


def test_distances_of_all_pairs_of_fillers():
    fillers = sorted({entity["filler"] for _, row in read_jsonl(DEVEL) for entity in labels(row)["entities"]})
    assert min(map(len, fillers)) > 0
    for first, second in zip(fillers[::3], fillers[1::3], strict=False):
        assert word_distance(first, second) == pytest.approx(jiwer.wer(first, second))
        edits = jiwer.process_characters(first, second)
        total = edits.substitutions + edits.deletions + edits.insertions
        assert char_distance(first, second) == pytest.approx(total / max(len(first), len(second)))


def test_a_whole_understanding(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Every fourth answer holds no labels and every tenth is missing; the labels file scores the same."""
    items, predictions = [], []
    for index, row in enumerate(perfect()):
        name = row["file"].removesuffix(".flac")
        items.append({"id": name, **row, "source": "devel/turbo", "candidates": ["-"], "answer": None})
        answer = "no idea" if index % 4 == 0 else "```json\n" + json.dumps(labels_of(row)) + "\n```"
        if index % 10:
            predictions.append(prediction(name, [answer]))
    metrics = run(tmp_path, items, PLAIN, predictions=predictions)
    assert (metrics.gold, metrics.scored) == (RECORDINGS, len(predictions))
    assert metrics.without_prediction == RECORDINGS - len(predictions)
    wrong = sum(index % 4 == 0 for index in range(RECORDINGS) if index % 10)
    assert metrics.unparsable == wrong
    assert metrics.micro.intent_f1 == pytest.approx(1 - wrong / len(predictions))
    assert metrics.entities.precision == 1
    assert main(
        ["score", "slu", "--gold", str(DEVEL), "--pred", str(tmp_path / "prediction_labels_only.jsonl")]
    ) == 0  # fmt: skip
    made = json.loads(capsys.readouterr().out)
    assert {name: made[name] for name in NAMES} == metrics.micro.row()
    assert made["strict"] == metrics.strict.micro.row()
    assert made["coverage"] == metrics.coverage


def labels_of(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "file"}


def test_the_most_frequent_intent():
    intents = [(row["scenario"], row["action"]) for _, row in read_jsonl(DEVEL)]
    assert len(intents) == SENTENCES
    assert majority([DEVEL]) == max(sorted(set(intents)), key=intents.count)
