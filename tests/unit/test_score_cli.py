"""`utterflow score` and `utterflow report` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest

from utterflow.cli import main
from utterflow.files import write_jsonl


def texts(path: Path, rows: dict[str, str]) -> str:
    write_jsonl(path, [{"id": name, "text": text} for name, text in rows.items()])
    return str(path)


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["score", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_wer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references = {"1": "turn on the light", "2": "stop", "3": "play some jazz"}
    hypotheses = {"3": "play sum jazz", "1": "turn on light", "2": "stop it"}
    made = result(capsys, "wer", "--ref", texts(tmp_path / "r", references), "--hyp", texts(tmp_path / "h", hypotheses))
    ordered = [hypotheses[name] for name in references]
    words = jiwer.process_words(list(references.values()), ordered)
    chars = jiwer.process_characters(list(references.values()), ordered)
    assert (made["wer"], made["cer"], made["n"]) == (words.wer, chars.cer, 3)
    for name in ("hits", "substitutions", "deletions", "insertions"):
        assert made[name] == getattr(words, name)
        assert made[f"character_{name}"] == getattr(chars, name)
    assert (made["words"], made["characters"], made["missing"]) == (8, 35, 0)
    assert made["sentence_error_rate"] == 1
    assert made["normalizer"] == "none"


def test_wer_with_a_normalizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = ["--ref", texts(tmp_path / "r", {"1": "Don't!"}), "--hyp", texts(tmp_path / "h", {"1": "do not"})]
    assert result(capsys, "wer", *files)["wer"] == 2
    assert result(capsys, "wer", *files, "--normalizer", "whisper_english")["wer"] == 0


def test_a_reference_without_hypothesis_counts_as_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references, hypotheses = {"1": "a b", "2": "c d"}, {"2": "c d"}
    arguments = [
        "score",
        "wer",
        "--ref",
        texts(tmp_path / "r", references),
        "--hyp",
        texts(tmp_path / "h", hypotheses),
    ]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert (made["wer"], made["deletions"], made["missing"]) == (0.5, 2, 1)
    assert captured.err == "warning: 1 of 2 references have no hypothesis\n"


def test_empty_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = ["--ref", texts(tmp_path / "r", {"1": ""}), "--hyp", texts(tmp_path / "h", {"1": "a"})]
    made = result(capsys, "wer", *files)
    assert (made["wer"], made["cer"], made["insertions"], made["empty_references"]) == (None, None, 1, 1)


@pytest.mark.parametrize(
    ("references", "hypotheses", "told"),
    [
        (
            '{"id": "1", "text": "a"}',
            '{"id": "2", "text": "a"}',
            ["1 of 1 hypotheses", "'2'", "h.jsonl", "'1'"],
        ),
        (
            '{"id": "1", "text": "a"}\n{"id": "1", "text": "b"}',
            "",
            ["id '1' occurs twice", "r.jsonl, line 2"],
        ),
        ('{"id": "1", "text": "a"}', '\n{"id": "1"}', ["field `text`", "h.jsonl, line 2"]),
        ('{"id": "1", "text": null}', "", ["field `text`", "r.jsonl, line 1"]),
        ('{"id": "1", "text": "a"', "", ["not valid JSON", "r.jsonl, line 1"]),
        ("[1]", "", ["expected a JSON object", "r.jsonl, line 1"]),
        ("", '{"id": "1", "text": "a"}', ["there is no reference", "r.jsonl"]),
    ],
)
def test_wer_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], references: str, hypotheses: str, told: list[str]
):
    (tmp_path / "r.jsonl").write_text(references)
    (tmp_path / "h.jsonl").write_text(hypotheses)
    message = failure(capsys, "score", "wer", "--ref", str(tmp_path / "r.jsonl"), "--hyp", str(tmp_path / "h.jsonl"))
    for part in told:
        assert part in message


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "no.jsonl" in failure(capsys, "score", "nbest", "--input", str(tmp_path / "no.jsonl"))
    assert str(tmp_path) in failure(capsys, "score", "nbest", "--input", str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    assert "not UTF-8" in failure(capsys, "score", "nbest", "--input", str(tmp_path / "binary"))


HYPOTHESES = ["turn on light", "burn on the light", "burn on the night", "turn on the light"]
ROWS = {
    "input": {"input": HYPOTHESES, "output": "turn on the light"},
    "input_beams": {"input_beams": HYPOTHESES, "ground_truth": "turn on the light", "formatted_input": "..."},
    "nbest": {
        "asr_hypotheses": [{"text": text, "score": -1} for text in HYPOTHESES],
        "text": "turn on the light",
    },
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_nbest(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any]):
    write_jsonl(tmp_path / "lists", [row, {"input": ["stop", "stop"], "output": "stop now"}])
    made = result(capsys, "nbest", "--input", str(tmp_path / "lists"))
    # MBR of the first list: "burn on the light", 1 edit to the second and 1 to each of the last two
    assert (made["first"], made["mbr"], made["oracle"], made["compositional_oracle"]) == (
        2 / 6,
        2 / 6,
        1 / 6,
        1 / 6,
    )
    assert (made["first_edits"], made["mbr_edits"], made["oracle_edits"]) == (2, 2, 1)
    assert made["compositional_oracle_edits"] == 1
    assert (made["n"], made["words"], made["wer"]) == (2, 6, made["first"])
    assert made["cer"] == 8 / len("turn on the light" + "stop now")
    assert (made["mean_hypotheses"], made["mean_distinct_hypotheses"]) == (3, 2.5)


def test_nbest_of_the_first_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_jsonl(tmp_path / "lists", [ROWS["input"]])
    made = result(capsys, "nbest", "--input", str(tmp_path / "lists"), "--n", "2")
    assert (made["oracle_edits"], made["mean_hypotheses"]) == (1, 2)
    assert result(capsys, "nbest", "--input", str(tmp_path / "lists"))["oracle_edits"] == 0


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "a"}, "no n-best list"),
        ({"input": "a b", "output": "a"}, "field `input`"),
        ({"input": [], "output": "a"}, "field `input`"),
        ({"input": ["a", 3], "output": "a"}, "field `input.1`"),
        ({"input": ["a"]}, "field `output`"),
        ({"asr_hypotheses": [{"score": 1}], "text": "a"}, "field `asr_hypotheses.0`"),
        ({"asr_hypotheses": [{"text": "a"}], "text": None}, "field `text`"),
    ],
)
def test_nbest_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], told: str):
    write_jsonl(tmp_path / "lists.jsonl", [ROWS["input"], row])
    message = failure(capsys, "score", "nbest", "--input", str(tmp_path / "lists.jsonl"))
    assert told in message
    assert "lists.jsonl, line 2" in message


def test_no_list_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").write_text("\n")
    assert "there is no n-best list" in failure(capsys, "score", "nbest", "--input", str(tmp_path / "empty"))


@pytest.mark.parametrize("arguments", [[], ["score"], ["score", "nbest", "--input", "x", "--n", "0"], ["scores"]])
def test_wrong_usage_ends_with_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str]):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: utterflow" in capsys.readouterr().err


def test_help_names_the_default_normalizer(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["score", "nbest", "--help"])
    assert stopped.value.code == 0
    assert "default: none" in capsys.readouterr().out
