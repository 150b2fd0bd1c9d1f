"""Answers of a model, as scores and transcripts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utterflow.pronunciation.parse import (
    NOTHING,
    parse_scores,
    parse_transcripts,
    prediction_of,
    read_phones,
    read_score,
)

SCORES = {"accuracy": 8, "fluency": 7.5, "prosodic": 9, "total": 8}
TEXTS = {"word_transcript": "THAT'S IT.", "phoneme_transcript": "DH AE T S IH T"}


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(SCORES),
        f"```json\n{json.dumps(SCORES, indent=2)}\n```<|end|>",
        f"The scores {{0 to 10}} are: {json.dumps(SCORES)} and that is all }}",
        str(SCORES),
        "{" + json.dumps(SCORES) + "}",
        f'{{"task": "APA"}} {json.dumps(SCORES)} {json.dumps(dict.fromkeys(SCORES, 1))}',
        json.dumps({**SCORES, "completeness": 10}),
    ],
)
def test_scores(answer: str) -> None:
    assert parse_scores(answer) == SCORES


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(TEXTS),
        str(TEXTS),
        "{'word_transcript': 'THAT'S IT.', 'phoneme_transcript': 'DH AE T S IH T'}",
        "Here: {'phoneme_transcript': 'DH AE T S IH T', 'word_transcript': 'THAT'S IT.' }.",
        '{"word_transcript": \'THAT\'S IT.\', "phoneme_transcript": "DH AE T S IH T"}',
    ],
)
def test_transcripts(answer: str) -> None:
    assert parse_transcripts(answer) == TEXTS


def test_a_field_that_is_not_there() -> None:
    assert parse_scores('{"total": 3}') == {"accuracy": None, "fluency": None, "prosodic": None, "total": 3}
    assert parse_transcripts('{"word_transcript": "A"}') == {"word_transcript": "A", "phoneme_transcript": None}


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ("", "the answer is empty"),
        (" \n", "the answer is empty"),
        ("accuracy 8, fluency 7", "no object with `accuracy` or"),
        ('{"accuracy": 8, "fluency": 7', "no object"),
        ("{" * 5000, "no object"),
        ('{"a":' * 5000, "no object"),
        ("{" + "[" * 5000 + "}", "no object"),
        ('{"words": "A"}', "no object"),
        ("[8, 7, 9, 8]", "no object"),
    ],
)
def test_no_scores(answer: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        parse_scores(answer)


def test_code_is_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no object"):
        parse_scores("{'accuracy': print('run')}")
    assert capsys.readouterr().out == ""


@given(st.text(alphabet="{}'\":,a1 \\accuracytotl[]"))
@settings(max_examples=300, deadline=None)
def test_any_text_has_scores_or_a_reason(answer: str) -> None:
    for parse in (parse_scores, parse_transcripts):
        try:
            assert isinstance(parse(answer), dict)
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize(("value", "number"), [(8, 8), (0, 0), (10.0, 10), ("7", 7), (" 7.5 ", 7.5), ("1e1", 10)])
def test_a_score(value: object, number: float) -> None:
    assert read_score(value) == number


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "^missing$"),
        ("high", "not a number: 'high'"),
        ("8/10", "not a number"),
        ("", "not a number"),
        (True, "not a number"),
        ([8], "not a number"),
        (float("nan"), "not a number"),
        ("inf", "not a number"),
        (10**400, "not a number"),
        (10.5, "out of range: 10.5 is not from 0 to 10"),
        ("-1", "out of range"),
    ],
)
def test_no_score(value: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        read_score(value)


def test_phones_of_an_answer() -> None:
    assert read_phones("DH AH0") == read_phones(["DH", "AH"]) == ("DH", "AH")
    for value, what in ((None, "missing"), (3, "not a text"), (["DH", 3], "not a text"), ("\ud800", "not a text")):
        with pytest.raises(ValueError, match=what):
            read_phones(value)


def test_each_field_is_read_alone() -> None:
    found = prediction_of({**SCORES, **TEXTS, "fluency": "12", "word_transcript": ["A"]})
    assert found.scores == {**SCORES, "fluency": None}
    assert found.phones == ("DH", "AE", "T", "S", "IH", "T")
    assert found.words is None
    assert {name: what.partition(":")[0] for name, what in found.problems.items()} == {
        "fluency": "out of range",
        "word_transcript": "not a text",
    }
    assert prediction_of({}) == NOTHING
