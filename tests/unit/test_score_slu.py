"""Stage `score_slu`: answers read as labels, scored, and reported."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from understood_runs import FILES, ITEMS, PLAIN, item, prediction, run, said

from utterflow.config.models import Config
from utterflow.errors import UserError
from utterflow.files import write_json
from utterflow.report.slu import PUBLISHED, slu_text, summarize_slu
from utterflow.slu.files import score_files
from utterflow.slu.metrics import Meaning
from utterflow.slu.parse import parse_labels
from utterflow.slu.records import SluScoredRow, UnderstoodRow
from utterflow.slu.score import TABLE_COLUMNS
from utterflow.slu.targets import described, label_files, predicted_split, prediction_file

MEANING = Meaning("alarm", "set", (("time", "eight"),))
ANSWER = said("alarm", "set", ("time", "eight"))
NAMES = ("scenario_f1", "action_f1", "intent_f1", "entity_f1", "word_f1", "char_f1", "slu_f1")


@pytest.mark.parametrize(
    "text",
    [
        ANSWER,
        json.dumps(json.loads(ANSWER), indent=2),
        f"```json\n{ANSWER}\n```",
        f"I heard {{something}} about an alarm.\nAnswer: {ANSWER} I hope this helps {{}}",
        f"{ANSWER}\n{said('other', 'one')}",
        '{"why": {"a": "}"}, "entities": [{"filler": "eight", "type": "time", "n": 1}], "action": "set", '
        '"scenario": "alarm"}',
    ],
)
def test_answers_that_hold_labels(text: str):
    assert parse_labels(text) == MEANING


def test_labels_are_taken_as_they_are():
    assert parse_labels('{"scenario": " Alarm", "action": "SET"}') == Meaning(" Alarm", "SET", ())
    assert parse_labels('{"scenario": "a", "action": "b", "entities": null}').entities == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        ("alarm_set", "no `{`"),
        (ANSWER[:-1], "no JSON object: Expecting"),
        (ANSWER[:-3] + ",]}", "no JSON object"),
        (ANSWER.replace('"', "'"), "no JSON object"),
        ('{"intent": "alarm_set"}', "the object has no `scenario`"),
        ('{"scenario": "alarm"}', "the object has no `action`"),
        ('{"scenario": 1, "action": "set"}', "the object has 1 for `scenario`"),
        ('{"scenario": "a", "action": "b", "entities": {"time": "eight"}}', "`entities` is no list"),
        ('{"scenario": "a", "action": "b", "entities": ["eight"]}', "an entity is no object"),
        ('{"scenario": "a", "action": "b", "entities": [{"type": "time"}]}', "an entity has no `filler`"),
        ('{"scenario": "a", "action": "b", "entities": [{"type": "time", "filler": 8}]}', "an entity has 8 for"),
        ('{"scenario": "\\ud83d", "action": "b"}', "surrogate"),
        ('{"a":' * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "no JSON object"),
        ("{" * 20_000, "no JSON object"),
    ],
)
def test_answers_that_hold_none(text: str, problem: str):
    with pytest.raises(ValueError, match="(?s)" + problem.replace("{", r"\{")):
        parse_labels(text)


def rows_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILES[kind]).read_text().splitlines()]


def test_hand_computed_totals(tmp_path: Path):
    metrics = run(tmp_path, ITEMS)
    micro = metrics.micro
    # r1 to r4 are scored as in test_slu_metrics: r4 holds no labels, r5 has no prediction, r6 no gold
    assert (micro.scenario_f1, micro.action_f1, micro.intent_f1) == (3 / 4, 2 / 4, 2 / 4)
    assert micro.entity_f1 == pytest.approx(2 / 7)
    assert micro.word_f1 == pytest.approx(4 / 9)
    assert micro.slu_f1 == pytest.approx(8 / (8 + 27 / 8 + 43 / 8))
    assert metrics.macro.scenario_f1 == 2 / 4
    assert metrics.strict.micro.intent_f1 == pytest.approx(2 / 5)
    assert metrics.strict.micro.entity_f1 == pytest.approx(2 / 8)
    assert (metrics.gold, metrics.scored, metrics.coverage) == (5, 4, 4 / 5)
    assert (metrics.unparsable, metrics.without_gold, metrics.without_prediction, metrics.repeated) == (1, 1, 1, 0)
    assert metrics.rows == {"in": 6, "out": 4, "rejected": 2}
    entities = metrics.entities
    assert (entities.true_positives, entities.false_positives, entities.false_negatives) == (1, 2, 3)
    assert (entities.precision, entities.recall) == (1 / 3, 1 / 4)
    assert metrics.majority is None


def test_tables_by_scenario_and_slot(tmp_path: Path):
    metrics = run(tmp_path, ITEMS)
    assert {name: part.rows for name, part in metrics.scenarios.items()} == {"alarm": 2, "play": 1, "qa": 1}
    alarm, play = metrics.scenarios["alarm"], metrics.scenarios["play"]
    assert (alarm.scenario_accuracy, alarm.intent_accuracy, alarm.entity_f1) == (1, 1, 0)
    # time: TP 2, FP and FN 1 + 3/8; date: two false positives (by words and by characters)
    assert alarm.slu_f1 == pytest.approx(4 / (4 + 2 * 11 / 8 + 2))
    assert (play.scenario_accuracy, play.intent_accuracy) == (1, 0)
    assert play.entity_f1 == pytest.approx(2 / 3)
    slots = metrics.slots
    assert list(slots) == ["artist_name", "business_name", "date", "time"]
    assert (slots["date"].true_positives, slots["date"].false_positives, slots["date"].false_negatives) == (0, 1, 1)
    assert slots["time"].f1 == 0
    assert slots["time"].slu_f1 == pytest.approx(2 / (2 + 11 / 8))
    assert slots["artist_name"].f1 == slots["artist_name"].slu_f1 == 1
    rows = list(csv.reader((tmp_path / FILES["table"]).read_text().splitlines(), delimiter="\t"))
    assert tuple(rows[0]) == TABLE_COLUMNS
    found = {tuple(row[1:4]): row[4:] for row in rows[1:]}
    assert found[("all", "micro", "intent_f1")][0] == "0.5"
    assert found[("all", "micro", "intent_f1")][1] != ""
    assert found[("all", "strict micro", "intent_f1")] == ["0.4", "", "", "5"]
    assert found[("scenario", "alarm", "intent_accuracy")] == ["1", "", "", "2"]
    assert found[("slot", "artist_name", "f1")] == ["1", "", "", "1"]


def test_the_official_format_gives_the_official_numbers(tmp_path: Path):
    metrics = run(tmp_path, ITEMS)
    gold = [
        {
            "slurp_id": row["slurp_id"],
            "scenario": row["scenario"],
            "action": row["action"],
            "tokens": [{"surface": word} for entity in row["entities"] for word in entity["filler"].split()],
            "entities": [],
            "recordings": [{"file": row["file"]}],
        }
        for row in ITEMS
        if row["scenario"]
    ]
    for row, made in zip([row for row in ITEMS if row["scenario"]], gold, strict=True):
        start = 0
        for entity in row["entities"]:
            words = len(entity["filler"].split())
            made["entities"].append({"type": entity["type"], "span": list(range(start, start + words))})
            start += words
    (tmp_path / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    labels_only = tmp_path / FILES["labels_only"]
    for average in ("micro", "macro"):
        made = score_files(tmp_path / "gold.jsonl", labels_only, text=False, average=average)
        assert {name: made[name] for name in NAMES} == getattr(metrics, average).row()
        assert made["strict"] == getattr(metrics.strict, average).row()
    rows = rows_of(tmp_path, "labels_only")
    assert [list(row) for row in rows] == [["file", "scenario", "action", "entities"]] * 5
    assert rows[3] == {"file": "r4.flac", "scenario": "", "action": "", "entities": []}


def test_what_is_written_of_each_answer(tmp_path: Path):
    items = [dict(row) for row in ITEMS]
    items[0]["rationale_text"] = "it wakes someone"
    run(tmp_path, items)
    understood = [UnderstoodRow.model_validate(row) for row in rows_of(tmp_path, "understood")]
    assert [row.id for row in understood] == ["r1", "r2", "r3", "r4", "r6"]
    first, unparsable = understood[0], understood[3]
    assert (first.slurp_id, first.file, first.rationale) == (1, "r1.flac", "it wakes someone")
    assert first.hypotheses == ["r1 best", "r1 second"]
    assert first.raw_output == ITEMS[0]["answer"]
    assert first.labels is not None
    assert first.labels.entities == [{"type": "time", "filler": "at eight"}]
    assert (unparsable.raw_output, unparsable.labels) == ("I do not know.", None)
    assert "no JSON object" in str(unparsable.problem)
    scored = [SluScoredRow.model_validate(row) for row in rows_of(tmp_path, "rows")]
    assert [(row.id, row.intent_correct, row.predicted_intent) for row in scored] == [
        ("r1", True, "alarm_set"),
        ("r2", False, "play_radio"),
        ("r3", True, "alarm_query"),
        ("r4", False, None),
    ]
    assert sum(row.entity_false_negatives for row in scored) == 3
    assert scored[0].slu_false_positives == pytest.approx(1 + 3 / 8)
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path, "rejected")}
    assert reasons.keys() == {"r5", "r6"}
    assert reasons["r6"] == "no gold labels"
    assert reasons["r5"].startswith("no prediction")


def test_several_recordings_of_a_sentence(tmp_path: Path):
    items = [
        item("r1", "alarm set", [], said("alarm", "set"), slurp_id=7),
        item("r2", "alarm set", [], said("play", "music"), slurp_id=7),
        item("r3", "alarm set", [], None, slurp_id=7),
        item("r4", "qa stock", [], said("qa", "stock"), slurp_id="8"),
    ]
    by_file = run(tmp_path, items)
    assert (by_file.gold, by_file.scored, by_file.micro.intent_f1) == (4, 3, pytest.approx(2 / 3))
    by_sentence = run(tmp_path, items, PLAIN.model_copy(update={"by": "slurp_id"}))
    # the last answer of a sentence counts, as in the official script
    assert (by_sentence.gold, by_sentence.scored, by_sentence.micro.intent_f1) == (2, 2, 1 / 2)
    assert (by_sentence.repeated, by_sentence.without_prediction) == (1, 1)
    assert [row["slurp_id"] for row in rows_of(tmp_path, "labels_only")] == ["7", "7", "8"]


def test_rows_without_a_recording(tmp_path: Path):
    items = [*ITEMS[:3], item("r9", "alarm set", [], said("alarm", "set"), file=None)]
    metrics = run(tmp_path, items)
    assert (metrics.gold, metrics.without_key, metrics.rows["rejected"]) == (3, 1, 1)
    with pytest.raises(UserError, match="none of 1 rows can be scored"):
        run(tmp_path, items[3:])


def test_only_the_first_answer_is_scored(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    items = [item("r1", "alarm set", [], [said("alarm", "set"), said("play", "music")])]
    with caplog.at_level(logging.INFO, logger="utterflow"):
        metrics = run(tmp_path, items)
    assert (metrics.answers_per_prompt, metrics.micro.intent_f1) == (2, 1)
    assert "up to 2 answers per prompt; the first is scored" in caplog.text


def test_majority_baseline_on_the_same_rows(tmp_path: Path):
    metrics = run(tmp_path, ITEMS, labels=["alarm query", "qa stock", "alarm query", "play music"])
    assert metrics.majority is not None
    assert (metrics.majority.scenario, metrics.majority.action) == ("alarm", "query")
    assert metrics.majority.micro.scenario_f1 == 2 / 4
    assert metrics.majority.micro.intent_f1 == 1 / 4
    assert metrics.majority.micro.slu_f1 == 0


def test_intervals(tmp_path: Path):
    metrics = run(tmp_path, ITEMS)
    for item_, value in (
        (metrics.intervals.intent_accuracy, metrics.micro.intent_f1),
        (metrics.intervals.entity_f1, metrics.micro.entity_f1),
        (metrics.intervals.slu_f1, metrics.micro.slu_f1),
    ):
        assert item_.value == pytest.approx(value)
        assert item_.low is not None
        assert item_.high is not None
        assert 0 <= item_.low <= value <= item_.high <= 1
        assert item_.low < item_.high
    again = run(tmp_path / "again", ITEMS)
    assert again.intervals == metrics.intervals
    without = run(tmp_path, ITEMS, PLAIN.model_copy(update={"bootstrap_samples": 0}))
    assert without.intervals.slu_f1.low is None


def test_speakers_are_drawn_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    speakers = PLAIN.model_copy(update={"bootstrap_unit": "speaker"})
    # of two speakers one is right in everything, the other in nothing: accuracy is 0, 1/2 or 1
    right = [item(f"r{i}", "alarm set", [], said("alarm", "set"), speaker="a") for i in range(20)]
    wrong = [item(f"r{i}", "alarm set", [], said("qa", "stock"), speaker="b") for i in range(20, 40)]
    by_speaker = run(tmp_path, right + wrong, speakers).intervals.intent_accuracy
    assert (by_speaker.low, by_speaker.high) == (0, 1)
    by_utterance = run(tmp_path, right + wrong).intervals.intent_accuracy
    assert by_utterance.low is not None
    assert 0.2 < by_utterance.low < 0.5
    with caplog.at_level(logging.WARNING, logger="utterflow"):
        run(tmp_path, [*right, {**wrong[0], "speaker": None}], speakers)
    assert "1 rows have no speaker" in caplog.text
    with pytest.raises(UserError, match="no row has a speaker"):
        run(tmp_path, [{**row, "speaker": None} for row in right], speakers)


def test_other_tasks_and_faults(tmp_path: Path):
    known = [prediction(row["id"], [row["answer"]]) for row in ITEMS[:3]]
    ras = prediction("ras:r1", ["because"], task="ras")
    assert run(tmp_path, ITEMS[:3], predictions=[*known, ras]).rows["in"] == 3
    with pytest.raises(UserError, match="no prediction of task slu, but 1 of others"):
        run(tmp_path, ITEMS, predictions=[ras])
    with pytest.raises(UserError, match="occurs twice"):
        run(tmp_path, ITEMS, predictions=[*known, known[0]])
    with pytest.raises(UserError, match="1 of 3 predictions are for rows that are not there"):
        run(tmp_path, ITEMS[:2], predictions=known)
    with pytest.raises(UserError, match="none of 1 rows can be scored; the first: no gold labels"):
        run(tmp_path, ITEMS[5:])
    assert run(tmp_path, ITEMS, rejected=(3, 2)).rejected_before == {"build_slu_data": 3, "generate": 2}
    cut = [prediction("r1", ["{"], finish="length")]
    assert run(tmp_path, ITEMS[:2], predictions=cut).cut_off == 1


def test_prompts_that_show_gold_made_rationales_are_not_scored(tmp_path: Path):
    shown = {**ITEMS[0], "rationale_text": "because", "rationale_shown": True}
    assert run(tmp_path, [{**shown, "sees_gold": False}, *ITEMS[1:]]).scored == 4
    with pytest.raises(UserError, match="the prompt of 'r1' shows a rationale that was made with the gold labels"):
        run(tmp_path, [{**shown, "sees_gold": True}, *ITEMS[1:]])


def test_the_same_bytes_each_time(tmp_path: Path):
    for folder in ("one", "two"):
        run(tmp_path / folder, ITEMS, labels=["alarm set"])
    for kind, file in FILES.items():
        if kind != "meta":
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), kind


DESCRIBED = {
    "dataset": "spoken", "split": "test", "source": "devel/turbo", "candidates": "5", "input_format": "asr",
    "audio": "yes", "model": "ears", "training": "mixed", "trained_on": "paid/k5 <ras>",
}  # fmt: skip
OUTPUTS = {"table": "slu.tsv", "page": "slu.html", "scores": "slu.svg"}


def summarize(folder: Path, metrics: list[Path]) -> dict[str, bytes]:
    files = {name: folder / file for name, file in OUTPUTS.items()}
    names = [json.loads(path.read_text()).get("understanding") for path in metrics]
    cfg = {"name": "demo", "title": "Demo <of> a & b", "understandings": dict.fromkeys(names, DESCRIBED)}
    summarize_slu(metrics, **files, meta=folder / "slu.meta.json", cfg=cfg, code="c")
    return {name: path.read_bytes() for name, path in files.items()}


def metrics_files(folder: Path) -> list[Path]:
    paths = []
    for name, labels, update in (
        ("first", ["alarm query"], {}),
        ("second", None, {"average": "macro", "bootstrap_samples": 0}),
    ):
        run(folder / name, ITEMS, PLAIN.model_copy(update=update), labels=labels, name=name, rejected=(2, 1))
        paths.append(folder / name / FILES["metrics"])
    return paths


def test_summary_table_and_page(tmp_path: Path):
    written = summarize(tmp_path, metrics_files(tmp_path))
    rows = list(csv.DictReader(written["table"].decode().splitlines(), delimiter="\t"))
    first, second = rows
    assert (first["understanding"], second["understanding"]) == ("first", "second")
    assert (first["n"], first["gold"], first["rejected"], first["unparsable"]) == ("4", "5", "3", "1")
    assert (first["source"], first["trained_on"], first["training"]) == ("devel/turbo", "paid/k5 <ras>", "mixed")
    assert float(first["intent_accuracy_low"]) <= 0.5 <= float(first["intent_accuracy_high"])
    assert (first["majority"], float(first["majority_micro_intent_f1"])) == ("alarm_query", 0.25)
    assert (second["majority"], second["majority_micro_intent_f1"], second["slu_f1_low"]) == ("", "", "")
    assert float(first["strict_micro_intent_f1"]) == 0.4
    page = written["page"].decode()
    assert "<title>Demo &lt;of&gt; a &amp; b</title>" in page
    assert "50.00 [" in page
    assert "33.33 (macro F1)" in page
    body = ElementTree.fromstring(page.replace("<!doctype html>", "")).find("body")
    assert body is not None
    own, published = ("".join(table.itertext()) for table in body.findall("table"))
    for system, _, intent, slu_f1 in PUBLISHED:
        assert system in published
        assert f"{intent:.2f}" in published
        assert f"{slu_f1:.2f}" in published
        assert system not in own
    assert "Published elsewhere, on SLURP's test set" in page
    meta = json.loads((tmp_path / "slu.meta.json").read_text())
    assert set(meta["outputs"]) == set(OUTPUTS.values())


def test_the_figure_is_svg_with_the_same_bytes_each_time(tmp_path: Path):
    metrics = metrics_files(tmp_path)
    figure = summarize(tmp_path / "one", metrics)["scores"]
    assert figure == summarize(tmp_path / "two", metrics)["scores"]
    assert ElementTree.fromstring(figure).tag.endswith("svg")
    for text in ("intent accuracy", "entity F1", "SLU-F1", "most frequent intent", "first", "4 of 5"):
        assert f"<!-- {text} -->".encode() in figure, text


def test_summary_on_the_terminal_and_faults(tmp_path: Path):
    written = summarize(tmp_path, metrics_files(tmp_path)[:1])
    rows = list(csv.DictReader(written["table"].decode().splitlines(), delimiter="\t"))
    heading, *_, line = slu_text(rows).splitlines()
    assert heading.split()[0] == "understanding"
    assert "spoken/test" in line
    assert "50.00 [" in line
    with pytest.raises(UserError, match="no understanding to report"):
        summarize(tmp_path, [])
    write_json(tmp_path / "other.json", {"corpus": "a"})
    with pytest.raises(UserError, match=r"field `micro`[\s\S]*other\.json"):
        summarize(tmp_path, [tmp_path / "other.json"])


def test_what_the_report_says_of_an_understanding():
    heard = {"corpus": "devel", "asr": "turbo"}
    corpus = {"adapter": "manifest", "path": "words.tsv", "audio_dir": "audio"}
    config = Config.model_validate(
        {
            "name": "x",
            "corpora": {"devel": corpus},
            "asr": {"turbo": {"model": "./whisper"}},
            "models": {"lm": {"model": "./lm"}},
            "servers": {"paid": {"model": "big", "base_url": "https://example.org"}},
            "rationales": {"paid": {**heard, "labels": ["train.jsonl"], "server": "paid", "nbest_values": [1, 5]}},
            "datasets": {
                "multi": {
                    "builder": "slu",
                    "train": [{"rationale": "paid", "k": 5}, {"gold_text": "data/train.jsonl"}],
                    "test": [heard],
                    "labels": ["train.jsonl"],
                    "ras": True,
                }
            },
            "trainings": {"multi": {"model": "lm", "train": [{"dataset": "multi"}]}},
            "predictions": {
                "trained": {"dataset": "multi", "training": "multi"},
                "plain": {"dataset": "multi", "model": "lm"},
            },
            "understandings": {"trained": {"prediction": "trained"}, "plain": {"prediction": "plain"}},
            "runs": [{"understandings": ["trained", "plain"]}],
        }
    )
    said_of = described(config, ["trained", "plain"])
    assert said_of["trained"] == {
        "dataset": "multi",
        "split": "test",
        "source": "devel/turbo",
        "candidates": "5",
        "input_format": "asr",
        "audio": "no",
        "model": "lm",
        "training": "multi",
        "trained_on": "paid/k5 <ras>, text train.jsonl",
    }
    assert (said_of["plain"]["training"], said_of["plain"]["trained_on"]) == ("", "")
    assert prediction_file(config, "plain", ".jsonl") == "results/generate/plain/predictions.jsonl"
    assert predicted_split(config, "plain", ".items.jsonl") == "results/sft/multi/test.items.jsonl"
    assert label_files(config, "plain") == ["train.jsonl"]
