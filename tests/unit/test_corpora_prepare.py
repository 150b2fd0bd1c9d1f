"""From annotations and audio files to a manifest: draws, rejections, counts, noise."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from utterflow.config.corpora import Corpus, Sample
from utterflow.corpora.prepare import prepare_corpus
from utterflow.corpora.sampling import allocate, chosen_positions, draw
from utterflow.errors import UserError
from utterflow.files import file_sha256, read_json, read_jsonl
from utterflow.records import ManifestRow, RejectedRow, read_records

IDS = [f"u{number:04d}" for number in range(1000)]
GROUPS = ["a" if number % 10 else "b" for number in range(1000)]


# draws


def test_all_rows_by_default() -> None:
    assert chosen_positions(IDS, GROUPS, Corpus()) == list(range(1000))


@pytest.mark.parametrize("method", ["random", "stratified"])
def test_draws_keep_the_order_the_size_and_the_seed(method: str) -> None:
    tenth = draw(IDS, GROUPS, Sample(method=method, percent=10))
    assert len(tenth) == 100
    assert tenth == sorted(set(tenth))
    assert tenth == draw(IDS, GROUPS, Sample(method=method, percent=10))
    assert tenth != draw(IDS, GROUPS, Sample(method=method, percent=10, seed=1))
    assert set(tenth) < set(draw(IDS, GROUPS, Sample(method=method, percent=20)))
    assert len(draw(IDS, GROUPS, Sample(method=method, percent=10, max_samples=7))) == 7
    assert len(draw(IDS, GROUPS, Sample(method=method, percent=0.001))) == 1
    assert max(tenth) > 800
    assert min(tenth) < 200


def test_a_draw_depends_on_ids_not_on_their_order() -> None:
    sample = Sample(method="random", percent=10)
    drawn = {IDS[position] for position in draw(IDS, GROUPS, sample)}
    turned = IDS[::-1]
    assert drawn == {turned[position] for position in draw(turned, GROUPS[::-1], sample)}


def test_stratified_draws_the_same_share_of_each_group() -> None:
    drawn = draw(IDS, GROUPS, Sample(method="stratified", percent=10))
    assert Counter(GROUPS[position] for position in drawn) == {"a": 90, "b": 10}


@pytest.mark.parametrize("wanted", [0, 1, 2, 7, 99, 100])
def test_allocation_is_proportional_and_adds_up(wanted: int) -> None:
    sizes = Counter({"x": 50, "y": 33, "z": 16, None: 1})
    shares = allocate(sizes, wanted)
    assert sum(shares.values()) == wanted
    assert all(abs(shares[group] - wanted * size / 100) < 1 for group, size in sizes.items())
    assert all(shares[group] <= size for group, size in sizes.items())


def test_limit_and_smoke_take_the_first_rows_of_the_full_draw() -> None:
    sample = Sample(method="random", percent=50)
    full = chosen_positions(IDS, GROUPS, Corpus(sample=sample))
    assert chosen_positions(IDS, GROUPS, Corpus(sample=sample, limit=5)) == full[:5]
    assert chosen_positions(IDS, GROUPS, Corpus(sample=sample, smoke=True)) == full[:100]
    assert chosen_positions(IDS, GROUPS, Corpus(sample=sample, smoke=True, limit=5)) == full[:5]


# the stage


def corpus(folder: Path, rows: int = 6, **keys: Any) -> dict[str, Any]:
    """A plain manifest of `rows` recordings of 0.2 s, 0.3 s, ..."""
    lines = []
    for number in range(rows):
        audio = np.random.default_rng(number).uniform(-0.5, 0.5, 1600 * (number + 2))
        soundfile.write(folder / f"{number}.wav", audio, 16_000)
        row = {"id": f"u{number}", "audio": f"{number}.wav", "text": "x", "g": "ab"[number % 2]}
        lines.append(json.dumps(row) + "\n")
    (folder / "in.jsonl").write_text("".join(lines))
    return {"adapter": "manifest", "path": str(folder / "in.jsonl"), "columns": {"group": "g"}, **keys}


def add_line(folder: Path, line: str) -> None:
    with (folder / "in.jsonl").open("a") as handle:
        handle.write(line + "\n")


def run(folder: Path, config: dict[str, Any], threads: int = 1) -> tuple[list[ManifestRow], list[RejectedRow]]:
    out = folder / "out"
    prepare_corpus(
        config,
        out / "manifest.jsonl",
        out / "manifest.rejected.jsonl",
        out / "manifest.meta.json",
        code="c0de",
        threads=threads,
        failed=folder / "failed.jsonl",
    )
    return (
        list(read_records(out / "manifest.jsonl", ManifestRow)),
        list(read_records(out / "manifest.rejected.jsonl", RejectedRow)),
    )


def test_rows_and_side_file(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    rows, rejected = run(tmp_path, config)
    assert not rejected
    assert [row.id for row in rows] == [f"u{number}" for number in range(6)]
    assert [row.seconds for row in rows] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    first = rows[0]
    assert first.audio == str(tmp_path / "0.wav")
    assert first.audio_sha256 == file_sha256(tmp_path / "0.wav")
    assert first.audio_bytes == (tmp_path / "0.wav").stat().st_size
    assert (first.text, first.group, first.noise, first.model_extra) == ("x", "a", None, {"g": "a"})
    meta = read_json(tmp_path / "out" / "manifest.meta.json")
    assert meta["rule"] == "prepare_corpus"
    assert meta["config"] == config
    assert meta["rows"] == {"in": 6, "out": 6, "rejected": 0, "not_drawn": 0}
    assert meta["audio_seconds"] == pytest.approx(2.7)
    assert meta["groups"] == {"a": 3, "b": 3}
    assert meta["inputs"] == {str(tmp_path / "in.jsonl"): file_sha256(tmp_path / "in.jsonl")}
    assert set(meta["outputs"]) == {"manifest.jsonl", "manifest.rejected.jsonl"}


def bad_rows(folder: Path) -> dict[str, str]:
    """Adds every kind of bad row; id -> the reason's first word."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio")
    (folder / "cut.wav").write_bytes((folder / "5.wav").read_bytes()[:4000])
    soundfile.write(folder / "tiny.wav", np.ones(100), 16_000)
    soundfile.write(folder / "long.wav", np.ones(48_000), 16_000)
    for name in ("absent", "empty", "text", "cut", "tiny", "long"):
        add_line(folder, json.dumps({"id": name, "audio": f"{name}.wav", "text": "x"}))
    add_line(folder, json.dumps({"id": "u3", "audio": "3.wav"}))
    add_line(folder, '{"id": "nan", "audio": "1.wav", "score": NaN}')
    add_line(folder, '{"id": "half", "audio": "1.wav", "text": "\\ud800"}')
    add_line(folder, "not json")
    return {
        "absent": "missing",
        "empty": "empty",
        "text": "broken",
        "cut": "broken",
        "tiny": "too short",
        "long": "too long",
        "u3": "repeated id",
        "line 14": "unreadable",
        "half": "unreadable",
        "line 16": "unreadable",
    }


