"""Stage `score_corrections`: corrections beside the lists that they were made from."""

from __future__ import annotations

import csv
import json
import logging
import random
from pathlib import Path
from typing import Any

import jiwer
import pytest
from corrected_runs import FILES, ITEMS, PLAIN, item, prediction, run

from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.corrector.metrics import TABLE_COLUMNS, sentence, verdict
from utterflow.corrector.records import CorrectionMetrics, CorrectionRow, Difference
from utterflow.corrector.score import distance_to_list
from utterflow.errors import UserError
from utterflow.evaluate.files import score_lists
from utterflow.files import write_jsonl
from utterflow.records import RejectedRow, read_records

UNIFORM = PLAIN.model_copy(update={"mbr_weights": "uniform"})


def wers(metrics: CorrectionMetrics) -> dict[str, float | None]:
    return {name: scores.wer.value for name, scores in metrics.total.systems.items()}


def scored(folder: Path) -> dict[str, CorrectionRow]:
    return {row.id: row for row in read_records(folder / FILES["rows"], CorrectionRow)}


def test_hand_computed_totals(tmp_path: Path) -> None:
    metrics = run(tmp_path, ITEMS, UNIFORM)
    total = metrics.total
    assert (total.utterances, total.words, total.empty_references) == (4, 7, 1)
    assert total.characters == len("turn on the light" + "stop" + "play jazz")
    # first: a 1 deletion, b 2 insertions, d 1 insertion; MBR: b takes "stop it"
    # answers: b 3 insertions, c 1 substitution
    assert wers(metrics) == pytest.approx(
        {
            "first": 4 / 7,
            "mbr": 3 / 7,
            "oracle@1": 4 / 7,
            "oracle@2": 2 / 7,
            "oracle@3": 2 / 7,
            "oracle": 2 / 7,
            "answer": 4 / 7,
            "corrected": 4 / 7,
            "compositional_oracle": 0,
        }
    )
    corrected = total.systems["corrected"]
    assert (corrected.hits, corrected.substitutions, corrected.deletions, corrected.insertions) == (6, 1, 0, 3)
    assert corrected.character_edits == len(" it now please") + 3
    assert corrected.cer == pytest.approx(corrected.character_edits / total.characters)
    assert corrected.sentence_error_rate == 2 / 4
    assert total.systems["compositional_oracle"].cer is None
    assert total.systems["oracle@3"].deletions == 0
    assert (total.in_list, total.changed, total.improved, total.worsened) == (1 / 4, 4 / 4, 2 / 4, 2 / 4)
    assert (total.mean_candidates, total.mean_distinct_candidates) == (9 / 4, 9 / 4)
    assert total.corrected_less_first.value == 0
    assert total.corrected_less_mbr.value == pytest.approx(1 / 7)
    assert (total.beats_first, total.beats_mbr) == ("false", "false")
    assert metrics.rows == {"in": 4, "out": 4, "rejected": 0}


def test_rows_hold_what_totals_are_made_of(tmp_path: Path) -> None:
    metrics = run(tmp_path, ITEMS, UNIFORM)
    rows = scored(tmp_path)
    assert list(rows) == ["a", "b", "c", "d"]
    for system, column in (
        ("first", "first_edits"),
        ("mbr", "mbr_edits"),
        ("oracle", "oracle_edits"),
        ("compositional_oracle", "compositional_edits"),
        ("answer", "answer_edits"),
        ("corrected", "corrected_edits"),
    ):
        assert sum(getattr(row, column) for row in rows.values()) == metrics.total.systems[system].edits
    b = rows["b"]
    assert (b.first, b.mbr, b.answer, b.mbr_rank, b.oracle_rank) == (
        "stop it now",
        "stop it",
        "stop it now please",
        2,
        1,
    )
    assert (b.group, b.unit, b.distance, b.in_list) == ("m", "2", pytest.approx(1 / 3, abs=1e-6), False)
    assert rows["d"].distance == 1.0


def test_early_rejection_keeps_the_first_candidate(tmp_path: Path) -> None:
    metrics = run(tmp_path, ITEMS, UNIFORM, reject_beyond=0.4)
    rows = scored(tmp_path)
    # distances: a 0, b 1/3, c 1/2, d 1: c and d are given up
    assert {name for name, row in rows.items() if row.early_rejection} == {"c", "d"}
    assert rows["c"].corrected == "play jazz" and rows["c"].answer == "play bass"
    assert metrics.total.early_rejections == 2
    assert metrics.total.systems["answer"].edits == 4
    assert metrics.total.systems["corrected"].edits == 3 + 0 + 1
    assert run(tmp_path, ITEMS, UNIFORM, reject_beyond=0).total.early_rejections == 3
    assert run(tmp_path, ITEMS, UNIFORM, reject_beyond=1.0).total.early_rejections == 0


