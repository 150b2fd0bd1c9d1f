"""Stage `build_slu_data`: commands of any source become prompts with answers; test prompts see no answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scored_runs import nbest_row

from utterflow.config.datasets import SluDataset
from utterflow.errors import UserError
from utterflow.files import write_jsonl
from utterflow.records import RejectedRow, SftRow, read_records
from utterflow.slu.build import SluStats, build_slu_data
from utterflow.slu.inputs import named_texts, source_file
from utterflow.slu.items import SluDataItem
from utterflow.slu.phones import Speller, arpabet, ipa, read_pronunciations
from utterflow.slu.prompts import conversation, read_template

REPOSITORY = Path(__file__).resolve().parents[2]
TEMPLATE = "Meaning?\n\nHeard ({n}):\n{candidates}\n\nThoughts: {rationale}\n\nIntents {intents}; slots {slot_types}"
RAS = "Why?\n\n{candidates}"
KINDS = ("rows", "items", "rejected", "stats", "meta")
LABELS = {"scenario": "alarm", "action": "set", "entities": [{"type": "time", "filler": "six"}]}


def labelled(name: str, *heard: str, **more: Any) -> dict[str, Any]:
    """A row of a foreign file of lists."""
    return {"id": name, "input": list(heard), **LABELS, **more}


def spoken(name: str, *heard: str, **more: Any) -> dict[str, Any]:
    """A row of the workflow's n-best lists."""
    return {**LABELS, **nbest_row(name, "wake me at six", list(heard)), **more}


def reasoned(name: str, rationale: str | None, *heard: str, **more: Any) -> dict[str, Any]:
    """A row with a rationale."""
    made = {
        "nbest_k": 2,
        "input_text": "",
        "gold_intent": None,
        "slot_candidates": [],
        "raw_output": "",
        "topk_valid": rationale is not None,
        "topk_validation_error": None if rationale else "no JSON object",
        "sees_gold": True,
        "final_prediction": "alarm_set",
        "rationale_text": rationale,
    }
    return {"id": name, "hypotheses": list(heard), "text": "wake me at six", **LABELS, **made, **more}


def written(sentence: str, number: int = 7, **more: Any) -> dict[str, Any]:
    """A SLURP record."""
    tokens = [{"surface": word} for word in sentence.split()]
    entities = [{"type": "time", "span": [len(tokens) - 1]}]
    labels = {"scenario": "alarm", "action": "set", "tokens": tokens, "entities": entities}
    return {"slurp_id": number, "sentence": sentence, **labels, **more}