@pytest.mark.parametrize("threads", [1, 3])
def test_bad_recordings_are_rejected_and_good_ones_kept(tmp_path: Path, threads: int) -> None:
    config = corpus(tmp_path, max_rejected=0.9, max_seconds=2.0)
    expected = bad_rows(tmp_path)
    add_line(tmp_path, json.dumps({"id": "last", "audio": "0.wav"}))
    rows, rejected = run(tmp_path, config, threads)
    assert [row.id for row in rows] == [*(f"u{number}" for number in range(6)), "last"]
    assert rows[-1].text is None
    assert {row.id: row.reason.split(":")[0] for row in rejected} == expected
    assert [row.id for row in rejected] == list(expected)
    assert str(rejected[0].where).endswith("in.jsonl, line 7")
    assert "min_seconds is 0.05" in rejected[4].reason
    counts = read_json(tmp_path / "out" / "manifest.meta.json")["rows"]
    assert counts == {"in": 17, "out": 7, "rejected": 10, "not_drawn": 0}


def test_processes_make_no_difference(tmp_path: Path) -> None:
    config = corpus(tmp_path, rows=40, max_rejected=0.9, noise={"snr_db": [0, 10]})
    bad_rows(tmp_path)
    run(tmp_path, config)
    names = ("manifest.jsonl", "manifest.rejected.jsonl")
    alone = [(tmp_path / "out" / name).read_bytes() for name in names]
    run(tmp_path, config, threads=2)
    assert alone == [(tmp_path / "out" / name).read_bytes() for name in names]


