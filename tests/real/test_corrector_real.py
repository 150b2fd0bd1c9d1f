"""200 real Whisper 5-best lists: data set, answers whose scores are known, metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
from corrected_runs import prediction

from utterflow.config.datasets import CorrectorDataset
from utterflow.config.prediction import Correction
from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.corrector.build import build_corrector_data
from utterflow.corrector.records import CorrectionMetrics
from utterflow.corrector.score import score_corrections
from utterflow.evaluate.files import score_lists
from utterflow.evaluate.normalize import normalizer
from utterflow.files import write_jsonl
from utterflow.records import CandidatesRow, SftRow, read_records

REPOSITORY = Path(__file__).resolve().parents[2]
LISTS = REPOSITORY.parent / "shared/data/nbest/hyporadise_sample_200.jsonl"
TEMPLATE = REPOSITORY / "workflow/prompts/corrector.txt"

pytestmark = pytest.mark.skipif(not LISTS.is_file(), reason=f"real n-best lists are not here: {LISTS}")


@pytest.fixture(scope="module", params=[True, False], ids=["distinct", "as they come"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corrector")
    cfg = {
        "builder": "corrector",
        "test": [{"lists": str(LISTS)}],
        "instruction": str(TEMPLATE),
        "drop_duplicates": request.param,
    }
    build_corrector_data(
        [LISTS],
        split="test",
        cfg=CorrectorDataset.model_validate(cfg),
        tokenizer=None,
        rows=folder / "test.jsonl",
        candidates=folder / "test.candidates.jsonl",
        alpaca=folder / "test.alpaca.jsonl",
        rejected=folder / "test.rejected.jsonl",
        stats=folder / "test.stats.json",
        meta=folder / "test.meta.json",
        code="c",
    )
    return folder


def score(dataset: Path, out: Path, answers: dict[str, str], name: str) -> CorrectionMetrics:
    write_jsonl(out / "predictions.jsonl", [prediction(key, [text]) for key, text in answers.items()])
    return score_corrections(
        out / "predictions.jsonl",
        dataset / "test.candidates.jsonl",
        earlier={"build_corrector_data": dataset / "test.meta.json"},
        metrics=out / "m.json",
        table=out / "m.tsv",
        rows=out / "m.rows.jsonl",
        rejected=out / "m.rejected.jsonl",
        meta=out / "m.meta.json",
        correction="real",
        scoring=name,
        cfg=Correction(prediction="answers"),
        scoring_cfg=Scoring(normalizer=name, oracle_at=(1, 5), bootstrap=Bootstrap(samples=1000)),
        code="c",
    )


def test_prompts_hold_the_real_lists(dataset: Path) -> None:
    source = [json.loads(line) for line in LISTS.read_text().splitlines()]
    items = list(read_records(dataset / "test.candidates.jsonl", CandidatesRow))
    rows = list(read_records(dataset / "test.jsonl", SftRow))
    assert len(items) == len(rows) == len(source) == 200
    for entry, item, row in zip(source, items, rows, strict=True):
        assert item.id == row.id == f"{LISTS.stem}:{entry['id']}"
        assert row.target == item.ground_truth == entry["output"]
        assert set(item.input_beams) == set(entry["input"])
        assert item.input_beams[0] == entry["input"][0]
        assert row.messages[0].content == item.formatted_input
        assert f"following {len(item.input_beams)} candidate" in item.formatted_input
        assert f"\n{len(item.input_beams)}. {item.input_beams[-1]}\n" in item.formatted_input
    stats = json.loads((dataset / "test.stats.json").read_text())
    distinct = sum(len(set(entry["input"])) for entry in source)
    assert stats["candidates"]["mean"] * 200 == pytest.approx(sum(len(item.input_beams) for item in items))
    assert sum(len(item.input_beams) for item in items) in (distinct, 1000)
    assert stats["lists_with_reference"] == sum(entry["output"] in entry["input"] for entry in source)


@pytest.mark.parametrize("name", ["none", "whisper_english"])
def test_first_hypotheses_and_references_as_answers(dataset: Path, tmp_path: Path, name: str) -> None:
    items = list(read_records(dataset / "test.candidates.jsonl", CandidatesRow))
    whole: dict[str, Any] = score_lists(LISTS, name)

    first = score(dataset, tmp_path, {item.id: item.input_beams[0] for item in items}, name)
    systems = first.total.systems
    for system, key in (("first", "first"), ("mbr", "mbr"), ("oracle", "oracle"), ("corrected", "wer")):
        assert systems[system].wer.value == whole[key]
    assert systems["compositional_oracle"].wer.value == whole["compositional_oracle"]
    assert systems["corrected"].cer == whole["cer"]
    assert (systems["corrected"].hits, systems["corrected"].deletions) == (whole["hits"], whole["deletions"])
    assert systems["answer"] == systems["corrected"] == systems["first"] == systems["oracle@1"]
    assert (first.total.changed, first.total.in_list, first.total.improved) == (0, 1, 0)
    assert first.total.corrected_less_first.value == 0
    assert first.total.beats_mbr == ("false" if whole["wer"] >= whole["mbr"] else "not significant")

    right = score(dataset, tmp_path, {item.id: str(item.ground_truth) for item in items}, name)
    assert right.total.systems["corrected"].wer.value == right.total.systems["corrected"].cer == 0
    assert right.total.systems["first"] == systems["first"]
    assert right.total.worsened == 0
    assert right.total.improved == first.total.systems["first"].sentence_error_rate
    assert right.total.in_list == 1 - first.total.systems["oracle"].sentence_error_rate
    assert right.total.beats_mbr == "true"


def test_a_mixed_answer_against_jiwer(dataset: Path, tmp_path: Path) -> None:
    """Every other answer right, the others the last candidate."""
    items = list(read_records(dataset / "test.candidates.jsonl", CandidatesRow))
    answers = {item.id: (str(item.ground_truth) if i % 2 else item.input_beams[-1]) for i, item in enumerate(items)}
    made = score(dataset, tmp_path, answers, "basic").total.systems["corrected"]
    normalize = normalizer("basic")
    references = [normalize(str(item.ground_truth)) for item in items]
    words = jiwer.process_words(references, [normalize(text) for text in answers.values()])
    assert made.wer.value == words.wer
    assert (made.hits, made.substitutions, made.deletions, made.insertions) == (
        words.hits, words.substitutions, words.deletions, words.insertions,
    )  # fmt: skip
