"""The journal keeps finished rows whole, through kills, parallel writers and other shard counts."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from utterflow.journal import Journal

DIGEST, SCOPE = "d" * 64, "5" * 64


def journal(root: Path, shard: int = 0, shards: int = 1, scope: str = SCOPE, digest: str = DIGEST) -> Journal:
    return Journal(root, "transcribe", digest, scope, shard, shards)


def add(root: Path, rows: dict[str, Any], **place: Any) -> Path:
    """Append one batch with a writer of its own; its file."""
    with journal(root, **place) as writer:
        writer.append(rows)
    return writer.path


def test_rows_come_back(tmp_path: Path) -> None:
    with journal(tmp_path) as writer:
        writer.append({"a": {"text": "ä"}, "b": [1.5, None]})
        writer.append({"c": 3})
    assert journal(tmp_path).load(["a", "b", "c", "d"]) == {"a": {"text": "ä"}, "b": [1.5, None], "c": 3}
    assert journal(tmp_path).load(["c"]) == {"c": 3}


def test_nothing_there_yet(tmp_path: Path) -> None:
    assert journal(tmp_path).load(["a"]) == {}


def test_no_file_before_the_first_row(tmp_path: Path) -> None:
    with journal(tmp_path) as writer:
        assert not writer.path.exists()


def test_other_digests_and_stages_are_apart(tmp_path: Path) -> None:
    add(tmp_path, {"a": 1})
    assert journal(tmp_path, digest="e" * 64).load(["a"]) == {}
    assert Journal(tmp_path, "rationale", DIGEST, SCOPE).load(["a"]) == {}


@pytest.mark.parametrize("kept", [1, 5, -1], ids=["first byte", "middle", "all but the line's end"])
def test_a_torn_last_line_is_not_there(tmp_path: Path, kept: int) -> None:
    with journal(tmp_path) as writer:
        writer.append({"a": 1, "b": 2})
        whole = writer.path.stat().st_size
        writer.append({"c": 3, "d": 4})
    data = writer.path.read_bytes()
    writer.path.write_bytes(data[:whole] + data[whole:][:kept])
    assert journal(tmp_path).load(["a", "b", "c", "d"]) == {"a": 1, "b": 2}
    add(tmp_path, {"c": 30, "d": 40})
    assert journal(tmp_path).load(["a", "b", "c", "d"]) == {"a": 1, "b": 2, "c": 30, "d": 40}


def test_a_line_that_is_no_batch_is_passed_over(tmp_path: Path) -> None:
    path = add(tmp_path, {"a": 1})
    with path.open("a") as handle:
        handle.write('{"rows": \n{"other": 1}\n[]\n{"rows": 3}\n{"rows": {"b": 2}}\n')
    assert journal(tmp_path).load(["a", "b"]) == {"a": 1, "b": 2}


def test_a_batch_is_one_line(tmp_path: Path) -> None:
    with journal(tmp_path) as writer:
        writer.append({"a": "line\nbreak", "b": "\u2028"})
        writer.append({"c": 3})
    lines = writer.path.read_bytes().split(b"\n")
    assert [set(json.loads(line)["rows"]) for line in lines[:-1]] == [{"a", "b"}, {"c"}]
    assert lines[-1] == b""


def test_two_writers_at_once(tmp_path: Path) -> None:
    with journal(tmp_path) as first, journal(tmp_path) as second:
        for number in range(20):
            first.append({f"first{number}": number})
            second.append({f"second{number}": -number, "both": 0})
    keys = [*(f"first{number}" for number in range(20)), *(f"second{number}" for number in range(20)), "both"]
    assert first.path != second.path
    assert set(journal(tmp_path).load(keys)) == set(keys)


def test_rows_are_on_disk_before_append_returns(tmp_path: Path) -> None:
    writer = journal(tmp_path)
    writer.append({"a": 1})
    assert journal(tmp_path).load(["a"]) == {"a": 1}
    writer.close()
    writer.close()


@pytest.mark.parametrize("shards", [1, 3, 40])
def test_other_shard_counts_find_the_rows(tmp_path: Path, shards: int) -> None:
    for shard in range(4):
        add(tmp_path, {f"row{row}": row for row in range(shard, 40, 4)}, shard=shard, shards=4)
    for shard in range(shards):
        keys = [f"row{row}" for row in range(shard, 40, shards)]
        assert set(journal(tmp_path, shard=shard, shards=shards).load(keys)) == set(keys)


def test_a_changed_input_finds_the_rows_it_kept(tmp_path: Path) -> None:
    add(tmp_path, {"a": 1}, shard=0, shards=2)
    add(tmp_path, {"b": 2}, shard=1, shards=2)
    assert journal(tmp_path, scope="6" * 64, shard=0, shards=2).load(["a", "b", "new"]) == {"a": 1, "b": 2}


def opened_by_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: list[str], **place: Any) -> set[str]:
    """Names of the journal files that `load` opens."""
    opened: set[str] = set()
    real = Path.open

    def spy(self: Path, *args: Any, **kwargs: Any) -> Any:
        opened.add(self.name)
        return real(self, *args, **kwargs)

    reader = journal(tmp_path, **place)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", spy)
        patch.setattr(builtins, "open", lambda *args, **kwargs: pytest.fail(f"opened by name: {args}"))
        reader.load(keys)
    return opened


def test_other_shards_of_the_same_split_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [add(tmp_path, {"a": 1}, shard=1, shards=12), add(tmp_path, {"b": 1}, shard=1, shards=12)]
    for shard in (0, 2, 10, 11):
        add(tmp_path, {f"other{shard}": 1}, shard=shard, shards=12)
    opened = opened_by_load(tmp_path, monkeypatch, ["a", "b", "missing"], shard=1, shards=12)
    assert opened == {path.name for path in own}


def test_nothing_more_is_opened_once_all_rows_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, {"a": 1, "b": 2}, shard=0, shards=1)
    own = add(tmp_path, {"a": 1}, shard=0, shards=2)
    assert opened_by_load(tmp_path, monkeypatch, ["a"], shard=0, shards=2) == {own.name}


def test_a_value_that_is_no_json_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    with journal(tmp_path) as writer:
        writer.append({"a": 1})
        with pytest.raises(ValueError, match="not JSON compliant"):
            writer.append({"b": float("nan")})
        writer.append({"c": 3})
    assert journal(tmp_path).load(["a", "b", "c"]) == {"a": 1, "c": 3}


WRITER = """
import sys
from pathlib import Path
from utterflow.journal import Journal

writer = Journal(Path(sys.argv[1]), "transcribe", "d" * 64, "5" * 64)
for batch in range(10**6):
    writer.append({f"{batch}.{row}": "x" * 2000 for row in range(50)})
    print(batch, flush=True)
"""


def test_a_killed_writer_leaves_whole_batches(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(3)]
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    said += [int(line) for line in process.stdout.read().split("\n") if line]
    process.wait(10)
    process.stdout.close()
    keys = [f"{batch}.{row}" for batch in range(len(said) + 2) for row in range(50)]
    found = journal(tmp_path).load(keys)
    counts = {batch: sum(key.startswith(f"{batch}.") for key in found) for batch in range(len(said) + 2)}
    assert all(counts[batch] == 50 for batch in said)
    assert set(counts.values()) <= {0, 50}
