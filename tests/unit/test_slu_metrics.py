"""SLURP's metrics, by numbers worked out by hand from the official script's rules, and `utterflow score slu`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest

from utterflow.cli import main
from utterflow.files import write_jsonl
from utterflow.slu.metrics import (
    NOTHING,
    Counts,
    Meaning,
    averaged,
    char_distance,
    distance_counts,
    entity_counts,
    gold_meaning,
    quality,
    scores,
    tally_pairs,
    total,
    word_distance,
)

NAMES = ("scenario_f1", "action_f1", "intent_f1", "entity_f1", "word_f1", "char_f1", "slu_f1")


def counted(pairs: Any) -> tuple[float, ...]:
    return tuple(total(counts for _, counts in pairs))


def test_word_distance_is_word_error_rate():
    for gold, predicted in (
        ("new york", "new york"),
        ("new york", "york"),
        ("eight", "at eight o'clock"),
        ("nine thirty pm", "nine thirteen"),
        ("a b c", ""),
        ("tim@hotmail dot com", "tim at hotmail dot com"),
    ):
        assert word_distance(gold, predicted) == jiwer.wer(gold, predicted)
    assert word_distance("eight", "at eight o'clock") == 2  # more than 1
    assert word_distance("", "") == 0
    assert word_distance("", "at eight") == 2


def test_words_are_told_apart_as_jiwer_does_it():
    # runs of white space are one space; a single tab or no-break space separates nothing
    for predicted in ("new  york", " new york ", "new \t york", "new\tyork", "new\u00a0york"):
        assert word_distance("new york", predicted) == jiwer.wer("new york", predicted)
    assert word_distance("new york", "new\tyork") == 1


def test_char_distance_is_by_the_longer_filler():
    assert char_distance("cat", "cart") == 1 / 4
    assert char_distance("cart", "cat") == 1 / 4
    assert char_distance("abc", "") == 1
    assert char_distance("", "") == 0
    assert char_distance("Jazz", "jazz") == 1 / 4  # no lower case here


def test_entities_match_as_a_multiset():
    gold = (("date", "today"), ("date", "today"), ("time", "ten"))
    predicted = (("date", "today"), ("time", "ten am"), ("date", "today"), ("date", "today"))
    # two of the three `today` match; `ten am` is no `ten`
    assert counted(entity_counts(gold, predicted)) == (2, 2, 1)


def test_a_filler_in_upper_case_is_wrong_only_if_predicted():
    assert gold_meaning("a", "b", [("person", "Bob")]).entities == (("person", "bob"),)
    assert counted(entity_counts((("person", "bob"),), (("person", "Bob"),))) == (0, 1, 1)


def test_distance_takes_the_closest_gold_filler_of_the_type():
    gold = (("date", "next monday"), ("date", "monday"), ("time", "monday"))
    # d = 0 to the second; the first is left, and the time
    assert counted(distance_counts(gold, (("date", "monday"),), word_distance)) == (1, 0, 2)
    # d = 1/2 to the first: `next` is missing
    assert counted(distance_counts(gold[:1], (("date", "monday"),), word_distance)) == (1, 0.5, 0.5)


def test_of_equally_close_fillers_the_first_is_taken():
    # "c" is at distance 1 from both; it takes "a", so the second "a" meets "b" at distance 1
    gold = (("x", "a"), ("x", "b"))
    assert counted(distance_counts(gold, (("x", "c"), ("x", "a")), word_distance)) == (2, 2, 2)
    assert counted(distance_counts(gold, (("x", "c"), ("x", "b")), word_distance)) == (2, 1, 1)


def test_predictions_choose_in_their_order():
    gold = (("x", "a b"), ("x", "a"))
    # "a b c" takes "a b" (1/2), then "a" takes "a"
    assert counted(distance_counts(gold, (("x", "a b c"), ("x", "a")), word_distance)) == (2, 0.5, 0.5)
    # "a" takes "a", then "b" takes "a b" (1/2)
    assert counted(distance_counts(gold, (("x", "a"), ("x", "b")), word_distance)) == (2, 0.5, 0.5)


def test_other_types_and_left_gold_entities():
    gold = (("date", "today"),)
    assert counted(distance_counts(gold, (("time", "today"),), char_distance)) == (0, 1, 1)
    assert counted(distance_counts(gold, (), char_distance)) == (0, 0, 1)
    assert counted(distance_counts((), (("time", "today"),), char_distance)) == (0, 1, 0)
    # a distance of more than 1 adds more than one false positive
    assert counted(distance_counts((("t", "ten"),), (("t", "at about ten"),), word_distance)) == (1, 2, 2)


def test_quality_where_it_is_undefined():
    assert quality(Counts(0, 0, 0)) == (0, 0, 0)
    assert quality(Counts(0, 3, 0)) == (0, 0, 0)
    assert quality(Counts(2, 0, 0)) == (1, 1, 1)
    assert quality(Counts(1, 1, 0)) == (0.5, 1, pytest.approx(2 / 3))


def test_averages():
    labels = {"a": Counts(3, 1, 0), "b": Counts(0, 0, 1)}
    assert averaged(labels, "micro") == (3 / 4, 3 / 4, 3 / 4)
    assert averaged(labels, "macro") == (3 / 8, 1 / 2, pytest.approx((6 / 7) / 2))
    assert averaged({}, "macro") == (0, 0, 0)
    # a label that is only predicted counts in the mean
    assert averaged({"a": Counts(3, 0, 0), "b": Counts(0, 1, 0)}, "macro").f1 == 1 / 2


GOLD = [
    Meaning("alarm", "set", (("time", "eight"),)),
    Meaning("play", "music", (("artist_name", "bob dylan"), ("date", "today"))),
    Meaning("alarm", "query", ()),
    Meaning("qa", "stock", (("business_name", "hdfc"),)),
]
PREDICTED = [
    Meaning("alarm", "set", (("time", "at eight"),)),
    Meaning("play", "radio", (("artist_name", "bob dylan"),)),
    Meaning("alarm", "query", (("date", "today"),)),
    NOTHING,
]


def test_all_metrics_by_hand():
    made = scores(tally_pairs(zip(GOLD, PREDICTED, strict=True)), "micro")
    assert made.scenario_f1 == 3 / 4
    assert made.action_f1 == made.intent_f1 == 2 / 4
    # exact: TP bob dylan; FP "at eight", today; FN eight, today, hdfc
    assert made.entity_f1 == pytest.approx(2 / (2 + 2 + 3))
    # word: "at eight" to "eight" d = 1: TP 2, FP 1 + 1, FN 1 + 2
    assert made.word_f1 == pytest.approx(4 / (4 + 2 + 3))
    # char: d = 3/8
    assert made.char_f1 == pytest.approx(4 / (4 + 11 / 8 + 19 / 8))
    assert made.slu_f1 == pytest.approx(8 / (8 + 27 / 8 + 43 / 8))


def test_macro_averages_by_hand():
    made = scores(tally_pairs(zip(GOLD, PREDICTED, strict=True)), "macro")
    # scenarios: alarm 1, play 1, qa 0, and the empty one 0
    assert made.scenario_f1 == 2 / 4
    # actions: set 1, query 1, music 0, radio 0, stock 0, empty 0
    assert made.action_f1 == 2 / 6
    # types: time 0, artist_name 1, date 0, business_name 0
    assert made.entity_f1 == 1 / 4
    # time: TP 1, FP and FN 1 by words, 3/8 by characters
    assert made.word_f1 == pytest.approx((1 / 2 + 1) / 4)
    assert made.char_f1 == pytest.approx((8 / 11 + 1) / 4)
    assert made.slu_f1 == pytest.approx((2 / (2 + 11 / 8) + 1) / 4)


def annotation(name: int, meaning: Meaning, files: list[str]) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = []
    entities = []
    for kind, filler in meaning.entities:
        words = filler.split()
        entities.append({"type": kind, "span": list(range(len(tokens), len(tokens) + len(words)))})
        tokens += [{"surface": word.title(), "id": 0} for word in words]
    return {
        "slurp_id": name,
        "sentence": "-",
        "intent": "not_used",
        "scenario": meaning.scenario,
        "action": meaning.action,
        "tokens": tokens,
        "entities": entities,
        "recordings": [{"file": file, "wer": 0.0} for file in files],
    }


def predicted_row(meaning: Meaning, **key: Any) -> dict[str, Any]:
    entities = [{"type": kind, "filler": filler} for kind, filler in meaning.entities]
    return {**key, "scenario": meaning.scenario, "action": meaning.action, "entities": entities}


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    path = tmp_path / "gold.jsonl"
    write_jsonl(path, [annotation(index, meaning, [f"{index}.flac"]) for index, meaning in enumerate(GOLD)])
    return path


def score(capsys: pytest.CaptureFixture[str], gold: Path, rows: list[dict[str, Any]], *more: str) -> dict[str, Any]:
    write_jsonl(gold.with_name("pred.jsonl"), rows)
    assert main(["score", "slu", "--gold", str(gold), "--pred", str(gold.with_name("pred.jsonl")), *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_command_line_by_recording_and_by_sentence(gold: Path, capsys: pytest.CaptureFixture[str]):
    by_file = [predicted_row(meaning, file=f"{index}.flac") for index, meaning in enumerate(PREDICTED)]
    made = score(capsys, gold, by_file)
    expected = scores(tally_pairs(zip(GOLD, PREDICTED, strict=True)), "micro").row()
    assert {name: made[name] for name in NAMES} == made["strict"] == expected
    assert (made["coverage"], made["missing"], made["unknown"], made["repeated"]) == (1, 0, 0, 0)
    # numbers and texts both name a sentence
    by_sentence = [
        predicted_row(meaning, slurp_id=str(index) if index % 2 else index) for index, meaning in enumerate(PREDICTED)
    ]
    made = score(capsys, gold, by_sentence, "--text")
    assert {name: made[name] for name in NAMES} == expected
    macro = scores(tally_pairs(zip(GOLD, PREDICTED, strict=True)), "macro").row()
    made = score(capsys, gold, by_file, "--average", "macro")
    assert {name: made[name] for name in NAMES} == macro


def test_a_missing_prediction_is_left_out_and_wrong_in_strict(gold: Path, capsys: pytest.CaptureFixture[str]):
    rows = [predicted_row(GOLD[index], file=f"{index}.flac") for index in (0, 1)]
    made = score(capsys, gold, rows)
    assert {made[name] for name in NAMES} == {1.0}
    assert (made["coverage"], made["scored"], made["missing"], made["gold"]) == (0.5, 2, 2, 4)
    strict = made["strict"]
    assert strict["scenario_f1"] == strict["action_f1"] == strict["intent_f1"] == 0.5
    # 3 of 4 gold entities, none predicted wrongly
    assert strict["entity_f1"] == strict["slu_f1"] == pytest.approx(6 / 7)
    filled = [*rows, *(predicted_row(NOTHING, file=f"{index}.flac") for index in (2, 3))]
    made = score(capsys, gold, filled)
    assert {name: made[name] for name in NAMES} == strict


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_no_predictions(gold: Path, capsys: pytest.CaptureFixture[str], average: str):
    made = score(capsys, gold, [], "--average", average)
    assert {made[name] for name in NAMES} == {made["strict"][name] for name in NAMES} == {0.0}
    assert made["coverage"] == 0


def test_repeated_unknown_and_odd_rows(gold: Path, capsys: pytest.CaptureFixture[str]):
    right = [predicted_row(meaning, file=f"{index}.flac") for index, meaning in enumerate(GOLD)]
    wrong = predicted_row(NOTHING, file="0.flac")
    assert score(capsys, gold, [wrong, *right])["intent_f1"] == 1
    made = score(capsys, gold, [*right, wrong, predicted_row(NOTHING, file="other.flac")])
    assert (made["intent_f1"], made["repeated"], made["unknown"], made["coverage"]) == (3 / 4, 1, 1, 1)
    right[0]["entities"][0]["span"] = [0]
    right[0]["text"] = "further keys of a row do no harm"
    write_jsonl(gold.with_name("pred.jsonl"), right)
    assert main(["score", "slu", "--gold", str(gold), "--pred", str(gold.with_name("pred.jsonl"))]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["odd_entities"] == 1
    assert "compares whole objects" in captured.err


def test_warnings_go_to_standard_error(gold: Path, capsys: pytest.CaptureFixture[str]):
    write_jsonl(gold.with_name("pred.jsonl"), [predicted_row(GOLD[0], file="0.flac")] * 2)
    assert main(["score", "slu", "--gold", str(gold), "--pred", str(gold.with_name("pred.jsonl"))]) == 0
    captured = capsys.readouterr()
    assert "3 gold rows of 4 have no prediction" in captured.err
    assert "1 predictions have a file that a later one has too" in captured.err


GOOD = {"file": "0.flac", "scenario": "a", "action": "b", "entities": []}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "scenario": None}, "field `scenario`"),
        ({**GOOD, "entities": None}, "field `entities`"),
        ({**GOOD, "entities": [{"type": "time"}]}, "field `entities.0.filler`"),
        ({**GOOD, "entities": [{"type": "time", "filler": 8}]}, "field `entities.0.filler`"),
        ({key: GOOD[key] for key in GOOD if key != "action"}, "field `action`"),
        ({key: GOOD[key] for key in GOOD if key != "file"}, "no `file`"),
        ("no json", "not valid JSON"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_a_bad_prediction_is_named_with_its_line(
    gold: Path, capsys: pytest.CaptureFixture[str], line: Any, message: str
):
    path = gold.with_name("pred.jsonl")
    text = line if isinstance(line, str) else json.dumps(line)
    path.write_text(json.dumps(GOOD) + "\n" + text + "\n")
    assert main(["score", "slu", "--gold", str(gold), "--pred", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert f"{path}, line 2" in captured.err


def test_faults_of_gold_files(gold: Path, capsys: pytest.CaptureFixture[str]):
    pred = gold.with_name("pred.jsonl")
    write_jsonl(pred, [GOOD])
    arguments = ["score", "slu", "--gold", str(gold), "--pred", str(pred)]

    def failure(row: dict[str, Any], *more: str) -> str:
        write_jsonl(gold, [row])
        assert main([*arguments, *more]) == 2
        return capsys.readouterr().err

    row = annotation(1, GOLD[0], [])
    assert "no gold row has a recording" in failure(row)
    assert "no `slurp_id`" in failure({**row, "slurp_id": None}, "--text")
    assert "out of range" in failure({**row, "entities": [{"type": "time", "span": [9]}]})
    assert "field `tokens`" in failure({key: row[key] for key in row if key != "tokens"})
    gold.unlink()
    assert main(arguments) == 2
    assert "file not found" in capsys.readouterr().err
