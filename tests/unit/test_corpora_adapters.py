"""Each adapter on good and bad annotations, and what its rule waits for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from utterflow.config.corpora import (
    Columns,
    Download,
    ManifestCorpus,
    SlurpCorpus,
    SpeakerTreeCorpus,
    SpeechOceanCorpus,
)
from utterflow.corpora import ADAPTERS, rule_inputs, source_files
from utterflow.corpora.candidates import Candidate
from utterflow.errors import UserError
from utterflow.records import RejectedRow


def read(cfg: Any) -> tuple[list[Candidate], list[RejectedRow]]:
    entries = list(ADAPTERS[cfg.adapter].read(cfg))
    return (
        [entry for entry in entries if isinstance(entry, Candidate)],
        [entry for entry in entries if isinstance(entry, RejectedRow)],
    )


def write_lines(path: Path, lines: Sequence[str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


# SLURP

RECORD = {
    "slurp_id": 4489,
    "sentence": "wake me up at eight",
    "scenario": "alarm",
    "action": "set",
    "entities": [{"span": [4], "type": "time"}],
    "recordings": [
        {"file": "audio-1-headset.flac", "wer": 0.5},
        {"file": "audio-1.flac", "wer": 0.25},
        {"file": "audio-2.flac", "wer": 0.25},
    ],
}
METADATA = {
    "4489": {
        "recordings": {
            "audio-1-headset.flac": {"usrid": "FO-488"},
            "audio-1.flac": {"usrid": "ME-7"},
            "audio-2.flac": {"usrid": "UNK-323", "gender": "female"},
        }
    }
}


def slurp(folder: Path, records: Sequence[Any] = (RECORD,), **keys: Any) -> SlurpCorpus:
    lines = [record if isinstance(record, str | bytes) else json.dumps(record) for record in records]
    annotations = write_lines(folder / "devel.jsonl", lines)
    (folder / "audio").mkdir(exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(METADATA))
    return SlurpCorpus(
        adapter="slurp",
        annotations=str(annotations),
        audio_dir=str(folder / "audio"),
        **{"metadata": str(folder / "metadata.json"), **keys},
    )


def test_slurp_row_keeps_the_record(tmp_path: Path) -> None:
    (row,), rejected = read(slurp(tmp_path))
    assert not rejected
    assert row.id == "audio-1-headset"
    assert row.audio == str(tmp_path / "audio" / "audio-1-headset.flac")
    assert (row.text, row.speaker, row.group) == ("wake me up at eight", "FO-488", None)
    assert row.extra == {**RECORD, "file": "audio-1-headset.flac"}
    assert row.where == f"{tmp_path / 'devel.jsonl'}, line 1"


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ({"recordings": "first", "recording_index": 2}, ["audio-2"]),
        ({"recordings": "all"}, ["audio-1-headset", "audio-1", "audio-2"]),
        ({"recordings": "best"}, ["audio-1"]),
    ],
)
def test_slurp_choice_of_recordings(tmp_path: Path, keys: dict[str, Any], ids: list[str]) -> None:
    rows, _ = read(slurp(tmp_path, **keys))
    assert [row.id for row in rows] == ids


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("headset", ["headset", "distant", "distant"]),
        ("gender", ["female", "male", "female"]),
        ("native", ["non-native", "native", "unknown"]),
        ("usrid", ["FO-488", "ME-7", "UNK-323"]),
    ],
)
def test_slurp_groups(tmp_path: Path, group: str, expected: list[str]) -> None:
    rows, _ = read(slurp(tmp_path, recordings="all", group=group))
    assert [row.group for row in rows] == expected


def test_slurp_bad_lines_are_rejected_and_good_ones_kept(tmp_path: Path) -> None:
    bad = [
        "{not json",
        "[1]",
        b'{"sentence": "\xff"}',
        {"slurp_id": 1, "sentence": "x"},
        {"slurp_id": 2, "sentence": "x", "recordings": [{"wer": 1}]},
        {"slurp_id": 3, "sentence": 5, "recordings": [{"file": "a.flac"}]},
    ]
    rows, rejected = read(slurp(tmp_path, [*bad, "", RECORD]))
    assert [row.id for row in rows] == ["audio-1-headset"]
    assert [row.id for row in rejected] == ["line 1", "line 2", "line 3", "1", "2", "3"]
    assert [str(row.where).rsplit(" ", 1)[1] for row in rejected] == ["1", "2", "3", "4", "5", "6"]
    assert all(row.stage == "prepare_corpus" for row in rejected)
    assert "UTF-8" in rejected[2].reason
    assert rejected[3].reason == "no recordings"
    _, (short,) = read(slurp(tmp_path, recording_index=3))
    assert "has 3" in short.reason


def test_slurp_without_transcript_is_no_rejection(tmp_path: Path) -> None:
    (row,), _ = read(slurp(tmp_path, [{"slurp_id": 9, "recordings": [{"file": "a.flac"}]}]))
    assert row.text is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"annotations": "absent.jsonl"}, "annotations"),
        ({"audio_dir": "absent"}, "audio_dir"),
        ({"metadata": "absent.json"}, "metadata"),
        ({"metadata": None, "group": "gender"}, "set `metadata`"),
        ({"group": "gendre"}, "headset, gender, native, usrid"),
    ],
)
def test_slurp_tells_what_is_missing(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    cfg = slurp(tmp_path).model_copy(update=keys)
    with pytest.raises(UserError, match=message):
        read(cfg)


def test_slurp_metadata_of_another_shape(tmp_path: Path) -> None:
    cfg = slurp(tmp_path)
    (tmp_path / "metadata.json").write_text('{"1": ["recordings"]}')
    with pytest.raises(UserError, match="not SLURP's metadata"):
        read(cfg)


# speechocean762


def speechocean(folder: Path, **keys: Any) -> SpeechOceanCorpus:
    tables = {
        "wav.scp": ["u1\tWAVE/S1/u1.WAV", "u2 WAVE/S2/u2.WAV", "", "u3", "u4 sph2pipe u4.sph |"],
        "text": ["u1\tWE CALL IT BEAR", "u4 X", "u5 NO AUDIO"],
        "utt2spk": ["u1 S1", "u2 S2"],
        "spk2gender": ["S1 m", "S2 f"],
        "spk2age": ["S1 6", "S2 18"],
    }
    for name, lines in tables.items():
        write_lines(folder / "test" / name, lines)
    scores = {"u1": {"text": "We call it bear.", "accuracy": 8, "words": [{"text": "WE"}]}}
    write_lines(folder / "resource" / "scores.json", [json.dumps(scores)])
    return SpeechOceanCorpus(adapter="speechocean762", root=str(folder), **keys)


def test_speechocean(tmp_path: Path) -> None:
    (first, second), rejected = read(speechocean(tmp_path, group="gender"))
    assert (first.id, first.text, first.speaker, first.group) == ("u1", "WE CALL IT BEAR", "S1", "m")
    assert first.audio == str(tmp_path / "WAVE/S1/u1.WAV")
    assert first.extra == {"accuracy": 8, "words": [{"text": "WE"}]}
    assert (second.text, second.group, second.extra) == (None, "f", {})
    assert [(row.id, row.reason.split(":")[0]) for row in rejected] == [
        ("line 4", "unreadable"),
        ("u4", "unreadable"),
        ("u5", "no audio"),
    ]


def test_speechocean_ages_are_children_and_adults(tmp_path: Path) -> None:
    rows, _ = read(speechocean(tmp_path, group="age"))
    assert [row.group for row in rows] == ["child", "adult"]


@pytest.mark.parametrize("name", ["test/wav.scp", "test/text", "resource/scores.json"])
def test_speechocean_tells_what_is_missing(tmp_path: Path, name: str) -> None:
    cfg = speechocean(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        read(cfg)
    with pytest.raises(UserError, match="no such folder"):
        read(cfg.model_copy(update={"root": str(tmp_path / "absent")}))


# speaker tree


def speaker_tree(folder: Path) -> SpeakerTreeCorpus:
    good = {
        "Etiology": "ALS",
        "Files": [
            {"Filename": "a.wav", "Prompt": {"Transcript": "one", "Category": "digits"}},
            {"Filename": "b.wav"},
            {"Prompt": {"Transcript": "no file"}},
            {"Filename": "c.wav", "Prompt": "text"},
            "d.wav",
        ],
    }
    for speaker, text in {
        "S2": json.dumps(good),
        "S1": json.dumps({"Etiology": None, "Files": [{"Filename": "a.wav"}]}),
        "S3": "{broken",
        "S4": json.dumps({"Etiology": "x"}),
        "S5": json.dumps({"Files": "a.wav"}),
    }.items():
        write_lines(folder / "Dev" / speaker / f"{speaker}.json", [text])
    (folder / "Dev" / "S6").mkdir(exist_ok=True)
    return SpeakerTreeCorpus(adapter="speaker_tree", root=str(folder), split="Dev")


def test_speaker_tree(tmp_path: Path) -> None:
    rows, rejected = read(speaker_tree(tmp_path))
    assert [(row.id, row.text, row.speaker, row.group) for row in rows] == [
        ("S1/a", None, "S1", None),
        ("S2/a", "one", "S2", "ALS"),
        ("S2/b", None, "S2", "ALS"),
    ]
    assert rows[1].audio == str(tmp_path / "Dev/S2/a.wav")
    assert rows[1].extra["Prompt"] == {"Transcript": "one", "Category": "digits"}
    assert rows[1].extra["Etiology"] == "ALS"
    assert [row.id for row in rejected] == ["S2/2", "S2/3", "S2/4", "S3", "S4", "S5", "S6"]
    with pytest.raises(UserError, match="Train"):
        read(speaker_tree(tmp_path).model_copy(update={"split": "Train"}))


# plain manifest


def manifest(path: Path, **keys: Any) -> ManifestCorpus:
    columns = Columns(**keys.pop("columns", {}))
    return ManifestCorpus(adapter="manifest", path=str(path), columns=columns, **keys)


@pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
def test_manifest_table(tmp_path: Path, suffix: str, mark: str) -> None:
    lines = [
        b"\xef\xbb\xbf" + mark.join(["id", "audio", "text", "who", "accent", "seconds"]).encode(),
        mark.join(["a", "x/a.wav", f'"one{mark} ""two"""', "S1", "", "9"]),
        mark.join(["b", "b.wav", '"two', 'lines"', "S2", "us", "9"]).replace(f"two{mark}lines", "two\nlines"),
        mark.join(["c", "c.wav", "short row"]),
        b"d" + mark.encode() + b"\xff.wav" + mark.encode() * 4,
        mark.join(["e", "", "t", "S", "g", "1"]),
        mark.join(["", "f.wav", "t", "S", "g", "1"]),
        "",
        mark.join(["g", "g.wav", "", "S1", "uk", "1"]),
    ]
    path = write_lines(tmp_path / f"m.{suffix}", lines)
    rows, rejected = read(manifest(path, columns={"speaker": "who", "group": "accent"}))
    assert [(row.id, row.text, row.speaker, row.group) for row in rows] == [
        ("a", f'one{mark} "two"', "S1", None),
        ("b", "two\nlines", "S2", "us"),
        ("g", None, "S1", "uk"),
    ]
    assert rows[0].audio == str(tmp_path / "x/a.wav")
    assert rows[0].extra == {"who": "S1", "accent": None}
    assert rows[2].where == f"{path}, line 10"
    assert [row.id for row in rejected] == ["line 5", "line 6", "line 7", "line 8"]
    assert ["cells" in rejected[0].reason, "UTF-8" in rejected[1].reason] == [True, True]
    assert [row.reason.split(":")[0] for row in rejected[2:]] == ["no audio", "no id"]


