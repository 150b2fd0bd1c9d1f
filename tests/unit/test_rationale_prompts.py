"""What the prompts of a rationale show, and what they never show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripted_llm import INTENTS, SLOT_TYPES

from utterflow.config.rationale import Rationale
from utterflow.errors import UserError
from utterflow.rationale.answers import INTENT_PRUNING, ONE_STAGE, SLOT_CANDIDATES, SLOT_GROUNDING, schema_of
from utterflow.rationale.evidence import Case, Reference, case_of
from utterflow.rationale.inputs import prompt_files
from utterflow.rationale.prompts import Prompts, intent_count, read_prompts, slot_count
from utterflow.records import Entity, Noise, SluItem
from utterflow.slu.labels import Inventory

INVENTORY = Inventory(INTENTS, SLOT_TYPES)
ITEM = SluItem(
    id="a",
    hypotheses=["wake me at five", "make me at five", "wake me at nine"],
    text="wake me at five",
    scenario="alarm",
    action="set",
    entities=[Entity(type="time", filler="five")],
)
CASE = case_of(ITEM, 2, "nbest", True, INVENTORY)


def section(**changes) -> Rationale:
    return Rationale.model_validate({"lists": "l", "labels": ["x"], "server": "s", **changes})


@pytest.fixture
def shipped(repository, monkeypatch):
    """The shipped prompts under any settings."""
    monkeypatch.chdir(repository)

    def read(inventory=INVENTORY, **changes) -> Prompts:
        return read_prompts([Path(path) for path in prompt_files(section(**changes))], inventory)

    return read


def text_of(messages) -> str:
    content = messages[-1].content
    return content if isinstance(content, str) else content[-1]["text"]


def test_one_stage_shows_evidence_labels_and_the_whole_inventory(shipped):
    system, user = shipped().messages(ONE_STAGE, CASE)
    assert (system.role, user.role) == ("system", "user")
    prompt = text_of([user])
    assert prompt.endswith(
        "Now this command. Hypotheses:\n1. wake me at five\n2. make me at five\n"
        "Reference intent: alarm_set\nReference slots: time = five\nAnswer:"
    )
    assert f"Intents: {', '.join(INTENTS)}\n" in prompt
    assert f"Slot types: {', '.join(SLOT_TYPES)}\n" in prompt
    assert "exactly 5 different intents" in prompt
    assert "wake me at nine" not in prompt


def test_few_shot_is_on_by_default_and_its_answers_pass_the_schema(shipped):
    from utterflow.llm.structured import json_fault

    with_example, without = shipped(), shipped(few_shot=False)
    assert (len(with_example.examples), without.examples) == (1, ())
    assert "An example" in text_of(with_example.messages(ONE_STAGE, CASE))
    assert "An example" not in text_of(without.messages(ONE_STAGE, CASE))
    example = with_example.examples[0]
    labels = {"intents": example.topk_intents, "slot_types": example.topk_slot_types}
    for shape in (ONE_STAGE, SLOT_CANDIDATES, INTENT_PRUNING, SLOT_GROUNDING):
        schema = schema_of(shape, **labels, intent_count=5, slot_count=5)
        for audio in (False, True):
            assert json_fault(example.answer(shape, audio=audio), schema) is None
    assert [item["slot_type"] for item in json.loads(example.answer(ONE_STAGE, audio=False))["slot_grounding"]] == [
        slot.type for slot in example.slots
    ]


def test_examples_answer_to_every_question_keeps_the_rules(shipped):
    """The example is what a model copies: it must pass the checks itself."""
    from utterflow.rationale.answers import check_intent_pruning, check_one_stage, check_slot_grounding

    example = shipped().examples[0]
    check_one_stage(
        example.answer(ONE_STAGE, audio=False),
        intents=example.topk_intents,
        slot_types=example.topk_slot_types,
        count=5,
        reference=example.intent,
        reference_types=[slot.type for slot in example.slots],
        hypotheses=len(example.hypotheses),
    )
    check_intent_pruning(example.answer(INTENT_PRUNING, audio=False), topk_intents=example.topk_intents)
    check_slot_grounding(
        example.answer(SLOT_GROUNDING, audio=False),
        topk_slot_types=example.topk_slot_types,
        hypotheses=len(example.hypotheses),
    )


def test_a_recording_stands_for_the_hypotheses(shipped, tmp_path):
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF")
    noise = Noise(snr_db=10.0, color=0.0, seed=1)
    item = ITEM.model_copy(update={"audio": str(sound), "noise": noise})
    case = case_of(item, 2, "audio", True, INVENTORY)
    for stages, shapes in (("one", [ONE_STAGE]), ("two", [SLOT_CANDIDATES])):
        for shape in shapes:
            message = shipped(stages=stages, evidence="audio").messages(shape, case)[-1]
            assert message.content[0] == {"type": "audio", "path": str(sound), "noise": noise.row()}
            prompt = message.content[1]["text"]
            assert "Hypotheses" not in prompt and "hypothesis" not in prompt.replace("source_hypothesis", "")
            assert "One hears: wake me up at seven" in prompt
            assert not any(text in prompt for text in ITEM.hypotheses)
    assert case.text == str(sound)


def test_second_stage_shows_candidates_and_no_reference(shipped):
    prompts = shipped(stages="two")
    pruning = text_of(prompts.messages(INTENT_PRUNING, CASE, topk_intents=["alarm_set", "news_query"]))
    assert "Proposed intents: alarm_set, news_query\nAnswer:" in pruning
    grounding = text_of(prompts.messages(SLOT_GROUNDING, CASE, topk_slot_types=["time", "date"]))
    assert "Proposed slot types: time, date\nAnswer:" in grounding
    hidden = Case(CASE.id, CASE.hypotheses, None, None)
    assert pruning == text_of(prompts.messages(INTENT_PRUNING, hidden, topk_intents=["alarm_set", "news_query"]))
    assert grounding == text_of(prompts.messages(SLOT_GROUNDING, hidden, topk_slot_types=["time", "date"]))


def test_counts_follow_the_inventory(shipped):
    small = Inventory(("a_b", "c_d"), ("time",))
    assert (intent_count(small), intent_count(INVENTORY)) == (2, 5)
    case = Case("a", ("x",), None, Reference("a_b", ()))
    many = Case("a", ("x",), None, Reference("a_b", tuple(Entity(type=t, filler="f") for t in SLOT_TYPES)))
    assert (slot_count(small, case), slot_count(INVENTORY, case), slot_count(INVENTORY, many)) == (1, 5, 7)
    assert "exactly 2 different intents" in text_of(shipped(inventory=small).messages(ONE_STAGE, case))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hypotheses": []}, "no hypotheses"),
        ({"scenario": None}, "no labels"),
        ({"entities": None}, "no labels"),
        ({"scenario": "oven"}, "unknown intent: oven_set"),
        ({"entities": [Entity(type="hour", filler="five")]}, "unknown slot type: hour"),
    ],
)
def test_rows_that_cannot_be_used(changes, why):
    item = ITEM.model_copy(update=changes)
    with pytest.raises(ValueError, match=why):
        case_of(item, 5, "nbest", True, INVENTORY)
    if "hypotheses" not in changes:
        assert case_of(item, 5, "nbest", False, INVENTORY).reference is None


def test_rows_without_a_recording_cannot_be_heard(tmp_path):
    with pytest.raises(ValueError, match="no recording: the row has no `audio`"):
        case_of(ITEM, 5, "audio", True, INVENTORY)
    gone = ITEM.model_copy(update={"audio": str(tmp_path / "gone.wav")})
    with pytest.raises(ValueError, match=r"no recording: .*gone.wav is missing"):
        case_of(gone, 5, "audio", True, INVENTORY)


@pytest.fixture
def folder(repository, tmp_path) -> Path:
    return Path(shutil.copytree(repository / "workflow/prompts/rationale", tmp_path / "prompts"))


def read(folder: Path) -> Prompts:
    return read_prompts([Path(path) for path in prompt_files(section(prompts=str(folder)))], INVENTORY)


@pytest.mark.parametrize(
    ("name", "text", "what", "where"),
    [
        ("one_stage.txt", None, "file not found", "one_stage.txt"),
        ("one_stage.txt", " \n", "the template is empty", "one_stage.txt"),
        ("one_stage.txt", "fine\n{% if %}", "not a Jinja template", "one_stage.txt, line 2"),
        ("system.txt", b"\xff", "not UTF-8", "system.txt"),
        ("few_shot.json", None, "file not found", "few_shot.json"),
        ("few_shot.json", "{}", "expected a list of examples", "few_shot.json"),
        ("few_shot.json", '[{"transcript": "a"}]', "field `hypotheses` of an example", "few_shot.json"),
    ],
)
def test_faults_of_the_files_are_plain(folder, name, text, what, where):
    (folder / name).unlink() if text is None else (folder / name).write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    with pytest.raises(UserError) as caught:
        read(folder)
    assert what in caught.value.what and str(caught.value.where).endswith(where)


ENDLESS = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ gold }}",
        "{{ reference.transcript }}",
        "{{ intents.x.y }}",
        "{{ intents + 1 }}",
        "{{ intents | dictsort }}",
        ENDLESS,
    ],
)
def test_a_template_cannot_use_what_it_is_not_given(folder, text):
    (folder / "one_stage.txt").write_text(text)
    with pytest.raises(UserError, match="the template cannot be filled") as caught:
        read(folder).messages(ONE_STAGE, CASE)
    assert str(caught.value.where).endswith("one_stage.txt")


def test_texts_are_no_templates_and_an_empty_system_is_left_out(folder):
    (folder / "system.txt").write_text("")
    case = Case("a", ("{{ 1 }} {% x",), None, None)
    (message,) = read(folder).messages(ONE_STAGE, case)
    assert "1. {{ 1 }} {% x\n" in message.content


def test_only_the_files_of_the_stages_are_inputs():
    assert prompt_files(section(few_shot=False)) == [
        "workflow/prompts/rationale/system.txt",
        "workflow/prompts/rationale/one_stage.txt",
    ]
    assert len(prompt_files(section(stages="two"))) == 6
