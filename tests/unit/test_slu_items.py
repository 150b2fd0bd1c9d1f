"""Spoken commands of every kind of file have one shape; what cannot be read is rejected with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scored_runs import nbest_row

from utterflow.errors import UserError
from utterflow.files import write_jsonl
from utterflow.records import Entity, Noise, RationaleRow, RejectedRow, SluItem
from utterflow.slu.items import read_items, unique
from utterflow.slu.labels import Inventory, majority, read_inventory


def slurp(sentence: str, *entities: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A SLURP record; entities as given."""
    tokens = [{"surface": word, "id": place} for place, word in enumerate(sentence.split())]
    labels = {"intent": "wrong_intent", "scenario": "alarm", "action": "set"}
    return {"slurp_id": 7, "sentence": sentence, "tokens": tokens, "entities": list(entities), **labels, **more}


def span(kind: str, *places: int) -> dict[str, Any]:
    return {"type": kind, "span": list(places)}


def read(path: Path, rows: list[dict[str, Any]], where_from: Any) -> list[SluItem | RejectedRow]:
    write_jsonl(path, rows)
    return list(read_items(path, where_from))


def test_nbest_rows_take_labels_from_the_fields_of_their_slurp_record(tmp_path: Path) -> None:
    record = slurp("Wake Anna at  Six", span("time", 3), span("person", 1), file="a-headset.flac", recordings=[])
    noise = {"snr_db": 5.0, "color": 1.0, "seed": 3}
    row = nbest_row("a-headset", "Wake Anna at Six", ["wake  anna", "a\nb"], speaker="s", group="g", noise=noise)
    [item] = read(tmp_path / "nbest.jsonl", [{**record, **row}], "nbest")
    assert item == SluItem(
        id="a-headset",
        slurp_id=7,
        file="a-headset.flac",
        audio="a-headset.wav",
        noise=Noise(snr_db=5.0, color=1.0, seed=3),
        text="Wake Anna at Six",
        hypotheses=["wake anna", "a b"],
        scenario="alarm",
        action="set",
        entities=[Entity(type="person", filler="anna"), Entity(type="time", filler="six")],
        speaker="s",
        group="g",
    )
    assert isinstance(item, SluItem)
    assert item.intent == "alarm_set"


def test_rows_without_labels_have_none(tmp_path: Path) -> None:
    [item] = read(tmp_path / "nbest.jsonl", [nbest_row("a", None, ["x"])], "nbest")
    assert isinstance(item, SluItem)
    assert (item.scenario, item.entities, item.intent, item.text) == (None, None, None, None)


def test_lists_in_their_three_forms(tmp_path: Path) -> None:
    filler = {"type": "time", "filler": " Half  Past Six "}
    rows = [
        slurp("wake me", filler, asr_hypotheses=[{"text": "wake me", "score": -1}, {"text": "make me"}], file="b.flac"),
        slurp("wake me", asr_hypotheses=["wake"], recordings=[{"file": "c.flac"}]),
        {"id": "own", "input": ["wake  me", "x"], "output": "wake me", "audio": "d/e.wav", "speaker": 3},
        slurp("wake me", input=["wake"], recordings=[{"file": "c.flac"}, {"file": "d.flac"}]),
        {"input": ["wake"]},
    ]
    items = read(tmp_path / "lists.jsonl", rows, "lists")
    assert all(isinstance(item, SluItem) for item in items)
    assert [item.id for item in items] == ["b", "c", "own", "slurp-7", "line-5"]
    facts = [(i.file, i.text, i.hypotheses, i.speaker) for i in items if isinstance(i, SluItem)]
    assert facts == [
        ("b.flac", "wake me", ["wake me", "make me"], None),
        ("c.flac", "wake me", ["wake"], None),
        ("e.wav", "wake me", ["wake me", "x"], "3"),
        (None, "wake me", ["wake"], None),
        (None, None, ["wake"], None),
    ]
    assert isinstance(items[0], SluItem)
    assert items[0].entities == [Entity(type="time", filler="half past six")]


def test_annotations_are_sentences_not_recordings(tmp_path: Path) -> None:
    recording = {"file": "c.flac", "audio": "c.flac", "recordings": [{"file": "c.flac"}], "asr_hypotheses": ["x"]}
    [item] = read(tmp_path / "a.jsonl", [slurp("wake me", **recording)], "annotations")
    assert isinstance(item, SluItem)
    assert (item.id, item.file, item.audio, item.hypotheses) == ("slurp-7", None, None, [])
    assert item.text == "wake me"