def test_manifest_jsonl_with_its_own_names(tmp_path: Path) -> None:
    rows_in = [
        {"file": "x/a.wav", "transcript": "one", "licence": "CC0", "seconds": 3, "audio_bytes": 4},
        {"file": "/abs/b.flac", "transcript": None, "asr_method": "theirs"},
        {"file": ["c.wav"]},
        {"transcript": "no file"},
    ]
    path = write_lines(tmp_path / "m.jsonl", [json.dumps(row) for row in rows_in])
    columns = {"id": None, "audio": "file", "text": "transcript"}
    rows, rejected = read(manifest(path, columns=columns, audio_dir=str(tmp_path)))
    assert [(row.id, row.audio, row.text) for row in rows] == [
        ("x/a", str(tmp_path / "x/a.wav"), "one"),
        ("/abs/b", "/abs/b.flac", None),
    ]
    assert rows[0].extra == {"file": "x/a.wav", "transcript": "one", "licence": "CC0"}
    assert rows[1].extra == {"file": "/abs/b.flac", "transcript": None}
    assert [row.id for row in rejected] == ["line 3", "line 4"]


def test_manifest_numbers_are_names_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", ['{"id": 17, "audio": "a.wav", "text": "x", "spk": 4}'])
    (row,), _ = read(manifest(path, columns={"speaker": "spk"}))
    assert (row.id, row.speaker) == ("17", "4")


