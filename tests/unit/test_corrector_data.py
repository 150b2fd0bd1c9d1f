"""Stage `build_corrector_data`: n-best lists of any source become prompts with answers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from scored_runs import nbest_row
from tiny_lm import save_tiny_lm

from utterflow.config.datasets import CandidateSource, CorrectorDataset
from utterflow.config.language_models import LanguageModel
from utterflow.corrector.build import CorrectorStats, build_corrector_data, merge_equal
from utterflow.corrector.candidates import NbestList, read_sources, source_names
from utterflow.corrector.prompt import read_template
from utterflow.errors import UserError
from utterflow.files import write_jsonl
from utterflow.models.text import load_tokenizer
from utterflow.records import CandidatesRow, RejectedRow, SftRow, read_records
from utterflow.sft.tokenize import encode_prompt

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "Given {n} candidates:\n\n{candidates}\n\nCorrect:"
NAMES = {
    "rows": "train.jsonl",
    "candidates": "train.candidates.jsonl",
    "alpaca": "train.alpaca.jsonl",
    "rejected": "train.rejected.jsonl",
    "stats": "train.stats.json",
    "meta": "train.meta.json",
}


def beams_row(index: int, text: str | None, beams: list[str], **more: Any) -> dict[str, Any]:
    hypotheses = [
        {"text": beam, "score": -1.5 * rank, "acoustic_score": -1.0, "lm_score": -2.0}
        for rank, beam in enumerate(beams)
    ]
    return {"id": f"t{index}", "index": index, "text": text, "logits": "held_out", "beams": hypotheses, **more}


def foreign(*rows: dict[str, Any], path: Path) -> Path:
    write_jsonl(path, rows)
    return path


def build(folder: Path, rows: list[dict[str, Any]], split: str = "train", **changes: Any) -> CorrectorStats:
    """A data set from one file of foreign lists."""
    source = folder / "lists.jsonl"
    write_jsonl(source, rows)
    return build_from(folder, [source], [{"lists": str(source)}], split, **changes)


def build_from(
    folder: Path,
    files: list[Path],
    sources: list[dict[str, Any]],
    split: str = "train",
    tokenizer: LanguageModel | None = None,
    **changes: Any,
) -> CorrectorStats:
    template = folder / "template.txt"
    template.write_text(changes.pop("template", TEMPLATE))
    if tokenizer:
        changes["tokenizer"] = "tiny"
    cfg = CorrectorDataset.model_validate(
        {"builder": "corrector", split: sources, "instruction": str(template), "max_rejected": 1, **changes}
    )
    return build_corrector_data(
        files,
        split=split,
        cfg=cfg,
        tokenizer=tokenizer,
        code="c",
        **{name: folder / "out" / file for name, file in NAMES.items()},
    )


def made(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / NAMES[kind]).read_text().splitlines()]


def test_every_source_has_one_shape(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("beams.jsonl", "nbest.jsonl", "a.jsonl", "b.jsonl")]
    write_jsonl(files[0], [beams_row(7, "hello you", ["hello  you", "hallo you"], session="s1", group="g")])
    write_jsonl(files[1], [nbest_row("u1", "go on", ["go on", "gone"], speaker="p", group="f")])
    write_jsonl(files[2], [{"id": 12, "input": ["a b", "a\nc"], "output": "a b", "speaker": "q"}])
    write_jsonl(
        files[3], [{"trial_id": 3, "input_beams": ["x"], "ground_truth": None, "scores": [-1]}, {"input_beams": ["y"]}]
    )
    sources = [
        CandidateSource(beams="wide", partition="train"),
        CandidateSource(corpus="slurp", asr="turbo"),
        CandidateSource(lists="x/a.jsonl"),
        CandidateSource(lists="y/a.jsonl"),
    ]
    assert list(read_sources(sources, files)) == [
        NbestList(
            id="wide/train:t7",
            trial_id=7,
            source="wide/train",
            texts=("hello you", "hallo you"),
            reference="hello you",
            scores=(0.0, -1.5),
            session="s1",
            group="g",
            logits="held_out",
        ),
        NbestList(
            id="slurp/turbo:u1",
            trial_id="u1",
            source="slurp/turbo",
            texts=("go on", "gone"),
            reference="go on",
            scores=(-1.0, -1.0),
            speaker="p",
            group="f",
        ),
        NbestList(id="a:12", trial_id=12, source="a", texts=("a b", "a c"), reference="a b", speaker="q"),
        NbestList(id="a#2:3", trial_id=3, source="a#2", texts=("x",), reference=None, scores=(-1.0,)),
        NbestList(id="a#2:1", trial_id=1, source="a#2", texts=("y",), reference=None),
    ]


def test_repeated_ids_and_limits(tmp_path: Path) -> None:
    rows = [{"trial_id": 0, "input": [text], "output": text} for text in "abcd"]
    path = foreign(*rows, path=tmp_path / "joined.jsonl")
    items = list(read_sources([CandidateSource(lists=str(path), limit=3)], [path]))
    assert [item.id for item in items] == ["joined:0", "joined:0#2", "joined:0#3"]
    assert source_names([CandidateSource(lists="a.jsonl"), CandidateSource(lists="a.jsonl")]) == ["a", "a#2"]


def test_a_row_of_each_kind_of_file(tmp_path: Path) -> None:
    stats = build(
        tmp_path, [{"trial_id": 4, "input_beams": ["hello how r you", "hello how are you"], "ground_truth": "hi"}]
    )
    prompt = "Given 2 candidates:\n\n1. hello how r you\n2. hello how are you\n\nCorrect:"
    assert made(tmp_path, "rows") == [
        {
            "id": "lists:4",
            "task": "corrector",
            "messages": [{"role": "user", "content": prompt}],
            "target": "hi",
            "group": None,
            "source": None,
            "weight": 1.0,
        }
    ]
    assert made(tmp_path, "candidates") == [
        {
            "trial_id": 4,
            "input_beams": ["hello how r you", "hello how are you"],
            "ground_truth": "hi",
            "instruction": "Given 2 candidates:",
            "formatted_input": prompt,
            "id": "lists:4",
            "source": "lists",
            "group": None,
            "session": None,
            "scores": None,
            "cut": 0,
            "speaker": None,
            "repeats": [1, 1],
        }
    ]
    assert made(tmp_path, "alpaca") == [{"instruction": prompt, "input": "", "output": "hi"}]
    assert stats.rows == {"in": 1, "out": 1, "rejected": 0}
    assert list(read_records(tmp_path / "out" / NAMES["candidates"], CandidatesRow))
    assert CorrectorStats.model_validate_json((tmp_path / "out" / NAMES["stats"]).read_text()) == stats


def test_the_group_is_the_session_else_the_speaker_else_the_group(tmp_path: Path) -> None:
    base = {"input": ["a"], "output": "a"}
    build(
        tmp_path,
        [
            {**base, "id": "1", "session": "s", "speaker": "p", "group": "g"},
            {**base, "id": "2", "speaker": "p", "group": "g"},
            {**base, "id": "3", "group": "g"},
        ],
    )
    assert [row["group"] for row in made(tmp_path, "rows")] == ["s", "p", "g"]


def test_equal_candidates_go_before_the_list_is_capped(tmp_path: Path) -> None:
    row = {"input": ["a", "b", "a ", "b", "c", "a"], "output": "c", "scores": [0, -1, -2, -3, -4, -5]}
    stats = build(tmp_path, [row], candidates=3)
    (item,) = made(tmp_path, "candidates")
    assert (item["input_beams"], item["scores"], item["repeats"]) == (["a", "b", "c"], [0, -1, -4], [3, 2, 1])
    assert "Given 3 candidates" in item["formatted_input"]
    assert (stats.dropped_duplicates, stats.lists_with_reference) == (3, 1)
    stats = build(tmp_path, [row], candidates=3, drop_duplicates=False)
    (item,) = made(tmp_path, "candidates")
    assert (item["input_beams"], item["scores"], item["repeats"]) == (["a", "b", "a"], [0, -1, -2], None)
    assert (stats.dropped_duplicates, stats.lists_with_reference) == (0, 0)
    assert merge_equal(["x"]) == ([0], [1])


def test_rows_that_cannot_be_used_are_rejected_and_the_others_stay(tmp_path: Path) -> None:
    rows = [
        {"id": "ok", "input": ["a"], "output": "a"},
        {"id": "empty", "input": [], "output": "a"},
        {"id": "none", "input": ["a"]},
        {"id": "blank", "input": ["a"], "output": " "},
        {"id": "number", "input": ["a", 3], "output": "a"},
        {"id": "other", "text": "a"},
    ]
    source = tmp_path / "lists.jsonl"
    write_jsonl(source, rows)
    with source.open("ab") as handle:
        handle.write(b'not json\n\n["list"]\n{"input": ["\\ud800"], "output": "a"}\n{"input": ["\xff"]}\n')
        handle.write(b'{"id": "last", "input": ["b"], "output": "b"}\n')
    stats = build_from(tmp_path, [source], [{"lists": str(source)}])
    assert [row["id"] for row in made(tmp_path, "rows")] == ["lists:ok", "lists:last"]
    rejected = list(read_records(tmp_path / "out" / NAMES["rejected"], RejectedRow))
    assert len(rejected) == stats.rows["rejected"] == 9
    assert stats.rows["in"] == 11
    reasons = {row.id: row.reason for row in rejected}
    assert "at least one hypothesis" in reasons["lists:line 2"]
    assert reasons["lists:none"] == reasons["lists:blank"] == "no reference: the train split needs the answer"
    assert "`input.1`: expected a text" in reasons["lists:line 5"]
    assert "no n-best list" in reasons["lists:line 6"]
    assert "not valid JSON" in reasons["lists:line 7"]
    assert "surrogate" in reasons["lists:line 10"]
    assert "UTF-8" in reasons["lists:line 11"]
    with pytest.raises(UserError, match=r"more than max_rejected 0\.5 allows"):
        build_from(tmp_path, [source], [{"lists": str(source)}], max_rejected=0.5)


def test_a_test_split_keeps_rows_without_reference(tmp_path: Path) -> None:
    stats = build(tmp_path, [{"input": ["a"]}, {"input": ["a"], "output": "a"}], split="test")
    assert (stats.without_reference, stats.lists_with_reference, stats.rows["rejected"]) == (1, 1, 0)
    assert [row["target"] for row in made(tmp_path, "rows")] == [None, "a"]
    assert [row["output"] for row in made(tmp_path, "alpaca")] == [None, "a"]


def test_braces_and_line_breaks_of_candidates_are_harmless(tmp_path: Path) -> None:
    nasty = ["{n} {candidates}", "a}{b {{c}}", "two\nlines", "{0.__class__}"]
    build(tmp_path, [{"input": nasty, "output": "{x}"}], template="{{{n}}} of:\n{candidates}\nend {n}")
    (row,) = made(tmp_path, "rows")
    assert row["messages"][0]["content"] == (
        "{4} of:\n1. {n} {candidates}\n2. a}{b {{c}}\n3. two lines\n4. {0.__class__}\nend 4"
    )
    assert row["target"] == "{x}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{candidates}", "no placeholder `{n}`"),
        ("{n}", "no placeholder `{candidates}`"),
        ("{n} {candidates} {reference}", "unknown placeholder `{reference}`"),
        ("{n} {candidates} {}", "unknown placeholder `{}`"),
        ("{n:03} {candidates}", "unknown placeholder `{n}`"),
        ("{n!r} {candidates}", "unknown placeholder `{n}`"),
        ("{n} {candidates", "unbalanced braces"),
        ("{n} {candidates} }", "unbalanced braces"),
        ("{n} {candidates} {candidates}", "more than once"),
        (" \n", "empty"),
    ],
)
def test_faults_of_a_template_are_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "template.txt"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_template(path)
    assert what in str(caught.value) and "template.txt" in str(caught.value)


def test_template_files_that_are_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file not found"):
        read_template(tmp_path / "none.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe{n}")
    with pytest.raises(UserError, match="not UTF-8"):
        read_template(tmp_path / "bytes.txt")


@pytest.mark.parametrize("name", ["corrector.txt", "brain2text.txt"])
def test_the_shipped_templates_are_sound(name: str) -> None:
    template = read_template(REPOSITORY / "workflow/prompts" / name)
    assert template.render(["a", "b"]).startswith("Given the following 2 candidate transcriptions from a")
    assert "\n\n1. a\n2. b\n\n" in template.render(["a", "b"])
    assert template.instruction(["a"]).endswith("transcription:")


def test_a_template_that_begins_with_the_list(tmp_path: Path) -> None:
    path = tmp_path / "template.txt"
    path.write_text("{candidates}\n\nCorrect these {n}.")
    template = read_template(path)
    assert template.instruction(["a", "b"]) == "Correct these 2."


@pytest.mark.parametrize(
    ("reference", "candidate", "held"),
    [
        ("Go on, now!", "go on now", True),
        ("it's twenty-one", "It s twenty one", True),
        ("-- go", "go", True),
        ("go on", "go one", False),
        ("go on", "go", False),
    ],
)
def test_a_list_holds_its_reference_but_for_case_and_punctuation(
    tmp_path: Path, reference: str, candidate: str, held: bool
) -> None:
    stats = build(tmp_path, [{"input": ["something else", candidate], "output": reference}])
    assert stats.lists_with_reference == held


def test_a_system_message(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be {brief}.\n")
    build(tmp_path, [{"input": ["a"], "output": "a"}], system=str(tmp_path / "system.txt"))
    (row,) = made(tmp_path, "rows")
    assert row["messages"][0] == {"role": "system", "content": "Be {brief}."}


def test_lists_that_the_model_has_learnt_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "beams.jsonl"
    write_jsonl(source, [beams_row(0, "a", ["a"], logits="learnt"), beams_row(1, "b", ["b"], logits="cross_fitted")])
    logging.getLogger("utterflow").propagate = True
    with caplog.at_level(logging.WARNING, "utterflow"):
        stats = build_from(tmp_path, [source], [{"beams": "wide", "partition": "train"}])
    assert stats.logits == {"cross_fitted": 1, "learnt": 1}
    assert len(stats.warnings) == 1 and stats.warnings[0].startswith("1 of 2 lists of split train")
    assert stats.warnings[0] in caplog.text
    write_jsonl(source, [beams_row(0, "a", ["a"])])
    assert build_from(tmp_path, [source], [{"beams": "wide", "partition": "train"}]).warnings == []


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "away", "again"]
LISTS = [
    {"id": str(count), "input": [" ".join(WORDS[: 3 + rank % 10]) + f" {rank}" for rank in range(count)], "output": "a"}
    for count in (1, 2, 7, 12, 25, 40)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("tiny_lm")
    save_tiny_lm(folder)
    return LanguageModel(model=f"{folder}/")


@pytest.mark.parametrize("limit", [16, 60, 200, 333, 5000])
def test_prompts_lose_candidates_from_the_end_until_they_fit(tmp_path: Path, model: LanguageModel, limit: int) -> None:
    stats = build(tmp_path, LISTS, tokenizer=model, max_prompt_tokens=limit)
    tokenizer = load_tokenizer(Path(model.model), model)
    template = read_template(tmp_path / "template.txt")

    def tokens(texts: list[str]) -> int:
        row = {"id": "x", "task": "t", "messages": [{"role": "user", "content": template.render(texts)}], "target": ""}
        return len(encode_prompt(tokenizer, SftRow.model_validate(row).messages))

    items = {row["id"]: row for row in made(tmp_path, "candidates")}
    lengths = []
    for entry in LISTS:
        fitting = [n for n in range(1, len(entry["input"]) + 1) if tokens(entry["input"][:n]) <= limit]
        item = items.get(f"lists:{entry['id']}")
        if not fitting:
            assert item is None
            continue
        assert item is not None
        assert item["input_beams"] == entry["input"][: max(fitting)]
        assert item["cut"] == len(entry["input"]) - max(fitting)
        assert f"Given {max(fitting)} candidates" in item["formatted_input"]
        lengths.append(tokens(item["input_beams"]))
    assert stats.cut_rows == sum(item["cut"] > 0 for item in items.values())
    assert stats.cut_candidates == sum(item["cut"] for item in items.values())
    assert stats.rows == {"in": 6, "out": len(items), "rejected": 6 - len(items)}
    if items:
        assert stats.prompt_tokens is not None
        assert (stats.prompt_tokens.min, stats.prompt_tokens.max) == (min(lengths), max(lengths))
    for row in read_records(tmp_path / "out" / NAMES["rejected"], RejectedRow):
        assert row.reason.startswith("prompt too long: ") and row.reason.endswith(f"max_prompt_tokens {limit}")


def test_the_limits_of_that_test_cut_reject_and_keep(tmp_path: Path, model: LanguageModel) -> None:
    outcomes = {limit: build(tmp_path, LISTS, tokenizer=model, max_prompt_tokens=limit) for limit in (16, 200, 5000)}
    assert outcomes[16].rows["out"] == 0
    assert outcomes[200].cut_rows > 0 and outcomes[200].rows["rejected"] == 0
    assert outcomes[5000].cut_rows == 0 and outcomes[5000].rows["rejected"] == 0


def test_same_input_same_bytes(tmp_path: Path, model: LanguageModel) -> None:
    contents = []
    for _ in range(2):
        build(tmp_path, LISTS, tokenizer=model, max_prompt_tokens=200)
        contents.append({name: (tmp_path / "out" / file).read_bytes() for name, file in NAMES.items()})
    first, second = contents
    assert all(first[name] == second[name] for name in NAMES if name != "meta")
    meta = json.loads(first["meta"])
    assert set(meta["outputs"]) == set(NAMES.values()) - {NAMES["meta"]}
    assert meta["rows"] == {"in": 6, "out": 6, "rejected": 0}


def test_a_split_without_lists_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no list"):
        build(tmp_path, [])
    assert not (tmp_path / "out" / NAMES["rows"]).exists()
    with pytest.raises(UserError, match="no such file of lists"):
        build_from(tmp_path, [tmp_path / "none.jsonl"], [{"lists": "none.jsonl"}])