def test_repeated_ids_of_foreign_files_get_numbers(tmp_path: Path) -> None:
    rows = [{"id": name, "input": ["x"]} for name in ("a", "a#2", "a", "a")]
    assert [item.id for item in read(tmp_path / "l.jsonl", rows, "lists")] == ["a", "a#2", "a#3", "a#4"]
    assert unique("a", {"a"}) == "a#2"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (slurp("wake me", span("time", 2)), "span [2] is out of range: there are 2 tokens, counted from 0"),
        (slurp("wake me", span("time", -1)), "span [-1] is out of range"),
        (slurp("wake me", span("time", True)), "span [True] is out of range"),
        (slurp("wake me", {"type": "time", "span": "0"}), "an entity has no `span` and no `filler`"),
        (slurp("wake me", span("time")), "an entity has no `span` and no `filler`"),
        (slurp("wake me", {"span": [0]}), "an entity without `type`"),
        (slurp("wake me", {"type": None, "span": [0]}), "an entity without `type`"),
        (slurp("wake me", span("time", 0), tokens=None), "the record has no list of `tokens`"),
        (slurp("wake me", span("time", 0), tokens=[{"id": 0}]), "token 0 has no `surface`"),
        (slurp("wake me", span("time", 0), tokens=["wake"]), "token 0 has no `surface`"),
        ({**slurp("wake me"), "entities": {"type": "time"}}, "`entities` is no list"),
        ({**slurp("wake me"), "entities": ["time"]}, "an entity without `type`: 'time'"),
        (slurp("wake me", scenario=3), "field `scenario`"),
        (slurp("wake me", slurp_id=[1]), "field `slurp_id"),
    ],
)
def test_a_malformed_record_is_rejected_and_costs_no_good_one(
    tmp_path: Path, broken: dict[str, Any], reason: str
) -> None:
    good = slurp("wake me", span("time", 1))
    spoken = [{**row, **nbest_row(f"r{place}", "wake me", ["x"])} for place, row in enumerate((good, broken, good))]
    heard = [{**row, "input": ["x"]} for row in (good, broken, good)]
    for where_from, rows in (("annotations", [good, broken, good]), ("lists", heard), ("nbest", spoken)):
        path = tmp_path / f"{where_from}.jsonl"
        first, refused, last = read(path, rows, where_from)
        assert isinstance(first, SluItem)
        assert isinstance(last, SluItem)
        assert isinstance(refused, RejectedRow)
        assert refused.where == f"{path}, line 2"
        assert refused.reason.startswith("unreadable: ")
        assert reason in refused.reason


def test_lines_that_are_no_records_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = json.dumps(slurp("wake me", span("time", 1))).encode()
    lines = [b"\xef\xbb\xbf" + good, b"{", b"", b"[1]", b"\xff", b'{"sentence": "\\ud800"}', b"{}", good]
    path.write_bytes(b"\n".join(lines))
    items = list(read_items(path, "annotations", stage="elsewhere"))
    assert [item.id for item in items] == ["slurp-7", *(f"line {n}" for n in (2, 4, 5, 6, 7)), "slurp-7#2"]
    refused = [item for item in items if isinstance(item, RejectedRow)]
    assert {item.stage for item in refused} == {"elsewhere"}
    texts = ["not valid JSON", "expected a JSON object", "not UTF-8", "surrogate", "no `sentence`"]
    assert all(text in item.reason for text, item in zip(texts, refused, strict=True))


def test_a_file_of_the_workflow_itself_has_to_fit(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "n.jsonl", [{"id": "a"}])
    for where_from in ("nbest", "rationale"):
        with pytest.raises(UserError, match=r"n\.jsonl, line 1"):
            list(read_items(tmp_path / "n.jsonl", where_from))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no such file"):
        list(read_items(tmp_path / "absent.jsonl", "lists"))


def test_rationales_come_whole(tmp_path: Path) -> None:
    row = rationale_row("a", rationale_text="because")
    [item] = read(tmp_path / "r.jsonl", [row], "rationale")
    assert isinstance(item, RationaleRow)
    assert item.rationale_text == "because"


def rationale_row(name: str, **more: Any) -> dict[str, Any]:
    row = {
        "id": name,
        "hypotheses": ["x"],
        "nbest_k": 1,
        "input_text": "1. x",
        "gold_intent": None,
        "slot_candidates": [],
        "raw_output": "",
        "topk_valid": True,
        "topk_validation_error": None,
        "sees_gold": False,
    }
    return {**row, **more}


def test_inventory_and_majority(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    play = {"scenario": "play", "action": "music"}
    write_jsonl(one, [slurp("wake me", span("time", 1)), slurp("play it", span("song", 1), **play)])
    write_jsonl(two, [slurp("wake", {"type": "x", "span": [5]}), slurp("go", scenario=None), slurp("play it", **play)])
    assert read_inventory([one, two]) == Inventory(("alarm_set", "play_music"), ("song", "time"))
    assert majority([one, two]) == ("play", "music")
    assert majority([one]) == ("alarm", "set")
    write_jsonl(two, [slurp("go", scenario=None)])
    for function in (read_inventory, majority):
        with pytest.raises(UserError, match="no labelled sentence"):
            function([two])