def test_manifest_tells_what_to_write(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "m.csv", ["name,path,sentence", "a,a.wav,x"])
    with pytest.raises(UserError, match=r"columns\.id.*\n.*line 1\n.*'name', 'path', 'sentence'.*null"):
        read(manifest(table))
    with pytest.raises(UserError, match="no header"):
        read(manifest(write_lines(tmp_path / "e.csv", [])))
    with pytest.raises(UserError, match=r"name it \.jsonl"):
        read(manifest(write_lines(tmp_path / "m.xlsx", ["x"])))
    with pytest.raises(UserError, match="no such file"):
        read(manifest(tmp_path / "absent.csv"))
    with pytest.raises(UserError, match="audio_dir"):
        read(manifest(table, audio_dir=str(tmp_path / "absent")))


# what the rule waits for


def test_every_adapter_of_the_configuration_is_registered() -> None:
    kinds = (SlurpCorpus, SpeechOceanCorpus, SpeakerTreeCorpus, ManifestCorpus)
    names = {kind.model_fields["adapter"].annotation.__args__[0] for kind in kinds}
    assert names == set(ADAPTERS)


def test_source_files_are_what_the_adapters_read(tmp_path: Path) -> None:
    tree = speaker_tree(tmp_path / "tree")
    assert [Path(file).name for file in source_files(tree)] == [f"S{n}.json" for n in range(1, 7)]
    assert [Path(file).name for file in source_files(slurp(tmp_path))] == ["devel.jsonl", "metadata.json"]
    for cfg in (slurp(tmp_path), speechocean(tmp_path / "so")):
        for file in source_files(cfg):
            kept = Path(file).read_bytes()
            Path(file).unlink()
            with pytest.raises(UserError):
                read(cfg)
            Path(file).write_bytes(kept)


