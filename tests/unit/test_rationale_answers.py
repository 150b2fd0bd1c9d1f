"""What the answers to the questions of a rationale must be, and what stands in for those that are not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from scripted_llm import INTENTS, SLOT_TYPES, good_answers

from utterflow.llm.structured import json_fault
from utterflow.rationale import fallback
from utterflow.rationale.answers import (
    INTENT_CANDIDATES,
    INTENT_PRUNING,
    ONE_STAGE,
    SLOT_CANDIDATES,
    SLOT_GROUNDING,
    Shape,
    check_intent_candidates,
    check_intent_pruning,
    check_one_stage,
    check_slot_candidates,
    check_slot_grounding,
    schema_of,
)
from utterflow.rationale.evidence import Case, Reference, find_span
from utterflow.rationale.text import rationale_text
from utterflow.records import Entity

TOPK = good_answers()["intent_candidates"]["topk_intents"]
SHAPES = (ONE_STAGE, INTENT_CANDIDATES, SLOT_CANDIDATES, INTENT_PRUNING, SLOT_GROUNDING)
GOLD = Reference("alarm_set", (Entity(type="time", filler="five pm"), Entity(type="date", filler="today")))


def one_stage(answer: Any, reference: str | None = "alarm_set", types: tuple[str, ...] = ("time", "date")) -> Any:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return check_one_stage(
        text,
        intents=INTENTS,
        slot_types=SLOT_TYPES,
        count=5,
        reference=reference,
        reference_types=types,
        hypotheses=3,
    )


def test_a_good_answer_passes_as_it_is():
    answer = good_answers()["one_stage"]
    assert one_stage(answer) == answer
    assert one_stage({**answer, "extra": 1}) == answer
    assert list(one_stage(answer)) == list(ONE_STAGE.keys)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_schema_takes_good_answers_and_no_unknown_label(shape: Shape):
    schema = schema_of(shape, intents=INTENTS, slot_types=SLOT_TYPES, intent_count=5, slot_count=5)
    text = json.dumps(good_answers()[shape.name])
    assert json_fault(text, schema) is None
    for label in ("alarm_set", "time"):
        if f'"{label}"' in text:
            assert json_fault(text.replace(f'"{label}"', '"zzz"'), schema)
    missing = json.dumps({key: value for key, value in good_answers()[shape.name].items() if key != shape.keys[-1]})
    assert json_fault(missing, schema)


def changed(**changes: Any) -> dict[str, Any]:
    return good_answers()["one_stage"] | changes


def ruled(*labels: str) -> list[dict[str, str]]:
    return [{"intent": label, "reason": "because"} for label in labels]


def grounding(**changes: Any) -> dict[str, Any]:
    return {
        "slot_type": "time",
        "supported": True,
        "best_span": "five pm",
        "source_hypothesis": 1,
        **changes,
    }


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[1]", "expected a JSON object, found list"),
        ('{"topk_intents": NaN}', "NaN is not a JSON value"),
        ('{"topk_intents": ["alarm', "not valid JSON"),
        ('{"a": ' + "[" * 100_000, "nested too deep"),
        ('{"topk_intents": ["\\ud800"]}', "half of a surrogate pair"),
        ({}, "`topk_intents`: field required"),
        (changed(topk_intents="alarm_set"), "`topk_intents`: input should be a valid list"),
        (changed(intent_rationalization="  "), "`intent_rationalization`: string should have at least 1 character"),
        (changed(topk_intents=TOPK[:4]), "`topk_intents` has 4 entries, not 5"),
        (changed(topk_intents=[*TOPK, "lists_remove"]), "`topk_intents` has 6 entries, not 5"),
        (changed(topk_intents=[*TOPK[:4], TOPK[0]]), "`topk_intents` has 'alarm_set' twice"),
        (changed(topk_intents=[*TOPK[:4], "alarm_sing"]), "`topk_intents`: 'alarm_sing' is not in the list"),
        (
            changed(topk_intents=["weather_query", *TOPK[1:]], final_prediction="weather_query"),
            "`topk_intents` is without the reference 'alarm_set'",
        ),
        (changed(final_prediction="weather_query"), "`final_prediction`: 'weather_query' is not one of the candidates"),
        (changed(intent_elimination=ruled(*TOPK[1:4])), "`intent_elimination` is without 'news_query'"),
        (changed(intent_elimination=ruled(*TOPK)), "`intent_elimination`: 'alarm_set' is the final one"),
        (
            changed(intent_elimination=ruled(*TOPK[1:], "weather_query")),
            "'weather_query' is not one of the candidates",
        ),
        (changed(intent_elimination=ruled(*TOPK[1:], TOPK[1])), "`intent_elimination` has 'alarm_query' twice"),
        (changed(intent_elimination=[{"intent": "alarm_query", "reason": ""}]), "`intent_elimination.0.reason`"),
        (changed(slot_grounding=[grounding()]), "`slot_grounding` is without 'date'"),
        (changed(slot_grounding=[grounding(slot_type="hour")]), "`slot_grounding`: 'hour' is not in the list"),
        (
            changed(slot_grounding=[grounding(best_span=None), grounding(slot_type="date")]),
            "'time' is supported and has no `best_span`",
        ),
        (
            changed(slot_grounding=[grounding(source_hypothesis=4), grounding(slot_type="date")]),
            "there is no hypothesis 4, they are 1 to 3",
        ),
        (changed(slot_grounding=[grounding(supported="perhaps")]), "`slot_grounding.0.supported`"),
    ],
)
def test_what_is_wrong_is_said(answer, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        one_stage(answer)


def test_several_faults_are_said_together_and_not_without_end():
    answer = changed(topk_intents=["a", "b", "c", "d", "e", "f", "g", "h"])
    with pytest.raises(ValueError, match="8 entries") as caught:
        one_stage(answer)
    assert "'a' is not in the list" in str(caught.value)
    assert len(str(caught.value).split("; ")) == 6


def test_without_gold_any_intent_may_be_missing():
    topk = ["weather_query", *TOPK[1:]]
    answer = changed(
        topk_intents=topk, final_prediction="weather_query", intent_elimination=ruled(*topk[1:]), slot_grounding=[]
    )
    assert one_stage(answer, reference=None, types=())["final_prediction"] == "weather_query"


def test_fewer_intents_than_five():
    answer = changed(
        topk_intents=["alarm_set", "alarm_query"], intent_elimination=ruled("alarm_query"), slot_grounding=[]
    )
    text = json.dumps(answer)
    few = {"intents": ("alarm_query", "alarm_set"), "slot_types": (), "reference": None, "reference_types": ()}
    assert check_one_stage(text, count=2, hypotheses=1, **few) == answer
    schema = schema_of(
        ONE_STAGE, intents=("alarm_query", "alarm_set"), slot_types=("time",), intent_count=2, slot_count=1
    )
    assert json_fault(text, schema) is None


def test_what_is_not_supported_has_no_span_and_a_recording_no_hypotheses():
    answer = changed(slot_grounding=[grounding(supported=False), grounding(slot_type="date")])
    first, second = one_stage(answer)["slot_grounding"]
    assert (first["best_span"], first["source_hypothesis"], second["source_hypothesis"]) == (None, None, 1)
    listened = check_slot_grounding(
        json.dumps({"slot_grounding": [grounding(source_hypothesis=9)], "slot_rationalization": "heard"}),
        topk_slot_types=["time"],
        hypotheses=0,
    )
    assert listened["slot_grounding"] == [grounding(source_hypothesis=None)]


def test_checks_of_the_four_questions():
    good = {name: json.dumps(answer) for name, answer in good_answers().items()}
    intents = {"intents": INTENTS, "count": 5}
    types = {"slot_types": SLOT_TYPES, "count": 5}
    slots = good_answers()["slot_candidates"]["topk_slot_types"]
    assert check_intent_candidates(good["intent_candidates"], reference="alarm_set", **intents)["topk_intents"] == TOPK
    assert check_slot_candidates(good["slot_candidates"], reference_types=("time", "date"), **types)
    assert check_intent_pruning(good["intent_pruning"], topk_intents=TOPK)["final_prediction"] == "alarm_set"
    assert check_slot_grounding(good["slot_grounding"], topk_slot_types=slots, hypotheses=3)
    with pytest.raises(ValueError, match="without the reference 'weather_query'"):
        check_intent_candidates(good["intent_candidates"], reference="weather_query", **intents)
    with pytest.raises(ValueError, match="without the reference 'list_name'"):
        check_slot_candidates(good["slot_candidates"], reference_types=("list_name",), **types)
    with pytest.raises(ValueError, match="`final_prediction`: 'alarm_set' is not one of the candidates"):
        check_intent_pruning(good["intent_pruning"], topk_intents=TOPK[1:])
    with pytest.raises(ValueError, match="without 'weather_descriptor'"):
        check_slot_grounding(good["slot_grounding"], topk_slot_types=[*slots, "weather_descriptor"], hypotheses=3)
    with pytest.raises(ValueError, match="'song_name' is not in the list"):
        check_slot_grounding(good["slot_grounding"], topk_slot_types=slots[:4], hypotheses=3)


def case(reference: Reference | None = GOLD, *hypotheses: str) -> Case:
    return Case("a", hypotheses or ("wake me at Five PM", "set an alarm"), None, reference)


def test_fallbacks_pass_the_checks_that_answers_must_pass():
    for reference in (GOLD, None):
        row = case(reference)
        intents = fallback.intent_candidates(row, INTENTS, 5)
        slots = fallback.slot_candidates(row, SLOT_TYPES, 5)
        pruned = fallback.intent_pruning(row, intents["topk_intents"])
        grounded = fallback.slot_grounding(row, slots["topk_slot_types"])
        wanted = reference.intent if reference else None
        check_intent_candidates(json.dumps(intents), intents=INTENTS, count=5, reference=wanted)
        types = reference.slot_types if reference else ()
        check_slot_candidates(json.dumps(slots), slot_types=SLOT_TYPES, count=5, reference_types=types)
        check_intent_pruning(json.dumps(pruned), topk_intents=intents["topk_intents"])
        check_slot_grounding(json.dumps(grounded), topk_slot_types=slots["topk_slot_types"], hypotheses=2)


def test_fallbacks_go_by_the_words_that_were_heard():
    assert fallback.intent_candidates(case(None), INTENTS, 2)["topk_intents"] == ["alarm_query", "alarm_set"]
    pruned = fallback.intent_pruning(case(), ["alarm_query", "news_query", "alarm_set"])
    assert pruned["final_prediction"] == "alarm_set"
    assert [item["intent"] for item in pruned["intent_elimination"]] == ["alarm_query", "news_query"]
    far = Reference("weather_query", ())
    assert "weather_query" in fallback.intent_candidates(case(far), INTENTS, 2)["topk_intents"]
    assert fallback.intent_pruning(case(far), INTENTS)["final_prediction"] == "alarm_set"


def test_fallback_grounds_reference_slots_where_they_are_heard():
    found = fallback.slot_grounding(case(), ["date", "person", "time"])["slot_grounding"]
    assert found == [
        {"slot_type": "time", "supported": True, "best_span": "Five PM", "source_hypothesis": 1},
        {"slot_type": "date", "supported": False, "best_span": None, "source_hypothesis": None},
        {"slot_type": "person", "supported": False, "best_span": None, "source_hypothesis": None},
    ]
    blind = fallback.slot_grounding(case(None), ["time"])["slot_grounding"]
    assert [item["supported"] for item in blind] == [False]


def test_fallback_of_a_recording_claims_nothing():
    listened = Case("a", (), {"path": "a.wav"}, None)
    pruned = fallback.intent_pruning(listened, ["b_x", "a_x"])
    assert pruned["final_prediction"] == "a_x"
    assert pruned["intent_elimination"] == [{"intent": "b_x", "reason": "No reason was given."}]


def test_find_span_needs_whole_words_in_order():
    assert find_span("at Five  pm today", "five PM") == "Five pm"
    assert find_span("at fifty five pms", "five pm") is None
    assert find_span("pm five", "five pm") is None
    assert find_span("five", "") is None


def test_text_names_final_intent_the_others_and_the_slots():
    answer = good_answers()["one_stage"]
    answer["slot_grounding"].append(grounding(slot_type="person", best_span="a\nb", source_hypothesis=None))
    answer["intent_elimination"] = [{"intent": "alarm_query", "reason": 'one asks\nwith "is there."'}]
    assert rationale_text(answer).splitlines() == [
        "Intent: alarm_set. wake me orders an alarm.",
        'Not alarm_query: one asks with "is there."',
        'Slots: time "five pm" (hypothesis 1); date not heard; person "a b". five pm is in the first hypothesis.',
    ]
    assert "Slots: none. nothing." in rationale_text(answer | {"slot_grounding": [], "slot_rationalization": "nothing"})