class Place:
    """A folder with templates, and what was made there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file("slu.txt", TEMPLATE)
        self.file("ras.txt", RAS)

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)

    def rows(self, name: str, rows: list[dict[str, Any]]) -> Path:
        write_jsonl(self.folder / name, rows)
        return self.folder / name

    def build(self, split: str, *sources: tuple[dict[str, Any], list[dict[str, Any]]], **changes: Any) -> SluStats:
        """A split made from sources, each with its rows."""
        files = [self.rows(f"source{number}.jsonl", rows) for number, (_, rows) in enumerate(sources)]
        named = [
            {name: str(path) if name in ("lists", "gold_text") else value for name, value in source.items()}
            for path, (source, _) in zip(files, sources, strict=True)
        ]
        templates = {f"{task}_prompt": str(self.folder / f"{task}.txt") for task in ("slu", "ras")}
        cfg = SluDataset.model_validate({"builder": "slu", split: named, **templates, "max_rejected": 1, **changes})
        out = {kind: self.folder / "out" / kind for kind in KINDS}
        return build_slu_data(files, split=split, cfg=cfg, **out, code="c")  # type: ignore[arg-type]

    def made(self) -> list[SftRow]:
        return list(read_records(self.folder / "out" / "rows", SftRow))

    def items(self) -> list[SluDataItem]:
        return list(read_records(self.folder / "out" / "items", SluDataItem))

    def rejected(self) -> dict[str, str]:
        return {row.id: row.reason for row in read_records(self.folder / "out" / "rejected", RejectedRow)}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


LISTS: dict[str, Any] = {"lists": "x"}
SPOKEN: dict[str, Any] = {"corpus": "c", "asr": "a"}
WRITTEN: dict[str, Any] = {"gold_text": "x"}
REASONED: dict[str, Any] = {"rationale": "r", "k": 2}


def test_a_list_becomes_a_prompt_and_an_answer(place: Place) -> None:
    stats = place.build(
        "train", (LISTS, [labelled("a", "wake me at  six", "bake {me}", "c", speaker="s")]), candidates=2
    )
    [row] = place.made()
    assert row.row() == {
        "id": "a",
        "task": "slu",
        "messages": [
            {"role": "user", "content": "<slu>\nMeaning?\n\nHeard (2):\n1. wake me at six\n2. bake {me}"},
        ],
        "target": '{"scenario": "alarm", "action": "set", "entities": [{"type": "time", "filler": "six"}]}',
        "group": "s",
        "source": None,
        "weight": 1.0,
    }
    [item] = place.items()
    assert (item.id, item.source, item.candidates) == ("a", "source0", ["wake me at six", "bake {me}"])
    assert item.hypotheses == ["wake me at six", "bake {me}", "c"]
    assert stats.rows == {"in": 1, "out": 1, "rejected": 0, "disagreeing": 0}
    assert stats.candidates == {2: 1}


def test_sources_are_joined_and_ids_are_unique(place: Place) -> None:
    stats = place.build(
        "train",
        (REASONED, [reasoned("a", "because", "x")]),
        (SPOKEN, [spoken("a", "y"), spoken("b", "z")]),
        (LISTS, [labelled("a", "w"), labelled("ras:a", "w"), {"id": "ras:b"}]),
        (WRITTEN, [written("wake me", 1), written("wake him", 2)]),
        (WRITTEN | {"limit": 1}, [written("wake me", 1), written("wake him", 2)]),
        ras=True,
    )
    ids = [row.id for row in place.made()]
    assert ids == [
        "a", "ras:a", "a#2", "b", "a#3", "ras:a#2", "text:slurp-1", "text:slurp-2", "text:slurp-1#2"
    ]  # fmt: skip
    assert [item.id for item in place.items()] == [name for name in ids if name != "ras:a"]
    assert stats.rows == {"in": 10, "out": 9, "rejected": 1, "disagreeing": 0}
    assert stats.tasks == {"ras": 1, "slu": 8}
    assert stats.sources == {
        "r/k2": {"ras": 1, "slu": 1},
        "c/a": {"slu": 2},
        "source2": {"slu": 2},
        "source3": {"slu": 2},
        "source4": {"slu": 1},
    }
    assert stats.sources.keys() == {item.source for item in place.items()}


def test_rationale_tasks_follow_their_switches(place: Place) -> None:
    rows = [reasoned("a", "because", "x", "y"), reasoned("b", None, "x")]
    place.build("train", (REASONED, rows), ras=True, ras_weight=0.25)
    found = {row.id: (row.task, row.target, row.weight, row.messages[0].content) for row in place.made()}
    slu = '{"scenario": "alarm", "action": "set", "entities": [{"type": "time", "filler": "six"}]}'
    assert found == {
        "a": ("slu", slu, 1.0, "<slu>\nMeaning?\n\nHeard (2):\n1. x\n2. y"),
        "ras:a": ("ras", "because", 0.25, "<ras>\nWhy?\n\n1. x\n2. y"),
        "b": ("slu", slu, 1.0, "<slu>\nMeaning?\n\nHeard (1):\n1. x"),
    }
    assert place.rejected() == {"ras:b": "no rationale: no JSON object"}
    place.build("train", (REASONED, rows), (WRITTEN, [written("go")]), ras=True, rationale_slu=False)
    assert [row.id for row in place.made()] == ["ras:a", "text:slurp-7"]
    assert [item.id for item in place.items()] == ["text:slurp-7"]
    place.build("train", (REASONED, rows))
    assert [row.id for row in place.made()] == ["a", "b"]
    place.build("test", (REASONED, rows), ras=True, rationale_slu=False)
    assert [row.id for row in place.made()] == ["a", "b"]


def test_rationales_in_prompts(place: Place) -> None:
    rows = [reasoned("a", "because {x}\n\nso", "x"), reasoned("b", None, "x"), reasoned("c", "y", "x", sees_gold=False)]
    stats = place.build("train", (REASONED, rows), rationale_in_prompt=True, ras=True)
    prompts = {row.id: row.messages[0].content for row in place.made()}
    assert prompts["a"] == "<slu>\nMeaning?\n\nHeard (1):\n1. x\n\nThoughts: because {x}\n\nso"
    assert prompts["b"] == "<slu>\nMeaning?\n\nHeard (1):\n1. x"
    assert prompts["ras:a"] == "<ras>\nWhy?\n\n1. x"
    assert stats.without_rationale == 1
    assert [(item.rationale_shown, item.sees_gold, item.nbest_k) for item in place.items()] == [
        (True, True, 2),
        (False, True, 2),
        (True, False, 2),
    ]
    assert "1 prompts of split train show a rationale" in stats.warnings[0]


def test_rationales_about_hypotheses_that_the_prompt_does_not_show(place: Place) -> None:
    text = 'Intent: alarm_set. Heard.\nSlots: time "six" (hypothesis 2); date not heard. Heard.'
    rows = [reasoned("a", text, "x", "six"), reasoned("b", "no number", "x", "y")]
    warned = place.build("train", (REASONED, rows), ras=True, candidates=1).warnings
    assert warned == [
        "1 rows have a rationale that names hypotheses which their prompts do not show: raise `candidates`"
    ]
    assert place.build("train", (REASONED, rows), ras=True, candidates=2).warnings == []
    assert place.build("train", (REASONED, rows), candidates=1).warnings == []


def test_agreeing_keeps_rationales_that_end_with_the_gold_intent(place: Place) -> None:
    rows = [reasoned("a", "x", "h"), reasoned("b", "x", "h", final_prediction="play_music"), reasoned("c", "x", "h")]
    rows.append(reasoned("d", None, "h", final_prediction=None))
    rows.append(reasoned("e", "x", "h", fallback_used=True, fallback_reason="no list"))
    stats = place.build("train", (REASONED | {"agreeing": True}, rows), ras=True)
    assert [row.id for row in place.made()] == ["a", "ras:a", "c", "ras:c"]
    assert stats.rows == {"in": 10, "out": 4, "rejected": 0, "disagreeing": 6}
    place.build("train", (REASONED | {"agreeing": True, "limit": 2}, rows))
    assert [row.id for row in place.made()] == ["a"]


PLANTED = ("zqscenario", "zqaction", "zqtype", "zqfiller", "zqtranscript", "zqrationale", "zqraw")


def planted(**more: Any) -> dict[str, Any]:
    """Gold labels, a gold-made rationale and a transcript that stand nowhere else."""
    entities = [{"type": "zqtype", "filler": "zqfiller"}]
    return {"scenario": "zqscenario", "action": "zqaction", "entities": entities, "text": "zqtranscript", **more}


@pytest.mark.parametrize("audio", [False, True])
@pytest.mark.parametrize("input_format", ["asr", "ipa", "arp"])
def test_no_answer_reaches_a_test_prompt(place: Place, audio: bool, input_format: str) -> None:
    gold_made = reasoned(
        "a",
        "zqrationale",
        "wake me",
        audio="a.wav",
        **planted(
            input_text="zqraw",
            gold_intent="zqscenario_zqaction",
            raw_output="zqraw",
            final_prediction="zqscenario_zqaction",
            slot_candidates=[{"type": "zqtype", "filler": "zqfiller"}],
        ),
    )
    sentence = planted(sentence="zqtranscript", sentence_annotation="[zqtype : zqfiller]", intent="zqscenario_zqaction")
    sources = (
        (REASONED, [gold_made]),
        (SPOKEN, [{**spoken("b", "wake me"), **sentence}]),
        (LISTS, [{**labelled("c", "wake me", audio="c.wav"), **sentence, "output": "zqtranscript"}]),
    )
    lexicon = {} if input_format == "asr" else {"lexicon": place.file("lexicon.txt", "wake W EY1 K\nme M IY1\n")}
    changes = {
        "audio": audio,
        "input_format": input_format,
        "labels": [str(place.rows("labels.jsonl", [written("play", scenario="play", action="music")]))],
        "system": place.file("system.txt", "You listen."),
        "ras": True,
        **lexicon,
    }
    place.build("test", *sources, **changes)
    rows = place.made()
    assert [(row.id, row.task) for row in rows] == [("a", "slu"), ("b", "slu"), ("c", "slu")]
    for row in rows:
        prompt = json.dumps([message.row() for message in row.messages])
        assert ("audio" in prompt) == audio
        assert "play_music" in prompt
        assert [text for text in PLANTED if text in prompt] == []
        assert row.target is not None
        assert "zqscenario" in row.target
    with pytest.raises(UserError, match=r"'a' was made with the gold labels in sight(.|\n)*rationale_in_prompt: false"):
        place.build("test", *sources, rationale_in_prompt=True, **changes)
    honest = {**gold_made, "sees_gold": False, "rationale_text": "honest"}
    with pytest.raises(UserError, match="'a' was made"):
        place.build("test", (REASONED, [{**honest, "id": "h"}, gold_made]), rationale_in_prompt=True, **changes)
    place.build("test", (REASONED, [honest]), rationale_in_prompt=True, **changes)
    prompt = json.dumps([message.row() for message in place.made()[0].messages])
    assert "honest" in prompt
    assert [text for text in PLANTED if text in prompt] == []


def test_rows_without_labels_stay_in_test_alone(place: Place) -> None:
    rows = [
        labelled("a", "x"),
        labelled("b", "x", action=None),
        labelled("c", "x", entities=None),
        labelled("d", "x", entities=[]),
    ]
    stats = place.build("test", (LISTS, rows))
    assert [(row.id, row.target is None) for row in place.made()] == [
        ("a", False),
        ("b", True),
        ("c", True),
        ("d", False),
    ]
    assert stats.without_labels == 2
    for split in ("train", "validation"):
        stats = place.build(split, (LISTS, rows))
        assert [row.id for row in place.made()] == ["a", "d"]
        assert (
            list(place.rejected().values()) == [f"no labels: the {split} split needs scenario, action and entities"] * 2
        )
        assert stats.rows == {"in": 4, "out": 2, "rejected": 2, "disagreeing": 0}


def test_recordings_are_parts_before_the_text(place: Place) -> None:
    noise = {"snr_db": 5.0, "color": 1.0, "seed": 3}
    rows = [spoken("a", "x", noise=noise), spoken("b", "x")]
    text = {"type": "text", "text": "<slu>\nMeaning?\n\nHeard (1):\n1. x"}
    stats = place.build("train", (SPOKEN, rows), (WRITTEN, [written("go")]), (LISTS, [labelled("c", "x")]), audio=True)
    assert [row.messages[0].content for row in place.made()] == [
        [{"type": "audio", "path": "a.wav", "noise": noise}, text],
        [{"type": "audio", "path": "b.wav"}, text],
        "<slu>\nMeaning?\n\nHeard (1):\n1. go",
    ]
    assert stats.recordings == 2
    assert place.rejected() == {"c": "no recording: `audio` is on, and the command has none"}
    place.build("test", (SPOKEN, rows), (WRITTEN, [written("go")]), audio=True)
    assert list(place.rejected()) == ["text:slurp-7"]
    assert len(place.made()) == 2


def test_a_model_may_only_listen(place: Place) -> None:
    place.file("slu.txt", "Meaning?")
    place.build("train", (SPOKEN, [spoken("a", "x")]), audio=True, candidates=0)
    assert place.made()[0].messages[0].content == [
        {"type": "audio", "path": "a.wav"},
        {"type": "text", "text": "<slu>\nMeaning?"},
    ]
    with pytest.raises(UserError, match=r"no field `\{candidates\}`"):
        place.build("train", (SPOKEN, [spoken("a", "x")]), (WRITTEN, [written("go")]), audio=True, candidates=0)


def test_rows_without_candidates_are_rejected_unless_heard(place: Place) -> None:
    rows = [reasoned("a", "b", audio="a.wav")]
    place.build("test", (REASONED, rows))
    assert place.rejected() == {"a": "no candidates: the list is empty"}
    place.build("test", (REASONED, rows), audio=True)
    assert place.made()[0].messages[0].content[1] == {"type": "text", "text": "<slu>\nMeaning?"}  # type: ignore[index]


def test_sentences_as_written_in_the_test_split_are_pointed_out(place: Place) -> None:
    stats = place.build("test", (WRITTEN, [written("wake me")]))
    assert place.made()[0].messages[0].content == "<slu>\nMeaning?\n\nHeard (1):\n1. wake me"
    assert stats.warnings == ["1 test rows show the sentence as written (`gold_text`), not what was heard"]


def test_the_group_is_the_speaker_then_the_group_then_the_sentence(place: Place) -> None:
    rows = [
        labelled("a", "x", speaker="s", group="g", slurp_id=1),
        labelled("b", "x", group="g", slurp_id=1),
        labelled("c", "x", slurp_id=1),
        labelled("d", "x"),
    ]
    place.build("train", (LISTS, rows))
    assert [row.group for row in place.made()] == ["s", "g", "1", None]


def test_labels_are_listed_and_what_they_lack_is_counted(place: Place) -> None:
    inventory = [written("wake me", 1), written("play it", 2, scenario="play", action="music")]
    inventory.append(written("x", 3, entities=[{"type": "zz", "span": [9]}], action="broken"))
    labels = str(place.rows("labels.jsonl", inventory))
    odd = labelled("b", "x", scenario="iot", entities=[{"type": "color", "filler": "red"}])
    stats = place.build("train", (LISTS, [labelled("a", "x"), odd, {**odd, "id": "c"}]), labels=[labels])
    text = str(place.made()[0].messages[0].content)
    assert text.endswith("\n\nIntents alarm_set, play_music; slots time")
    assert (stats.intents, stats.intents_outside_labels) == (2, {"iot_set": 2})
    assert stats.slot_types_outside_labels == {"color": 2}
    assert stats.warnings == ["2 rows have one of 1 intents that `labels` lacks"]
    assert place.build("train", (LISTS, [labelled("a", "x")])).intents_outside_labels is None


def test_unreadable_rows_are_rejected_and_too_many_end_the_job(place: Place) -> None:
    rows = [labelled("a", "x"), labelled("b", "x", entities="none"), labelled("c", "x")]
    stats = place.build("train", (LISTS, rows))
    assert [row.id for row in place.made()] == ["a", "c"]
    assert stats.rows == {"in": 3, "out": 2, "rejected": 1, "disagreeing": 0}
    [refused] = read_records(place.folder / "out" / "rejected", RejectedRow)
    assert refused.where == f"{place.folder / 'source0.jsonl'}, line 2"
    with pytest.raises(UserError, match="1 of 3 rows were rejected"):
        place.build("train", (LISTS, rows), max_rejected=0.1)
    with pytest.raises(UserError, match="there is no command"):
        place.build("train", (LISTS, []))


def test_the_same_inputs_give_the_same_bytes(place: Place) -> None:
    sources = ((REASONED, [reasoned("a", "b", "x")]), (WRITTEN, [written("wake me")]))
    contents = []
    for _ in range(2):
        place.build("train", *sources, ras=True)
        contents.append([(place.folder / "out" / kind).read_bytes() for kind in KINDS if kind != "meta"])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("task", "text", "problem"),
    [
        ("slu", "{candidates} {nbest}", r"unknown field `\{nbest\}`(.|\n)*\{n\}, \{candidates\}, .*\{rationale\}"),
        ("ras", "{candidates} {rationale}", r"unknown field `\{rationale\}` in the template of <ras> prompts"),
        ("slu", "{candidates:>3}", "unknown field"),
        ("slu", "{} {candidates}", "unknown field"),
        ("slu", "{candidates", "unbalanced braces"),
        ("slu", "Meaning?", r"no field `\{candidates\}`"),
        ("slu", "{candidates}", r"no field `\{rationale\}`"),
        ("slu", " \n", "the file is empty"),
    ],
)
def test_template_faults_are_named(place: Place, task: str, text: str, problem: str) -> None:
    path = place.file(f"{task}.txt", text)
    with pytest.raises(UserError, match=problem) as caught:
        place.build("train", (REASONED, [reasoned("a", "b", "x")]), ras=True, rationale_in_prompt=True)
    assert str(path) in str(caught.value)


def test_shipped_templates_leave_out_what_a_row_lacks(place: Place) -> None:
    for task in ("slu", "ras"):
        template = read_template(REPOSITORY / f"workflow/prompts/{task}.txt", task, ["candidates"])  # type: ignore[arg-type]
        empty = dict.fromkeys(("n", "candidates", "rationale", "intents", "slot_types"), "")
        assert "\n\n" not in template.render(empty)
        full = template.render({name: f"<{name}>" for name in empty})
        assert all(f"<{name}>" in full for name in template.fields)
        assert template.fields >= {"candidates", "intents", "slot_types"}
    assert '{"scenario": "...", ' in read_template(REPOSITORY / "workflow/prompts/slu.txt", "slu").render(empty)


def test_the_system_message_comes_first(place: Place) -> None:
    messages = conversation("slu", "x", system="You listen.", audio=None, noise=None)
    assert [(message.role, message.content) for message in messages] == [
        ("system", "You listen."),
        ("user", "<slu>\nx"),
    ]


LEXICON = """;;; a comment
the  DH AH0
the(2)  DH IY0
THERE  DH EH1 R
bird  B ER1 D  # an animal
father F AA1 DH ER0 |
'em  AH0 M
a.m.  EY2 EH1 M
#hash-mark  HH AE1 SH
"""


def test_lexicon_in_the_forms_that_there_are(place: Place) -> None:
    path = Path(place.file("lexicon.txt", LEXICON))
    words = read_pronunciations(path, "ipa")
    assert words == {
        "the": ("DH", "AH0"),
        "there": ("DH", "EH1", "R"),
        "bird": ("B", "ER1", "D"),
        "father": ("F", "AA1", "DH", "ER0"),
        "'em": ("AH0", "M"),
        "a.m.": ("EY2", "EH1", "M"),
        "#hash-mark": ("HH", "AE1", "SH"),
    }
    assert [ipa(words[name]) for name in ("the", "bird", "father")] == ["ðə", "bɝd", "fɑðɚ"]
    assert arpabet(words["father"]) == "F AA DH ER"
    path.write_bytes(b"the DH AH0\nd\xe9j\xe0 D EY2\n")
    assert list(read_pronunciations(path, "ipa")) == ["the"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("the DH AH0\nbird\n", r"no phones for 'bird'(.|\n)*line 2"),
        ("the DH QQ0\n", "phone 'QQ0' of 'the' is not in ARPABET"),
        (";;; nothing\n", "no words in this lexicon"),
    ],
)
def test_lexicon_faults_are_named(place: Place, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_pronunciations(Path(place.file("lexicon.txt", text)), "ipa")
    if "QQ0" in text:
        assert read_pronunciations(place.folder / "lexicon.txt", "arp") == {"the": ("DH", "QQ0")}


def test_candidates_in_phones(place: Place) -> None:
    lexicon = place.file("lexicon.txt", LEXICON)
    rows = [labelled("a", "The bird, There!", "\N{RIGHT SINGLE QUOTATION MARK}em at 6 a.m. - the zyx? zyx")]
    stats = place.build("train", (LISTS, rows), input_format="ipa", lexicon=lexicon)
    assert place.items()[0].candidates == ["ðə bɝd ðɛɹ", "əm at 6 eɪɛm ðə zyx? zyx"]
    assert stats.unpronounced is not None
    assert stats.unpronounced.row() == {
        "words": 10, "without": 4, "distinct": 3, "commonest": {"zyx": 2, "6": 1, "at": 1}
    }  # fmt: skip
    stats = place.build("train", (LISTS, rows), input_format="arp", lexicon=lexicon)
    assert place.items()[0].candidates[0] == "DH AH | B ER D | DH EH R"
    assert place.items()[0].hypotheses[0] == "The bird, There!"
    place.build("train", (WRITTEN, [written("the bird")]), input_format="arp", lexicon=lexicon)
    assert str(place.made()[0].messages[0].content).endswith("1. DH AH | B ER D")
    assert Speller({}, "ipa").spell(" - ") == ""


def test_words_are_counted_once_per_command(place: Place) -> None:
    lexicon = place.file("lexicon.txt", LEXICON)
    rows = [reasoned("a", "because", "the zyx")]
    stats = place.build("train", (REASONED, rows), ras=True, input_format="ipa", lexicon=lexicon)
    assert len(place.made()) == 2
    assert stats.unpronounced is not None
    assert (stats.unpronounced.words, stats.unpronounced.without) == (2, 1)


def test_files_that_the_rule_reads() -> None:
    cfg = SluDataset.model_validate(
        {
            "builder": "slu",
            "train": [REASONED, SPOKEN, {"lists": "l.jsonl"}, {"gold_text": "g.jsonl"}],
            "labels": ["x.jsonl"],
            "slu_prompt": "s.txt",
            "ras_prompt": "r.txt",
            "system": "y.txt",
        }
    )
    assert [source_file(source) for source in cfg.train] == [
        "results/rationale/r/k2/rationale.jsonl",
        "results/asr/c/a/nbest.jsonl",
        "l.jsonl",
        "g.jsonl",
    ]
    assert named_texts(cfg) == ["s.txt", "y.txt", "x.jsonl"]
    assert named_texts(cfg.model_copy(update={"ras": True})) == ["s.txt", "r.txt", "y.txt", "x.jsonl"]
