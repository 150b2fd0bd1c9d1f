"""Annotations of speechocean762: the forms of pronounced phones, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from utterflow.errors import UserError
from utterflow.pronunciation.gold import Gold, gold_of, gold_of_row, read_gold
from utterflow.pronunciation.phones import predicted_phones, pronounced_phones
from utterflow.records import ManifestRow

ENTRY: dict[str, Any] = {
    "text": "THE CAT.",
    "accuracy": 6,
    "completeness": 10.0,
    "fluency": 7,
    "prosodic": 8,
    "total": 5.5,
    "words": [
        {"text": "THE", "accuracy": 9, "phones": ["DH", "AH0"], "phones-accuracy": [2.0, 1.8]},
        {
            "text": "CAT",
            "accuracy": 3,
            "phones": ["K", "AE1", "T"],
            "phones-accuracy": [2, 0.2, 0.0],
            "mispronunciations": [
                {"canonical-phone": "AE", "index": 1, "pronounced-phone": "EH R"},
                {"canonical-phone": "T", "index": 2, "pronounced-phone": "<DEL>"},
            ],
        },
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The entry with another value at a path such as `words.1.phones`; `...` takes the field away."""
    entry: Any = copy.deepcopy(ENTRY)
    *inner, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = entry
    for part in inner:
        target = target[part]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return dict(entry)


def test_an_entry() -> None:
    assert gold_of("u1", ENTRY, "0001") == Gold(
        id="u1",
        speaker="0001",
        scores={"accuracy": 6, "fluency": 7, "prosodic": 8, "total": 5.5},
        words="THE CAT",
        canonical=("DH", "AH", "K", "AE", "T"),
        pronounced=("DH", "AH", "K", "EH", "R"),
    )


@pytest.mark.parametrize(
    ("annotation", "phones"),
    [
        ("D", ("D",)),
        ("iy1", ("IY",)),
        ("<DEL>", ()),
        ("<unk>", ("<unk>",)),
        ("<UNK>", ("<unk>",)),
        ("EH R", ("EH", "R")),
        ("AO*", ("<unk>",)),
        ("R*", ("<unk>",)),
        ("TS", ("<unk>",)),
        ("AX", ("AH",)),
    ],
)
def test_forms_of_pronounced_phones(annotation: str, phones: tuple[str, ...]) -> None:
    assert pronounced_phones(annotation) == phones


@pytest.mark.parametrize(
    ("answer", "phones"),
    [
        ("DH AH0 K", ("DH", "AH", "K")),
        (" dh,ah1 | k\n", ("DH", "AH", "K")),
        (["DH", "AH0", "K T"], ("DH", "AH", "K", "T")),
        ("<unk> <DEL> R* XY", ("<unk>", "<unk>", "XY")),
        ("S AX N AXR", ("S", "AH", "N", "ER")),
        ("", ()),
        ("12", ()),
    ],
)
def test_predicted_phones(answer: str | list[str], phones: tuple[str, ...]) -> None:
    assert predicted_phones(answer) == phones


@pytest.mark.parametrize("value", [..., None, []])
def test_a_word_without_mispronunciations(value: Any) -> None:
    found = gold_of("u1", changed("words.1.mispronunciations", value))
    assert isinstance(found, Gold)
    assert found.pronounced == found.canonical


def test_phones_as_one_text() -> None:
    assert gold_of("u1", changed("words.0.phones", "DH AH0"), "0001") == gold_of("u1", ENTRY, "0001")


FAULT = "words.1.mispronunciations.0."


