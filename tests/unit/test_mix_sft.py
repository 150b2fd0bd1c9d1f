"""Stage `mix_sft`: what a training is trained and validated with."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from utterflow.config.training import MixPart
from utterflow.errors import UserError
from utterflow.files import write_jsonl
from utterflow.records import RejectedRow, SftRow, read_records
from utterflow.sft.mix import Key, Part, mix_sft, unique_names
from utterflow.sft.stats import MixStats

NAMES = ("train", "validation", "stats", "rejected", "meta")


def sft(name: str, target: str | None = "yes", group: str | None = None, task: str = "corrector") -> dict[str, Any]:
    messages = [{"role": "user", "content": f"äsk {name}"}]
    return {"id": name, "task": task, "messages": messages, "target": target, "group": group, "source": None}


def rows(count: int, prefix: str = "r", groups: int = 0) -> list[dict[str, Any]]:
    return [sft(f"{prefix}{i}", group=f"{prefix}g{i % groups}" if groups else None) for i in range(count)]


def part(folder: Path, dataset: str, content: list[dict[str, Any]] | None, side: str = "train", **cfg: Any) -> Part:
    """A part of the mixture; with `content` None its file is there already."""
    entry = MixPart(dataset=dataset, **cfg)
    path = folder / dataset / f"{entry.split}.jsonl"
    if content is not None:
        write_jsonl(path, content)
    return Part(side, entry, path)


def mix(folder: Path, parts: list[Part], out: str = "out", **changes: Any) -> MixStats:
    options: dict[str, Any] = {"validation_share": 0.0, "split_by": "row", "seed": 1, **changes}
    files = {
        name: folder / out / f"{name}.{'jsonl' if name in ('train', 'validation', 'rejected') else 'json'}"
        for name in NAMES
    }
    return mix_sft(parts, **options, **files, cfg={"seed": options["seed"]}, code="c")


def ids(folder: Path, side: str = "train", out: str = "out") -> list[str]:
    return [row.id for row in read_records(folder / out / f"{side}.jsonl", SftRow)]


def test_rows_come_whole_with_their_source_in_a_drawn_order(tmp_path: Path) -> None:
    stats = mix(tmp_path, [part(tmp_path, "a", rows(30)), part(tmp_path, "b", [sft("x", "ñ\nno", "g", "other")])])
    written = {row.id: row for row in read_records(tmp_path / "out/train.jsonl", SftRow)}
    assert sorted(written) == sorted(["x", *(f"r{i}" for i in range(30))])
    assert written["x"] == SftRow.model_validate({**sft("x", "ñ\nno", "g", "other"), "source": "b"})
    assert ids(tmp_path) != [f"r{i}" for i in range(30)] + ["x"]
    assert ids(tmp_path, "validation") == []
    assert stats.train.tasks == {"corrector": 30, "other": 1}
    assert stats.train.datasets == {"a": 30, "b": 1}
    assert stats.train.prompt_characters == sum(len(f"äsk r{i}") for i in range(30)) + len("äsk x")
    assert stats.train.target_characters == 3 * 30 + 4
    assert stats.train.groups == 1
    assert MixStats.model_validate_json((tmp_path / "out/stats.json").read_text()) == stats
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert meta["rows"] == {"in": 31, "out": 31, "rejected": 0, "not_drawn": 0, "repeated": 0}
    assert set(meta["outputs"]) == {"train.jsonl", "validation.jsonl", "stats.json", "rejected.jsonl"}


def test_another_seed_another_order_and_the_same_seed_the_same_bytes(tmp_path: Path) -> None:
    parts = [part(tmp_path, "a", rows(30))]
    for out, seed in (("one", 1), ("again", 1), ("two", 2)):
        mix(tmp_path, parts, out, seed=seed)
    one, again, two = ((tmp_path / out / "train.jsonl").read_bytes() for out in ("one", "again", "two"))
    assert one == again
    assert one != two
    assert sorted(one.splitlines()) == sorted(two.splitlines())


def test_shares_and_limits(tmp_path: Path) -> None:
    def drawn(**cfg: Any) -> list[str]:
        mix(tmp_path, [part(tmp_path, "a", rows(10), **cfg)])
        return sorted(ids(tmp_path))

    everything = [f"r{i}" for i in range(10)]
    assert drawn() == everything
    assert len(drawn(share=0.25)) == 3
    assert len(drawn(limit=4)) == 4
    assert set(drawn(limit=4)) < set(drawn(limit=6)) < set(everything)
    assert drawn(limit=4) != everything[:4]
    assert drawn(limit=40) == everything
    assert drawn(share=2.0) == sorted([*everything, *(f"{name}#2" for name in everything)])
    twice = drawn(share=2.5)
    assert Counter(name.partition("#")[2] for name in twice) == {"": 10, "2": 10, "3": 5}
    assert {name.partition("#")[0] for name in twice if name.endswith("#3")} == set(drawn(share=0.5))
    assert len(drawn(share=3.0, limit=12)) == 12
    assert len(drawn(limit=4)) == 4
    rows_of_four = json.loads((tmp_path / "out/meta.json").read_text())["rows"]
    assert rows_of_four == {"in": 10, "out": 4, "rejected": 0, "not_drawn": 6, "repeated": 0}


def test_a_draw_does_not_depend_on_other_parts(tmp_path: Path) -> None:
    a, b = part(tmp_path, "a", rows(20, "a"), limit=7), part(tmp_path, "b", rows(20, "b"), share=0.5)
    mix(tmp_path, [a, b], "ab")
    mix(tmp_path, [b, a], "ba")
    mix(tmp_path, [a], "a_alone")
    assert (tmp_path / "ab/train.jsonl").read_bytes() == (tmp_path / "ba/train.jsonl").read_bytes()
    assert set(ids(tmp_path, out="a_alone")) == {name for name in ids(tmp_path, out="ab") if name.startswith("a")}


def test_a_dataset_has_draws_of_its_own(tmp_path: Path) -> None:
    parts = [part(tmp_path, name, rows(40), limit=20) for name in ("a", "b")]
    mix(tmp_path, parts)
    by_dataset: dict[str, set[str]] = {"a": set(), "b": set()}
    for row in read_records(tmp_path / "out/train.jsonl", SftRow):
        by_dataset[str(row.source)].add(row.messages[0].content)  # type: ignore[arg-type]
    assert by_dataset["a"] != by_dataset["b"]


def test_ids_that_several_data_sets_have(tmp_path: Path) -> None:
    parts = [
        part(tmp_path, "a", [sft("x"), sft("only")]),
        part(tmp_path, "b", [sft("x"), sft("y")]),
        part(tmp_path, "b", [sft("y", "no")], split="test"),
    ]
    stats = mix(tmp_path, parts)
    assert sorted(ids(tmp_path)) == ["a:x", "b/test:y", "b/train:y", "b:x", "only"]
    assert stats.renamed == 4


def test_names_stay_unique_whatever_ids_are_called() -> None:
    keys = [Key("a", "train", "x"), Key("b", "train", "x"), Key("b", "train", "a:x"), Key("b", "train", "a/train:x")]
    names = unique_names(keys)
    assert len(set(names.values())) == len(keys)


def test_copies_do_not_take_the_name_of_another_row(tmp_path: Path) -> None:
    mix(tmp_path, [part(tmp_path, "a", [sft("x"), sft("x#2")], share=2)])
    assert len(set(ids(tmp_path))) == 4
    assert {"x", "x#2", "x#3"} < set(ids(tmp_path))


def test_the_same_part_twice_gives_copies(tmp_path: Path) -> None:
    one = part(tmp_path, "a", rows(3))
    mix(tmp_path, [one, one])
    assert sorted(ids(tmp_path)) == ["r0", "r0#2", "r1", "r1#2", "r2", "r2#2"]


def test_a_share_of_rows_is_kept_for_validation(tmp_path: Path) -> None:
    stats = mix(tmp_path, [part(tmp_path, "a", rows(40), share=2)], validation_share=0.25)
    train, validation = ids(tmp_path), ids(tmp_path, "validation")
    assert len(validation) == 10 and len(train) == 60
    assert not {name.partition("#")[0] for name in train} & set(validation)
    assert not any("#" in name for name in validation)
    assert stats.shared_rows == 0
    mix(tmp_path, [part(tmp_path, "a", None, share=2)], "again", validation_share=0.25)
    assert ids(tmp_path, "validation", "again") == validation
    mix(tmp_path, [part(tmp_path, "a", None, share=2)], "other", validation_share=0.25, seed=2)
    assert sorted(ids(tmp_path, "validation", "other")) != sorted(validation)


@pytest.mark.parametrize("seed", range(6))
def test_a_group_is_all_on_one_side(tmp_path: Path, seed: int) -> None:
    shared = [sft(f"other{i}", group=f"rg{i % 3}") for i in range(9)]
    lonely = [sft(f"lonely{i}") for i in range(10)]
    parts = [part(tmp_path, "a", rows(60, groups=12)), part(tmp_path, "b", [*shared, *lonely])]
    stats = mix(tmp_path, parts, validation_share=0.2, split_by="group", seed=seed)
    sides = {side: list(read_records(tmp_path / "out" / f"{side}.jsonl", SftRow)) for side in ("train", "validation")}
    groups = {side: {row.group for row in items if row.group} for side, items in sides.items()}
    assert groups["train"] and groups["validation"]
    assert not groups["train"] & groups["validation"]
    assert stats.shared_groups == 0
    assert len(sides["train"]) + len(sides["validation"]) == 79
    assert 12 <= len(sides["validation"]) <= 16
    by_row = mix(tmp_path, parts, validation_share=0.2, seed=seed)
    assert by_row.shared_groups > 0


def test_few_large_groups_still_give_a_validation_set(tmp_path: Path) -> None:
    content = [*rows(50, "a", 1), *rows(30, "b", 1), *rows(40, "c", 1)]
    mix(tmp_path, [part(tmp_path, "a", content)], validation_share=0.1, split_by="group")
    assert {name[0] for name in ids(tmp_path, "validation")} == {"b"}


def test_a_validation_set_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("utterflow").propagate = True
    parts = [
        part(tmp_path, "a", rows(10)),
        part(tmp_path, "a", rows(6, "v"), "validation", split="validation", limit=4),
    ]
    stats = mix(tmp_path, parts)
    assert (len(ids(tmp_path)), len(ids(tmp_path, "validation"))) == (10, 4)
    assert [(item.side, item.split, item.available, item.drawn) for item in stats.parts] == [
        ("train", "train", 10, 10),
        ("validation", "validation", 6, 4),
    ]
    assert stats.shared_rows == 0
    parts.append(part(tmp_path, "a", None, "validation", limit=3))
    with caplog.at_level(logging.WARNING, "utterflow"):
        assert mix(tmp_path, parts).shared_rows == 3
    assert "3 validation rows stand in the training set too" in caplog.text


def test_rows_without_answer_are_rejected_once(tmp_path: Path) -> None:
    content = [sft("a"), sft("b", None), sft("c", "  "), sft("d")]
    one = part(tmp_path, "x", content)
    stats = mix(tmp_path, [one, one, part(tmp_path, "x", None, "validation")])
    rejected = list(read_records(tmp_path / "out/rejected.jsonl", RejectedRow))
    assert [(row.id, row.reason.partition(":")[0]) for row in rejected] == [("b", "no answer"), ("c", "no answer")]
    assert rejected[0].where is not None and rejected[0].where.endswith("train.jsonl, line 2")
    assert stats.rejected == 2
    assert sorted(ids(tmp_path)) == ["a", "a#2", "d", "d#2"]
    assert sorted(ids(tmp_path, "validation")) == ["a", "d"]


@pytest.mark.parametrize(
    ("content", "cfg", "options"),
    [
        ([], {}, {}),
        ([sft("a", None)], {}, {}),
        (rows(4), {"share": 0.1}, {}),
        (rows(5, groups=1), {}, {"validation_share": 0.2, "split_by": "group"}),
        (rows(1), {}, {"validation_share": 0.2}),
    ],
    ids=["no rows", "no answers", "nothing drawn", "one group", "one row"],
)
def test_nothing_to_train_on_is_an_error(
    tmp_path: Path, content: list[dict[str, Any]], cfg: dict[str, Any], options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="nothing to train on") as caught:
        mix(tmp_path, [part(tmp_path, "a", content, **cfg)], **options)
    assert "a/train.jsonl" in str(caught.value)
    assert not (tmp_path / "out/train.jsonl").exists()


def test_faults_of_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'a' occurs twice[\s\S]*line 2"):
        mix(tmp_path, [part(tmp_path, "a", [sft("a"), sft("a")])])
    with pytest.raises(UserError, match=r"field `messages`[\s\S]*line 1"):
        mix(tmp_path, [part(tmp_path, "a", [{**sft("a"), "messages": []}])])
    with pytest.raises(UserError, match="file not found"):
        mix(tmp_path, [part(tmp_path, "missing", None)])


def test_messages_with_media_are_kept(tmp_path: Path) -> None:
    content = [{"type": "audio", "path": "a.wav"}, {"type": "text", "text": "what is said?"}]
    row = {**sft("a"), "messages": [{"role": "user", "content": content}]}
    stats = mix(tmp_path, [part(tmp_path, "a", [row])])
    (written,) = read_records(tmp_path / "out/train.jsonl", SftRow)
    assert written.messages[0].content == content
    assert stats.train.prompt_characters == len("what is said?")
