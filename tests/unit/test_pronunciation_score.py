"""Metrics of whole files, against scipy, jiwer and numbers worked out by hand; and as a user types them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
from scipy.stats import pearsonr

from utterflow.cli import main
from utterflow.files import write_jsonl
from utterflow.pronunciation.apa import ASPECTS, agreement
from utterflow.pronunciation.gold import Gold
from utterflow.pronunciation.intervals import bootstrap
from utterflow.pronunciation.parse import NOTHING, Prediction, prediction_of
from utterflow.pronunciation.published import PUBLISHED, compare
from utterflow.pronunciation.records import PronunciationScores
from utterflow.pronunciation.score import compare_transcripts, metrics_of_sums, score, utterance_columns

PHONES = ("AA", "B", "K", "IY", "S", "T")


def gold_set(count: int = 60, seed: int = 1) -> dict[str, Gold]:
    """Utterances of six speakers, a fifth of the phones mispronounced in one of three ways."""
    draw = random.Random(seed)
    found = {}
    for number in range(count):
        canonical = draw.choices(PHONES, k=draw.randint(3, 12))
        pronounced: list[str] = []
        for phone in canonical:
            said = [phone] if draw.random() < 0.8 else draw.choices(PHONES, k=draw.randint(0, 2))
            pronounced += said
        words = " ".join(draw.choices(["THE", "CAT", "SAT", "DOWN"], k=draw.randint(1, 6)))
        scores = {name: float(draw.randint(3, 10)) for name in ASPECTS}
        name = f"u{number:03}"
        found[name] = Gold(name, f"s{number % 6}", scores, words, tuple(canonical), tuple(pronounced))
    return found


def predictions_for(gold: dict[str, Gold], seed: int = 2) -> dict[str, Prediction]:
    """Scores off by up to 2, some words and phones replaced; some fields unusable, some utterances left out."""
    draw = random.Random(seed)
    found = {}
    for item in gold.values():
        fields: dict[str, Any] = {
            name: min(10.0, max(0.0, value + draw.randint(-2, 2))) for name, value in item.scores.items()
        }
        fields["word_transcript"] = " ".join(word if draw.random() < 0.9 else "DOG" for word in item.words.split())
        fields["phoneme_transcript"] = [phone if draw.random() < 0.9 else "ZH" for phone in item.pronounced]
        if draw.random() < 0.1:
            fields[draw.choice(list(fields))] = None
        if draw.random() < 0.1:
            fields["fluency"] = 11
        found[item.id] = prediction_of(fields)
    for name in list(found)[5:8]:
        del found[name]
    return found


def scored(gold: dict[str, Gold], predictions: dict[str, Prediction], **changes: Any) -> PronunciationScores:
    options: dict[str, Any] = {
        "normalizer_name": "basic", "samples": 0, "confidence": 0.95, "seed": 42, "unit": "utterance",
        "with_phones": False,
    }  # fmt: skip
    return score(gold, predictions, **{**options, **changes})


def test_correlation_and_error_are_those_of_scipy_and_numpy() -> None:
    gold = gold_set()
    predictions = predictions_for(gold)
    result = scored(gold, predictions)
    for name in ASPECTS:
        usable = [key for key in gold if key in predictions and predictions[key].scores[name] is not None]
        x = [gold[key].scores[name] for key in usable]
        y = [predictions[key].scores[name] for key in usable]
        expected = pearsonr(x, y)
        found = result.apa[name]
        assert found.n == len(usable) < len(gold)
        assert (found.pcc, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
        assert found.mae == pytest.approx(np.abs(np.array(x) - np.array(y, dtype=float)).mean())
        assert result.answered[name].usable == found.n
        assert sum(result.answered[name].unusable.values()) == len(gold) - found.n
    assert result.answered["fluency"].unusable["out of range"] > 0
    assert result.answered["fluency"].unusable["missing"] >= 3
    assert (result.utterances, result.predicted, result.missing, result.coverage) == (60, 57, 3, 0.95)


def test_error_rates_are_those_of_jiwer_with_unusable_transcripts_empty() -> None:
    gold = gold_set()
    predictions = predictions_for(gold)
    result = scored(gold, predictions)
    answers = [predictions.get(key, NOTHING) for key in gold]
    words = jiwer.process_words(
        [item.words.lower() for item in gold.values()], [(answer.words or "").lower() for answer in answers]
    )
    assert result.wer == pytest.approx(words.wer)
    assert result.word_edits is not None
    assert result.word_edits.model_dump(exclude={"length"}) == {
        name: getattr(words, name) for name in ("substitutions", "deletions", "insertions")
    }
    references = {key: " ".join(item.pronounced) for key, item in gold.items()}
    phones = jiwer.process_words(list(references.values()), [" ".join(answer.phones or ()) for answer in answers])
    assert result.per == pytest.approx(phones.wer)
    assert result.phone_edits is not None
    assert result.phone_edits.length == sum(len(item.pronounced) for item in gold.values())


def test_punctuation_and_case_of_words_do_not_count() -> None:
    gold = {"u": Gold("u", None, dict.fromkeys(ASPECTS, 5.0), "I'M HERE", ("AA",), ("AA",))}
    answer = {"u": prediction_of({"word_transcript": "I'm here."})}
    assert scored(gold, answer).wer == 0
    assert scored(gold, answer, normalizer_name="none").wer == 1


def two_utterances() -> tuple[dict[str, Gold], dict[str, Prediction]]:
    scores = {"accuracy": 4.0, "fluency": 6.0, "prosodic": 5.0, "total": 5.0}
    gold = {
        "a": Gold("a", "s1", scores, "A CAT", ("AH", "K", "AE", "T"), ("AH", "K", "EH")),
        "b": Gold("b", "s2", {**scores, "accuracy": 8.0}, "SEE", ("S", "IY"), ("S", "IY")),
    }
    answers = {
        "a": prediction_of({"accuracy": 5, "fluency": 7, "word_transcript": "a hat", "phoneme_transcript": "K EH D"}),
        "b": prediction_of({"accuracy": 9, "fluency": 7, "word_transcript": "see", "phoneme_transcript": "S IY S"}),
    }
    return gold, answers


def test_by_hand() -> None:
    """a: AH rejected wrongly; EH for AE diagnosed; the T that is not there taken for D. b: an S too many."""
    result = scored(*two_utterances(), with_phones=True)
    assert result.apa["accuracy"].model_dump() == {
        "n": 2, "pcc": pytest.approx(1), "p_value": 1, "mae": 1, "reason": None,
    }  # fmt: skip
    assert result.apa["fluency"].reason == "all predicted scores are 7"
    assert (result.apa["fluency"].pcc, result.apa["fluency"].mae) == (None, 1)
    assert result.apa["total"].reason == "no utterance has a usable score"
    assert result.wer == 1 / 3
    assert result.per == 3 / 5
    assert (result.paper_precision, result.paper_recall, result.paper_f1) == (4 / 6, 4 / 5, 8 / 11)
    assert result.mdd is not None
    assert result.mdd.model_dump(include={"TA", "FR", "FA", "TR", "CD", "DE", "positions"}) == {
        "TA": 3, "FR": 2, "FA": 0, "TR": 2, "CD": 1, "DE": 1, "positions": 7,
    }  # fmt: skip
    assert (result.mdd.precision, result.mdd.recall, result.mdd.f1) == (1 / 2, 1, 2 / 3)
    assert (result.mdd.far, result.mdd.frr, result.mdd.der) == (0, 2 / 5, 1 / 2)
    assert [row.model_dump() for row in result.confusions or ()] == [
        {"canonical": None, "spoken": None, "heard": "S", "count": 1},
        {"canonical": "AE", "spoken": "EH", "heard": "EH", "count": 1},
        {"canonical": "AH", "spoken": "AH", "heard": None, "count": 1},
        {"canonical": "T", "spoken": None, "heard": "D", "count": 1},
    ]


def test_metrics_that_no_row_can_have_are_null() -> None:
    gold = gold_set(5)
    only_scores = {key: prediction_of(dict.fromkeys(ASPECTS, number)) for number, key in enumerate(gold)}
    result = scored(gold, only_scores, samples=50, with_phones=True)
    assert (result.wer, result.per, result.mdd, result.paper_f1, result.phones) == (None,) * 5
    assert result.apa["total"].pcc is not None
    assert result.intervals["wer"] is None
    assert result.intervals["mdd_f1"] is None
    assert result.intervals["total_pcc"] is not None
    assert scored(gold, {}).coverage == 0


def test_tables_of_phones() -> None:
    gold = gold_set()
    result = scored(gold, predictions_for(gold), with_phones=True)
    assert result.phones is not None
    assert result.confusions is not None
    assert result.mdd is not None
    assert sum(row.TA for row in result.phones) == result.mdd.TA
    assert sum(row.count for row in result.confusions) == result.mdd.positions - result.mdd.TA
    assert [row.count for row in result.confusions] == sorted((row.count for row in result.confusions), reverse=True)
    for row in result.phones:
        times = sum(item.canonical.count(row.phone) for item in gold.values())
        assert sum(row.spoken.values()) == sum(row.heard.values()) == times == row.TA + row.FR + row.FA + row.TR
        assert row.spoken.get(row.phone, 0) == row.TA + row.FR
        assert row.heard.get(row.phone, 0) == row.TA + row.FA
    assert scored(gold, {}).phones is None


@pytest.mark.parametrize(
    ("gold", "predicted", "reason"),
    [
        ([], [], "no utterance has a usable score"),
        ([5], [6], "only one utterance has a usable score"),
        ([5, 6], [7, 7], "all predicted scores are 7"),
        ([5, 5], [7, 8], "all gold scores are 5"),
    ],
)
def test_no_correlation(gold: Sequence[float], predicted: Sequence[float], reason: str) -> None:
    found = agreement(gold, predicted)
    assert (found.pcc, found.p_value, found.reason) == (None, None, reason)
    assert found.mae == (pytest.approx(np.abs(np.subtract(gold, predicted)).mean()) if gold else None)


def test_metrics_of_sums_are_the_metrics() -> None:
    """What the bootstrap computes from all utterances is what is reported."""
    gold = gold_set()
    predictions = predictions_for(gold)
    result = scored(gold, predictions, samples=20)
    answers = [predictions.get(key, NOTHING) for key in gold]
    compared = [compare_transcripts(*pair, str.lower) for pair in zip(gold.values(), answers, strict=True)]
    columns = utterance_columns(list(gold.values()), answers, compared)
    whole = metrics_of_sums({name: values.sum(keepdims=True) for name, values in columns.items()})
    assert whole.keys() == result.intervals.keys()
    assert result.mdd is not None
    for name, (value,) in whole.items():
        kind, _, metric = name.rpartition("_")
        if kind == "mdd":
            expected = getattr(result.mdd, metric)
        elif kind in ASPECTS:
            expected = getattr(result.apa[kind], metric)
        else:
            expected = getattr(result, name)
        assert value == pytest.approx(expected), name


@pytest.mark.parametrize("unit", ["utterance", "speaker"])
def test_intervals_are_those_of_a_slow_bootstrap(unit: str) -> None:
    """Utterances drawn one by one and scored anew."""
    gold = gold_set(20)
    predictions = predictions_for(gold)
    result = scored(gold, predictions, samples=4000, unit=unit)
    groups: dict[str, list[str]] = {}
    for key, item in gold.items():
        groups.setdefault(item.speaker or "" if unit == "speaker" else key, []).append(key)
    draw = random.Random(3)
    slow: dict[str, list[float]] = {"total_pcc": [], "per": [], "mdd_f1": []}
    for _ in range(200):
        drawn = [key for group in draw.choices(list(groups), k=len(groups)) for key in groups[group]]
        again = {f"{number}": gold[key] for number, key in enumerate(drawn)}
        answers = {f"{number}": predictions.get(key, NOTHING) for number, key in enumerate(drawn)}
        found = scored(again, answers)
        assert found.mdd is not None
        for name, value in (("total_pcc", found.apa["total"].pcc), ("per", found.per), ("mdd_f1", found.mdd.f1)):
            assert value is not None
            slow[name].append(value)
    for name, values in slow.items():
        interval = result.intervals[name]
        assert interval is not None
        low, high = np.quantile(values, [0.025, 0.975])
        assert interval == pytest.approx((low, high), abs=0.25 * (high - low))
        assert interval == scored(gold, predictions, samples=4000, unit=unit).intervals[name]


def test_bootstrap_without_units_or_values() -> None:
    def ratio(sums: Any) -> dict[str, Any]:
        return {"ratio": np.where(sums["n"] > 0, sums["x"] / np.maximum(sums["n"], 1), np.nan)}

    def interval(x: list[float], n: list[float], samples: int = 100) -> Any:
        columns = {"x": np.array(x), "n": np.array(n)}
        return bootstrap(columns, ratio, samples=samples, confidence=0.9, seed=1)["ratio"]

    assert interval([1, 1], [2, 2]) == (0.5, 0.5)
    assert interval([1], [2]) is None
    assert interval([1, 1], [2, 2], samples=0) is None
    assert interval([0, 0], [0, 0]) is None
    # Draws without the first unit have no ratio, and are left out.
    assert interval([1, 0], [2, 0]) == (0.5, 0.5)


def test_comparison_with_published_numbers() -> None:
    table = PUBLISHED["lora_epoch_3"]
    near = compare({**table, "wer": 0.19, "per": 0.165, "paper_f1": None})["lora_epoch_3"]
    assert near["wer"] == (0.14, 0.19, pytest.approx(0.05), True)
    assert near["per"] == (0.114, 0.165, pytest.approx(0.051), False)
    assert near["paper_f1"] == (0.724, None, None, None)
    assert all(item.within for name, item in near.items() if name not in ("per", "paper_f1"))
    assert {name: item.published for name, item in compare({})["gopt"].items()} == {
        "accuracy_pcc": 0.714, "fluency_pcc": 0.753, "prosodic_pcc": 0.76, "total_pcc": 0.742,
    }  # fmt: skip


# The command


def annotations(path: Path, gold: dict[str, Gold]) -> str:
    """A `scores.json` in which each phone is a word, and none is mispronounced."""
    entries = {}
    for item in gold.values():
        words = [
            {"text": f"W{place}", "phones": [phone], "phones-accuracy": [2.0]}
            for place, phone in enumerate(item.canonical)
        ]
        entries[item.id] = {**item.scores, "text": item.words, "words": words}
    path.write_text(json.dumps(entries))
    return str(path)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["score", "pronunciation", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = gold_set(4)
    files = ["--gold", annotations(tmp_path / "scores.json", gold), "--pred", str(tmp_path / "p.jsonl")]
    rows: list[dict[str, Any]] = [
        {"id": key, **item.scores, "phoneme_transcript": list(item.canonical), "seconds": 3}
        for key, item in gold.items()
    ]
    rows[1]["accuracy"] = "ten"
    rows[2]["accuracy"] = 11
    rows.pop()
    write_jsonl(tmp_path / "p.jsonl", rows)
    code, out, err = command(capsys, *files, "--samples", "10", "--phones")
    assert code == 0
    result = PronunciationScores.model_validate_json(out)
    assert (result.utterances, result.missing, result.wer, result.bootstrap_samples) == (4, 1, None, 10)
    assert result.answered["accuracy"].model_dump() == {
        "usable": 1, "unusable": {"missing": 1, "not a number": 1, "out of range": 1},
    }  # fmt: skip
    assert result.mdd is not None
    assert result.mdd.recall is None
    assert result.confusions
    assert "1 of 4 utterances have no prediction" in err
    assert "--utt2spk scores one split only" in err
    assert "accuracy: 2 values cannot be used: 1 not a number, 1 out of range" in err
    assert command(capsys, *files, "--samples", "10", "--phones")[1] == out


def test_the_command_on_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = gold_set(6)
    table = tmp_path / "utt2spk"
    table.write_text("u004 a\nu002 b\n")
    files = ["--gold", annotations(tmp_path / "scores.json", gold), "--pred", str(tmp_path / "p.jsonl")]
    write_jsonl(tmp_path / "p.jsonl", [{"id": "u002", "accuracy": 5}, {"id": "u004", "accuracy": 6}])
    code, out, err = command(capsys, *files, "--utt2spk", str(table), "--unit", "speaker")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["utterances"], result["missing"], result["bootstrap_unit"]) == (2, 0, "speaker")
    assert len(result["intervals"]["accuracy_mae"]) == 2
    code, out, err = command(capsys, *files, "--unit", "speaker")
    assert (code, out) == (2, "")
    assert "--utt2spk FILE" in err


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"id": "x1"}, {"id": "u000"}, {"id": "x2"}], "2 of 3 predictions are for unknown utterances: 'x1', 'x2'"),
        ([{"id": "u000"}, {"id": "u000"}], "id 'u000' occurs twice"),
        ([{"accuracy": 5}], "field `id`"),
        ([{"id": 7}], "field `id`"),
    ],
)
def test_rows_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], what: str
) -> None:
    path = tmp_path / "p.jsonl"
    write_jsonl(path, rows)
    code, out, err = command(capsys, "--gold", annotations(tmp_path / "scores.json", gold_set(2)), "--pred", str(path))
    assert (code, out) == (2, "")
    assert what in err
    assert str(path) in err
    assert "Traceback" not in err


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gold = annotations(tmp_path / "scores.json", gold_set(2))
    write_jsonl(tmp_path / "p.jsonl", [{"id": "u000"}])
    for arguments in (
        ["--gold", "nowhere.json", "--pred", str(tmp_path / "p.jsonl")],
        ["--gold", gold, "--pred", "nowhere.jsonl"],
        ["--gold", gold, "--pred", str(tmp_path / "p.jsonl"), "--utt2spk", "nowhere"],
    ):
        code, out, err = command(capsys, *arguments)
        assert (code, out) == (2, "")
        assert "file not found" in err
        assert "nowhere" in err