def test_rule_inputs_without_downloads_are_the_files_that_are_there(tmp_path: Path) -> None:
    cfg = slurp(tmp_path)
    assert rule_inputs(cfg, {}) == source_files(cfg)
    (tmp_path / "metadata.json").unlink()
    assert rule_inputs(cfg, {}) == [cfg.annotations]


def test_rule_inputs_are_the_same_before_and_after_the_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    downloads = {
        "data/s/devel.jsonl": Download(url="https://example.org/devel.jsonl"),
        "data/s/real.tar.gz": Download(url="https://example.org/real.tar.gz", unpack_to="data/s/audio"),
        "data/other.zip": Download(url="https://example.org/other.zip", unpack_to="data/other"),
        "data/so.tar.gz": Download(url="https://example.org/so.tar.gz", unpack_to="data/so"),
    }
    slurp_cfg = SlurpCorpus(adapter="slurp", annotations="./data/s/devel.jsonl", audio_dir="data/s/audio/slurp_real")
    ocean_cfg = SpeechOceanCorpus(adapter="speechocean762", root="data/so/speechocean762")
    expected = [["data/s/devel.jsonl", "data/s/real.tar.gz.contents.tsv"], ["data/so.tar.gz.contents.tsv"]]
    assert [rule_inputs(cfg, downloads) for cfg in (slurp_cfg, ocean_cfg)] == expected
    speechocean(tmp_path / "data/so/speechocean762")
    write_lines(tmp_path / "data/s/devel.jsonl", [])
    assert [rule_inputs(cfg, downloads) for cfg in (slurp_cfg, ocean_cfg)] == expected