def test_distance_is_by_the_nearest_candidates_words() -> None:
    lists = ["a b c d", "a b"]
    assert distance_to_list("a b", lists, str) == 0
    assert distance_to_list("a b x", lists, str) == 1 / 2
    assert distance_to_list("a b c", lists, str) == 1 / 4
    assert distance_to_list("A B", lists, str.lower) == 0
    assert distance_to_list("", [""], str) == 0
    assert distance_to_list("x", ["", "a b c"], str) == float("inf")


def random_items(count: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(12)]

    def spoil(words: list[str], rate: float) -> str:
        kept = [draw.choice(vocabulary) if draw.random() < rate else word for word in words]
        return " ".join(word for word in kept if draw.random() > rate / 2)

    items = []
    for number in range(count):
        words = draw.choices(vocabulary, k=draw.randint(1, 12))
        beams = [spoil(words, 0.3) for _ in range(draw.randint(1, 8))]
        more = {"group": draw.choice("xy"), "session": f"s{number % 5}"}
        items.append(item(str(number), " ".join(words), beams, spoil(words, 0.2), **more))
    return items


def test_totals_are_jiwers_and_those_of_the_n_best_scorer(tmp_path: Path) -> None:
    items = random_items(150, 1)
    metrics = run(tmp_path, items, Scoring(normalizer="none", oracle_at=(1, 8), bootstrap=Bootstrap(samples=10)))
    assert metrics.mbr_weights == "uniform"
    references = [row["ground_truth"] for row in items]
    for system, texts in (
        ("corrected", [row["answer"] for row in items]),
        ("first", [row["input_beams"][0] for row in items]),
        ("mbr", [row.mbr for row in scored(tmp_path).values()]),
    ):
        words, characters = jiwer.process_words(references, texts), jiwer.process_characters(references, texts)
        made = metrics.total.systems[system]
        assert made.wer.value == words.wer
        assert made.cer == characters.cer
        for kind in ("hits", "substitutions", "deletions", "insertions"):
            assert getattr(made, kind) == getattr(words, kind)
    write_jsonl(
        tmp_path / "lists.jsonl", [{"input": row["input_beams"], "output": row["ground_truth"]} for row in items]
    )
    other = score_lists(tmp_path / "lists.jsonl", "none")
    for system, name in (("first", "first"), ("mbr", "mbr"), ("oracle@8", "oracle"), ("oracle", "oracle")):
        assert metrics.total.systems[system].wer.value == other[name]
    assert metrics.total.systems["compositional_oracle"].wer.value == other["compositional_oracle"]
    assert metrics.total.mean_distinct_candidates == other["mean_distinct_hypotheses"]


def choices(metrics: CorrectionMetrics) -> dict[str, Any]:
    return metrics.total.systems["mbr"].model_dump(exclude={"wer"})


def test_votes_count_as_often_as_the_source_has_a_candidate(tmp_path: Path) -> None:
    """Lists without repetitions, with the counts that were dropped, have the MBR choice of the whole lists."""
    items = random_items(200, 2)
    for row in items:
        row["input_beams"] = [text for text in row["input_beams"] for _ in range(1 + len(text) % 3)]
    whole = run(tmp_path, items, UNIFORM)
    for row in items:
        texts = row["input_beams"]
        row["input_beams"] = list(dict.fromkeys(texts))
        row["repeats"] = [texts.count(text) for text in row["input_beams"]]
    merged = run(tmp_path, items, UNIFORM)
    assert choices(merged) == choices(whole)
    for row in items:
        row["repeats"] = None
    assert choices(run(tmp_path, items, UNIFORM)) != choices(whole)


def test_posterior_weights_need_scores_on_all_lists(tmp_path: Path) -> None:
    with_scores = run(tmp_path, ITEMS)
    assert with_scores.mbr_weights == "posterior"
    assert scored(tmp_path)["b"].mbr == "stop it now"
    without = run(tmp_path, [*ITEMS, item("e", "go", ["go"], "go")])
    assert without.mbr_weights == "uniform"
    assert scored(tmp_path)["b"].mbr == "stop it"
    assert run(tmp_path, ITEMS, UNIFORM).mbr_weights == "uniform"


