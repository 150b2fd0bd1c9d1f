"""Side files."""

from __future__ import annotations

import os
from pathlib import Path

from utterflow.files import file_sha256, read_json
from utterflow.provenance import input_digest, side_file, write_meta


def write(folder: Path, text: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(text)
    write_meta(
        side_file(path),
        rule="make_rows",
        cfg={"a": 1},
        code="c",
        inputs=[folder / "absent"],
        outputs={"rows/1": path},
        seconds=1.0,
        rows={"in": 1, "out": 1, "rejected": 0},
    )
    return path


def test_output_and_rejected_rows_share_a_side_file():
    assert side_file(Path("a/rows.jsonl")) == side_file(Path("a/rows.rejected.jsonl")) == Path("a/rows.meta.json")


def test_a_side_file_says_where_a_result_comes_from(tmp_path):
    meta = read_json(side_file(write(tmp_path, "x")))
    assert meta["outputs"] == {"rows.jsonl": file_sha256(tmp_path / "rows.jsonl")}
    assert (meta["rule"], meta["config"], meta["code"], meta["inputs"]) == ("make_rows", {"a": 1}, "c", {})
    assert meta["records"] == {"rows.jsonl": "rows/1"} and meta["packages"]["utterflow"]


def test_a_digest_is_taken_from_the_side_file(tmp_path, monkeypatch):
    path = write(tmp_path, "x")
    true = file_sha256(path)
    monkeypatch.setattr("utterflow.provenance.file_sha256", lambda _: "hashed again")
    assert input_digest(path) == true


def test_a_file_changed_by_hand_is_hashed(tmp_path):
    path = write(tmp_path, "x")
    path.write_text("changed")
    os.utime(path, ns=(0, side_file(path).stat().st_mtime_ns + 1))
    assert input_digest(path) == file_sha256(path)