@pytest.mark.parametrize(
    ("path", "value", "field", "what"),
    [
        ("accuracy", 11, "accuracy", "less than or equal to 10 (value: 11)"),
        ("fluency", -1, "fluency", "greater than or equal to 0"),
        ("prosodic", "8", "prosodic", "valid number"),
        ("prosodic", True, "prosodic", "valid number"),
        ("total", float("nan"), "total", "finite number"),
        ("total", None, "total", "valid number"),
        ("total", ..., "total", "is missing"),
        ("words", ..., "words", "is missing"),
        ("words", [], "words", "at least 1 item"),
        ("words.0", "THE", "words.0", "is not an object"),
        ("words.0.text", "", "words.0.text", "pattern"),
        ("words.0.phones", [], "words.0.phones", "at least 1 item"),
        ("words.0.phones-accuracy", [2.0], "words.0", "phones-accuracy has 1 scores, phones 2 phones"),
        ("words.0.phones-accuracy", [2.0, 2.5], "words.0.phones-accuracy.1", "less than or equal to 2"),
        ("words.0.phones-accuracy", ..., "words.0.phones-accuracy", "is missing"),
        (FAULT + "index", 3, "words.1", "mispronunciations: index 3 is out of range: there are 3 phones"),
        (FAULT + "index", -1, "words.1", "index -1 is out of range"),
        (FAULT + "index", 2, "words.1", "canonical-phone 'AE' is not the phone at index 2, 'T'"),
        (FAULT + "canonical-phone", "IH", "words.1", "canonical-phone 'IH' is not the phone at index 1, 'AE1'"),
        (FAULT + "pronounced-phone", "", FAULT + "pronounced-phone", "pattern"),
        (FAULT + "pronounced-phone", None, FAULT + "pronounced-phone", "valid string"),
        ("words.1.mispronunciations", [ENTRY["words"][1]["mispronunciations"][1]] * 2, "words.1", "stands there twice"),
    ],
)
def test_malformed_entries(path: str, value: Any, field: str, what: str) -> None:
    found = gold_of("u1", changed(path, value))
    assert isinstance(found, list)
    assert (found[0].utterance, found[0].field) == ("u1", field)
    assert what in found[0].what


def test_an_entry_that_is_no_object() -> None:
    found = gold_of("u1", None)
    assert [str(problem) for problem in found] == ["utterance u1, (entry): is not an object (value: None)"]


def test_all_problems_are_collected_and_the_first_shown(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    bad = changed("accuracy", 12)
    bad["words"][0]["phones-accuracy"] = [2.0]
    path.write_text(json.dumps({"good": ENTRY, "u2": bad, **{f"u{n}": changed("total", "x") for n in range(3, 9)}}))
    with pytest.raises(UserError) as caught:
        read_gold(path)
    message = str(caught.value)
    assert "7 utterances have malformed annotations (8 problems)" in message
    assert "utterance u2, accuracy: " in message
    assert "utterance u2, words.0: phones-accuracy has 1 scores, phones 2 phones" in message
    assert "and 3 more" in message
    assert str(path) in message
    assert "good" not in message


def test_only_the_utterances_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"u1": ENTRY, "u2": changed("total", 99), "u3": ENTRY}))
    found = read_gold(path, {"u3": "b", "u1": "a"})
    assert [(gold.id, gold.speaker) for gold in found.values()] == [("u3", "b"), ("u1", "a")]
    with pytest.raises(UserError, match=r"1 of 2 utterances are not in the annotations, e\.g\. u9"):
        read_gold(path, {"u1": "a", "u9": "b"})


@pytest.mark.parametrize(
    ("content", "what"),
    [("[]", "not speechocean762's scores"), ("{}", "there is no utterance"), ("{", "not valid JSON")],
)
def test_other_files(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(UserError, match=what):
        read_gold(path)


def test_manifest_rows_have_the_same_fields() -> None:
    fields = {name: value for name, value in ENTRY.items() if name != "text"}
    row = {"id": "u1", "audio": "a.flac", "audio_sha256": "x", "audio_bytes": 1, "seconds": 1.0, "text": "THE CAT"}
    assert gold_of_row(ManifestRow.model_validate({**row, **fields, "speaker": "0001"})) == gold_of("u1", ENTRY, "0001")
    bare = gold_of_row(ManifestRow.model_validate(row))
    assert isinstance(bare, list)
    assert {problem.field for problem in bare} == {"accuracy", "fluency", "prosodic", "total", "words"}