def test_rows_without_reference_or_answer_are_rejected(tmp_path: Path) -> None:
    items = [*ITEMS, item("x", None, ["hm"], "hm"), item("y", "hm", ["hm"], None)]
    cfg = PLAIN.model_copy(update={"max_rejected": 0.2})
    metrics = run(tmp_path, items, cfg, rejected=(3, 1))
    assert metrics.rows == {"in": 6, "out": 4, "rejected": 2}
    assert metrics.rejected_before == {"build_corrector_data": 3, "generate": 1}
    rejected = {row.id: row.reason for row in read_records(tmp_path / FILES["rejected"], RejectedRow)}
    assert rejected == {"x": "no reference", "y": "no answer: the row has no prediction"}
    assert metrics.total.utterances == 4
    with pytest.raises(UserError, match="more than max_rejected"):
        run(tmp_path, items, PLAIN, rejected=(3, 1))


def test_predictions_for_other_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1 rows have no prediction, though `generate` rejected 0"):
        run(tmp_path, [*ITEMS, item("y", "hm", ["hm"], None)])
    with pytest.raises(UserError, match="1 of 5 predictions are for rows that are not there"):
        run(tmp_path, ITEMS, predictions=[*(prediction(row["id"], ["x"]) for row in ITEMS), prediction("z", ["x"])])
    with pytest.raises(UserError, match="'a' occurs twice"):
        run(tmp_path, ITEMS, predictions=[prediction("a", ["x"]), prediction("a", ["x"])])
    with pytest.raises(UserError, match="there is no prediction"):
        run(tmp_path, ITEMS, predictions=[])
    with pytest.raises(UserError, match="no row has a reference and a prediction"):
        run(tmp_path, [item("x", None, ["hm"], "hm")])
    assert not (tmp_path / FILES["metrics"]).exists()


def test_several_answers_and_answers_that_were_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("utterflow").propagate = True
    predictions = [prediction(row["id"], [row["answer"], "something else"], "length") for row in ITEMS]
    with caplog.at_level(logging.INFO, "utterflow"):
        metrics = run(tmp_path, ITEMS, UNIFORM, predictions=predictions)
    assert metrics.answers_per_prompt == 2
    assert metrics.total.cut_off == 4
    assert metrics.total.systems["answer"].edits == 4
    assert "2 answers per prompt; the first is scored" in caplog.text
    assert "4 answers were cut off" in caplog.text


def test_groups_add_up(tmp_path: Path) -> None:
    metrics = run(tmp_path, [*ITEMS, item("e", "go", ["no"], "go")])
    assert list(metrics.groups) == ["f", "m", "(none)"]
    assert metrics.groups["f"].systems["corrected"].wer.value == pytest.approx(1 / 6)
    for name in ("utterances", "words", "characters", "early_rejections", "cut_off"):
        assert sum(getattr(part, name) for part in metrics.groups.values()) == getattr(metrics.total, name)
    for system, total in metrics.total.systems.items():
        assert sum(part.systems[system].edits for part in metrics.groups.values()) == total.edits
    assert run(tmp_path, [item("e", "go", ["no"], "go")]).groups == {}


def test_bins_by_length_and_by_distinct_candidates(tmp_path: Path) -> None:
    items = random_items(120, 3)
    metrics = run(tmp_path, items, UNIFORM)
    rows = list(scored(tmp_path).values())
    for parts, column in ((metrics.by_reference_words, "words"), (metrics.by_distinct_candidates, "distinct")):
        assert sum(part.utterances for part in parts) == 120
        for part in parts:
            inside = [row for row in rows if part.low <= getattr(row, column) <= (part.high or 10**9)]
            assert len(inside) == part.utterances
            words = sum(row.words for row in inside)
            assert part.words == words
            assert part.wer["first"] == sum(row.first_edits for row in inside) / words
            assert part.wer["mbr"] == sum(row.mbr_edits for row in inside) / words
            assert part.wer["oracle"] == sum(row.oracle_edits for row in inside) / words
            assert part.wer["corrected"] == sum(row.corrected_edits for row in inside) / words
    assert [(part.low, part.high) for part in metrics.by_reference_words] == [(1, 5), (6, 10), (11, 20)]
    assert [(part.low, part.high) for part in run(tmp_path, ITEMS).by_reference_words] == [(0, 0), (1, 5)]


