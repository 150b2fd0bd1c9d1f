"""Errors of records name file, line and field; what is read can be written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from utterflow.errors import UserError
from utterflow.files import read_jsonl, write_jsonl
from utterflow.records import (
    Hypothesis,
    ManifestRow,
    NbestRow,
    RejectedRow,
    TextRow,
    parse_record,
    read_records,
    short,
)

MANIFEST: dict[str, Any] = {
    "id": "a",
    "audio": "a.wav",
    "audio_sha256": "0" * 64,
    "audio_bytes": 10,
    "seconds": 1.5,
    "text": "hello",
}
HYPOTHESIS: dict[str, Any] = {
    "text": "hello",
    "score": -1.5,
    "mean_logprob": -0.5,
    "num_tokens": 3,
    "finished": True,
}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"seconds": 0}, "seconds", "0"),
        ({"seconds": "long"}, "seconds", "'long'"),
        ({"id": ""}, "id", "''"),
        ({"audio_bytes": None}, "audio_bytes", "None"),
        ({"noise": {"snr_db": 3, "color": -1, "seed": 1}}, "noise.color", "-1"),
    ],
)
def test_a_bad_field_is_named_with_file_line_and_value(
    tmp_path: Path, change: dict[str, Any], field: str, value: str
) -> None:
    path = tmp_path / "manifest.jsonl"
    write_jsonl(path, [MANIFEST, MANIFEST | change])
    with pytest.raises(UserError) as caught:
        list(read_records(path, ManifestRow))
    assert caught.value.where == f"{path}, line 2"
    assert f"`{field}`" in caught.value.what
    assert f"(value: {value})" in caught.value.what
    assert "audio_sha256" in str(caught.value.fix)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n\n{"id": "b"}\n')
    with pytest.raises(UserError, match="`text`: Field required") as caught:
        list(read_records(path, TextRow))
    assert caught.value.where == f"{path}, line 3"


def test_good_rows_before_a_bad_one_are_given(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": 3}\n')
    rows = read_records(path, TextRow)
    assert next(rows).id == "a"
    with pytest.raises(UserError):
        next(rows)


def test_a_field_inside_a_list_is_named() -> None:
    row = MANIFEST | {"asr_method": "beam", "asr_hypotheses": [HYPOTHESIS, HYPOTHESIS | {"num_tokens": -1}]}
    with pytest.raises(UserError, match=r"`asr_hypotheses\.1\.num_tokens`"):
        parse_record(NbestRow, row, "here")


def test_an_empty_nbest_list_is_refused() -> None:
    with pytest.raises(UserError, match="`asr_hypotheses`"):
        parse_record(NbestRow, MANIFEST | {"asr_method": "beam", "asr_hypotheses": []}, "here")


def test_source_fields_pass_through_manifest_and_nbest(tmp_path: Path) -> None:
    source = {"slurp_id": 7, "entities": [{"span": [1], "type": "time"}], "sentence": "ä"}
    row = parse_record(ManifestRow, MANIFEST | source, "here").row()
    nbest = row | {"asr_method": "beam", "asr_hypotheses": [HYPOTHESIS]}
    write_jsonl(tmp_path / "nbest.jsonl", [parse_record(NbestRow, nbest, "here").row()])
    ((_, written),) = read_jsonl(tmp_path / "nbest.jsonl")
    assert written.items() >= source.items()
    assert written["asr_hypotheses"][0]["score"] == -1.5


def test_closed_records_refuse_unknown_fields() -> None:
    with pytest.raises(UserError, match="`scroe`"):
        parse_record(Hypothesis, HYPOTHESIS | {"scroe": 1}, "here")


def test_a_record_comes_back_as_written(tmp_path: Path) -> None:
    rejected = RejectedRow(id="a", stage="prepare_corpus", reason="empty file", where="a.wav")
    write_jsonl(tmp_path / "r.jsonl", [rejected.row()])
    assert list(read_records(tmp_path / "r.jsonl", RejectedRow)) == [rejected]


def test_a_reference_may_be_unknown_but_must_be_said() -> None:
    assert parse_record(ManifestRow, MANIFEST | {"text": None}, "here").text is None
    with pytest.raises(UserError, match="`text`"):
        parse_record(ManifestRow, {key: value for key, value in MANIFEST.items() if key != "text"}, "here")


def test_long_values_are_cut() -> None:
    assert len(short("x" * 1000)) == 120
    assert short([1]) == "[1]"
