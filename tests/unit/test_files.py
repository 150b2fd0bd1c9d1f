"""Atomic writes, digests, seeds and JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from utterflow.errors import UserError
from utterflow.files import (
    atomic_writer,
    canonical_json,
    digest_of,
    file_sha256,
    read_json,
    read_jsonl,
    seed_of,
    write_json,
    write_jsonl,
)


def test_a_finished_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    for text in ("old", "new"):
        with atomic_writer(path) as handle:
            handle.write(text)
    assert path.read_text() == "new"
    assert [item.name for item in path.parent.iterdir()] == ["a.txt"]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_writer(path) as handle:
        handle.write("half of the n")
        handle.flush()
        raise RuntimeError
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["a.txt"]


def test_the_file_is_not_there_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_writer(path) as handle:
        handle.write("text")
        handle.flush()
        assert not path.exists()
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.startswith(".a.txt.")


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_writer(path) as first, atomic_writer(path) as second:
        first.write("first " * 3)
        second.write("second " * 3)
    assert path.read_text() == "first " * 3
    assert len(list(tmp_path.iterdir())) == 1


def test_rows_that_cannot_be_written_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"id": "old"}])

    def rows() -> Iterator[dict[str, Any]]:
        yield {"id": "new"}
        yield {"id": "bad", "score": float("nan")}

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(path, rows())
    assert [row for _, row in read_jsonl(path)] == [{"id": "old"}]
    assert len(list(tmp_path.iterdir())) == 1


def test_bytes_are_written_as_given(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "b", "wb") as handle:
        handle.write(b"\r\n\xff")
    assert (tmp_path / "b").read_bytes() == b"\r\n\xff"


def test_rows_come_back(tmp_path: Path) -> None:
    rows = [{"id": "ä", "n": [1, 2]}, {"id": "line\nbreak \u2028 \x85"}]
    assert write_jsonl(tmp_path / "rows.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [(1, rows[0]), (2, rows[1])]


def test_empty_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('\n{"id": "a"}\n  \n{"id": "b"}')
    assert [number for number, _ in read_jsonl(tmp_path / "rows.jsonl")] == [2, 4]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"id": "a"}\n{"id": \n', "not valid JSON"),
        (b'{"id": "a"}\n[1, 2]\n', "expected a JSON object, found list"),
        (b'{"id": "a"}\n{"score": NaN}\n', "NaN is not a JSON value"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what) as caught:
        list(read_jsonl(path))
    assert caught.value.where == f"{path}, line 2"


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (lambda path: list(read_jsonl(path)), read_json):
        with pytest.raises(UserError, match="file not found") as caught:
            read(tmp_path / "none.json")
        assert caught.value.where == str(tmp_path / "none.json")


def test_broken_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_document_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": ["ü", None]})
    assert read_json(tmp_path / "a.json") == {"b": ["ü", None]}
    assert (tmp_path / "a.json").read_text().endswith("}\n")


def test_a_value_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    assert digest_of({"b": 1, "a": 2}) == digest_of(json.loads('{"a": 2, "b": 1}'))
    assert digest_of({"a": 1}) != digest_of({"a": "1"})


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of("row-1", 42) == 8707390754046275513
    assert 0 <= seed_of("row-1", 42) < 2**63


def test_seeds_differ_by_every_part() -> None:
    seeds = [seed_of("a", 1), seed_of("a", 2), seed_of("b", 1), seed_of("a1"), seed_of("a", 1, 0)]
    assert len(set(seeds)) == len(seeds)