def test_a_corrector_that_is_right_beats_mbr_and_one_that_repeats_the_first_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("utterflow").propagate = True
    items = random_items(150, 4)
    with caplog.at_level(logging.INFO, "utterflow"):
        right = run(tmp_path, [{**row, "answer": row["ground_truth"]} for row in items], UNIFORM)
        first = run(tmp_path, [{**row, "answer": row["input_beams"][0]} for row in items], UNIFORM)
    assert right.total.systems["corrected"].wer.value == 0
    assert (right.total.beats_first, right.total.beats_mbr) == ("true", "true")
    difference = right.total.corrected_less_mbr
    assert difference.value == -(right.total.systems["mbr"].wer.value or 0)
    assert difference.low is not None and difference.high is not None and difference.low < difference.high < 0
    assert first.total.systems["corrected"] == first.total.systems["first"]
    assert first.total.changed == 0 and first.total.in_list == 1
    assert first.total.beats_mbr == "false"
    assert first.total.corrected_less_first == Difference(value=0, low=0, high=0, p_value=1)
    assert "the corrector beats MBR" in caplog.text
    assert "the corrector does not beat MBR" in caplog.text


def test_verdicts() -> None:
    def of(value: float | None, p_value: float | None) -> str:
        return verdict(Difference(value=value, low=None, high=None, p_value=p_value), 0.95)

    assert of(-0.01, 0.01) == "true"
    assert of(-0.01, 0.06) == "not significant"
    assert of(0.0, 1.0) == of(0.01, 0.5) == of(0.01, 0.001) == "false"
    assert of(-0.01, None) == of(None, None) == "not tested"
    assert len({sentence("MBR", one) for one in ("true", "false", "not significant", "not tested")}) == 4  # type: ignore[arg-type]


def test_the_unit_of_the_bootstrap_is_session_else_speaker(tmp_path: Path) -> None:
    items = random_items(100, 5)
    by_session = Scoring(normalizer="none", oracle_at=(1,), bootstrap=Bootstrap(samples=300, unit="speaker"))
    sessions = run(tmp_path, items, by_session).total.systems["corrected"].wer
    for row in items:
        row["speaker"] = row.pop("session")
    assert run(tmp_path, items, by_session).total.systems["corrected"].wer == sessions
    by_row = by_session.model_copy(update={"bootstrap": Bootstrap(samples=300)})
    assert run(tmp_path, items, by_row).total.systems["corrected"].wer != sessions
    for row in items:
        del row["speaker"]
    with pytest.raises(UserError, match="no row has a speaker"):
        run(tmp_path, items, by_session)


def test_normalisation_comes_first(tmp_path: Path) -> None:
    items = [item("a", "Go on!", ["go, on", "GO"], "gO on", scores=[-1, -2])]
    metrics = run(tmp_path, items, PLAIN.model_copy(update={"normalizer": "basic"}))
    assert metrics.total.systems["corrected"].edits == metrics.total.systems["first"].edits == 0
    assert (metrics.total.in_list, metrics.total.changed) == (1, 0)


def test_the_table_says_the_same(tmp_path: Path) -> None:
    metrics = run(tmp_path, ITEMS, UNIFORM)
    assert CorrectionMetrics.model_validate_json((tmp_path / FILES["metrics"]).read_text()) == metrics
    with (tmp_path / FILES["table"]).open() as handle:
        table = list(csv.DictReader(handle, delimiter="\t"))
    assert tuple(table[0]) == TABLE_COLUMNS
    values = {(line["group"], line["system"], line["metric"]): line for line in table}
    assert len(values) == len(table)
    assert float(values["(all)", "corrected", "wer"]["value"]) == pytest.approx(4 / 7, abs=1e-6)
    assert (
        float(values["(all)", "corrected", "wer"]["low"]) <= 4 / 7 <= float(values["(all)", "corrected", "wer"]["high"])
    )
    assert float(values["(all)", "corrected", "less_mbr"]["value"]) == pytest.approx(1 / 7, abs=1e-6)
    assert values["m", "mbr", "insertions"]["value"] == "2"
    assert values["(all)", "compositional_oracle", "cer"]["value"] == ""
    assert values["distinct_candidates 3", "first", "wer"]["n"] == "2"
    meta = json.loads((tmp_path / FILES["meta"]).read_text())
    assert meta["rows"] == metrics.rows
    assert set(meta["outputs"]) == set(FILES.values()) - {FILES["meta"]}


def test_same_input_same_bytes(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        run(tmp_path, ITEMS)
        contents.append({name: (tmp_path / FILES[name]).read_bytes() for name in ("metrics", "table", "rows")})
    assert contents[0] == contents[1]
