"""Corpora on recordings and annotations that nobody here made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from utterflow.audio import load_audio, load_row_audio
from utterflow.config.corpora import SlurpCorpus
from utterflow.corpora import ADAPTERS
from utterflow.corpora.candidates import Candidate
from utterflow.corpora.prepare import prepare_corpus
from utterflow.errors import UserError
from utterflow.files import read_json, read_jsonl
from utterflow.records import ManifestRow, Noise, RejectedRow, read_records

DATA = Path(__file__).resolve().parents[3] / "shared/data"


def data(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"no real data: {DATA / name} is absent")
    return DATA / name


def run(folder: Path, config: dict[str, Any]) -> tuple[list[ManifestRow], list[RejectedRow], dict[str, Any]]:
    manifest, rejected = folder / "manifest.jsonl", folder / "manifest.rejected.jsonl"
    meta = folder / "manifest.meta.json"
    prepare_corpus(config, manifest, rejected, meta, code="c0de", threads=2)
    return (
        list(read_records(manifest, ManifestRow)),
        list(read_records(rejected, RejectedRow)),
        read_json(meta),
    )


def writable_copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


COLUMNS = {"id": None, "audio": "file", "text": "transcript", "group": "licence"}


def test_real_speech_as_its_own_manifest_describes_it(tmp_path: Path) -> None:
    source = data("real_speech/manifest.jsonl")
    config = {"adapter": "manifest", "path": str(source), "columns": COLUMNS, "max_rejected": 0.0}
    rows, rejected, meta = run(tmp_path, config)
    listed = [row for _, row in read_jsonl(source)]
    assert not rejected
    assert meta["rows"] == {"in": len(listed), "out": len(listed), "rejected": 0, "not_drawn": 0}
    for row, entry in zip(rows, listed, strict=True):
        assert row.id == str(Path(entry["file"]).with_suffix(""))
        assert row.audio_sha256.startswith(entry["sha256"])
        assert row.audio_bytes == entry["bytes"]
        assert row.seconds == pytest.approx(entry["seconds"], abs=0.01)
        assert row.text == (entry["transcript"] or None)
        assert (row.model_extra or {})["source"] == entry["source"]
    assert len({row.audio.rsplit(".", 1)[1] for row in rows}) > 1
    noisy = rows[0].model_copy(update={"noise": Noise(snr_db=5.0, color=1.0, seed=1)})
    heard = load_row_audio(noisy)
    assert heard.size == load_audio(rows[0].audio).size


def test_real_speech_with_broken_files_among_it(tmp_path: Path) -> None:
    folder = writable_copy(data("real_speech"), tmp_path / "real_speech")
    broken = {}
    for entry in [row for _, row in read_jsonl(folder / "manifest.jsonl")][:3]:
        path = folder / entry["file"]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
        broken[str(Path(entry["file"]).with_suffix(""))] = "broken"
    flac = next(folder.glob("*.flac"))
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    broken[flac.stem] = "broken"
    with (folder / "manifest.jsonl").open("a") as handle:
        for name in ("empty.wav", "text.wav", "absent.wav"):
            handle.write(json.dumps({"file": name, "transcript": "x"}) + "\n")
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio at all")
    broken |= {"empty": "empty", "text": "broken", "absent": "missing"}
    config = {"adapter": "manifest", "path": str(folder / "manifest.jsonl"), "columns": COLUMNS}
    total = len(list(read_jsonl(folder / "manifest.jsonl")))
    with pytest.raises(UserError, match=f"7 of {total} rows"):
        run(tmp_path / "out", config)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    rows, rejected, meta = run(tmp_path / "out", {**config, "max_rejected": 0.05})
    assert {row.id: row.reason.split(":")[0] for row in rejected} == broken
    assert meta["rows"] == {"in": total, "out": total - 7, "rejected": 7, "not_drawn": 0}
    assert len(rows) == total - 7


@pytest.mark.parametrize(("split", "utterances"), [("train", 54), ("test", 30)])
def test_speechocean762(tmp_path: Path, split: str, utterances: int) -> None:
    root = data("speechocean762")
    config = {"adapter": "speechocean762", "root": str(root), "split": split, "group": "gender"}
    rows, rejected, meta = run(tmp_path, config)
    assert (len(rows), len(rejected)) == (utterances, 0)
    assert sum(meta["groups"].values()) == utterances
    assert set(meta["groups"]) == {"f", "m"}
    scores = read_json(root / "resource/scores.json")
    for row in rows:
        extra = row.model_extra or {}
        assert extra == {key: value for key, value in scores[row.id].items() if key != "text"}
        assert len(extra["words"]) == len((row.text or "").split())
        assert row.seconds == pytest.approx(soundfile.info(row.audio).duration, abs=1e-4)
        assert np.array_equal(load_audio(row.audio), soundfile.read(row.audio, dtype="float32")[0])


def test_speechocean762_with_broken_files_among_it(tmp_path: Path) -> None:
    root = writable_copy(data("speechocean762"), tmp_path / "so762")
    files = sorted((root / "WAVE").rglob("*.flac"))
    table = (root / "test/wav.scp").read_text()
    wanted = [path for path in files if path.stem in table][:3]
    wanted[0].write_bytes(b"")
    wanted[1].write_bytes(wanted[1].read_bytes()[:5000])
    wanted[2].unlink()
    config = {"adapter": "speechocean762", "root": str(root), "group": "age", "max_rejected": 0.1}
    rows, rejected, _ = run(tmp_path / "out", config)
    assert len(rows) == 27
    expected = dict(zip([path.stem for path in wanted], ["empty", "broken", "missing"], strict=True))
    assert {row.id: row.reason.split(":")[0] for row in rejected} == expected


@pytest.mark.parametrize(("recordings", "count"), [("first", 2033), ("best", 2033), ("all", 8690)])
def test_slurp_annotations(tmp_path: Path, recordings: str, count: int) -> None:
    path = data("slurp/devel.jsonl")
    cfg = SlurpCorpus(
        adapter="slurp",
        annotations=str(path),
        audio_dir=str(tmp_path),
        recordings=recordings,
        group="headset",
    )
    rows = list(ADAPTERS["slurp"].read(cfg))
    assert all(isinstance(row, Candidate) for row in rows)
    assert len({row.id for row in rows}) == count == len(rows)
    assert {row.group for row in rows if isinstance(row, Candidate)} == {"headset", "distant"}