def test_too_many_rejected_rows_fail_with_reasons_and_no_manifest(tmp_path: Path) -> None:
    config = corpus(tmp_path)
    for name in ("x", "y", "z"):
        add_line(tmp_path, json.dumps({"id": name, "audio": f"{name}.wav"}))
    add_line(tmp_path, "not json")
    with pytest.raises(UserError) as caught:
        run(tmp_path, config)
    message = str(caught.value)
    assert "4 of 10 rows (40.00%)" in message
    assert "max_rejected allows 1.00%" in message
    assert f"3 missing, e.g. x (missing: {tmp_path / 'x.wav'}; {tmp_path / 'in.jsonl'}, line 7); y" in message
    assert "1 unreadable, e.g. line 10" in message
    assert message.index("3 missing") < message.index("1 unreadable")
    assert str(tmp_path / "failed.jsonl") in message
    out = tmp_path / "out"
    assert [path.name for path in out.iterdir()] == ["manifest.rejected.jsonl"]
    assert len(list(read_jsonl(out / "manifest.rejected.jsonl"))) == 4
    assert (tmp_path / "failed.jsonl").read_bytes() == (out / "manifest.rejected.jsonl").read_bytes()
    run(tmp_path, {**config, "limit": 3})
    assert not (tmp_path / "failed.jsonl").exists()


def test_max_rejected_is_the_largest_share_allowed(tmp_path: Path) -> None:
    config = corpus(tmp_path, rows=4)
    add_line(tmp_path, json.dumps({"id": "x", "audio": "x.wav"}))
    rows, rejected = run(tmp_path, {**config, "max_rejected": 0.2})
    assert (len(rows), len(rejected)) == (4, 1)
    with pytest.raises(UserError, match="1 of 5"):
        run(tmp_path, {**config, "max_rejected": 0.19})


def test_a_corpus_must_have_rows(tmp_path: Path) -> None:
    config = corpus(tmp_path, rows=0)
    with pytest.raises(UserError, match="no rows"):
        run(tmp_path, config)
    add_line(tmp_path, "not json")
    with pytest.raises(UserError, match="none is left"):
        run(tmp_path, {**config, "max_rejected": 1.0})
    with pytest.raises(UserError, match="no such file"):
        run(tmp_path, {**config, "path": str(tmp_path / "absent.jsonl")})


def test_rows_beyond_the_draw_are_not_looked_at(tmp_path: Path) -> None:
    config = corpus(tmp_path, limit=4)
    add_line(tmp_path, json.dumps({"id": "x", "audio": "x.wav"}))
    rows, rejected = run(tmp_path, config)
    assert [row.id for row in rows] == ["u0", "u1", "u2", "u3"]
    assert not rejected
    counts = read_json(tmp_path / "out" / "manifest.meta.json")["rows"]
    assert counts == {"in": 4, "out": 4, "rejected": 0, "not_drawn": 3}


def test_noise_is_drawn_from_the_id(tmp_path: Path) -> None:
    noise = {"snr_db": [3, 9], "color": [0.5, 1.5], "seed": 5}
    config = corpus(tmp_path, rows=20, noise=noise)
    drawn = {row.id: row.noise for row in run(tmp_path, config)[0]}
    assert all(found is not None for found in drawn.values())
    levels = [found.snr_db for found in drawn.values() if found]
    colors = [found.color for found in drawn.values() if found]
    assert min(levels) >= 3
    assert max(levels) <= 9
    assert max(levels) - min(levels) > 2
    assert min(colors) >= 0.5
    assert max(colors) <= 1.5
    assert len({found.seed for found in drawn.values() if found}) == 20
    fewer = run(tmp_path, {**config, "sample": {"method": "random", "percent": 50}})[0]
    assert len(fewer) == 10
    assert all(row.noise == drawn[row.id] for row in fewer)
    other = run(tmp_path, {**config, "noise": {**noise, "seed": 6}})[0]
    assert all(row.noise != drawn[row.id] for row in other)
