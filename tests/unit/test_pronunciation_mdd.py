"""Outcomes of mispronunciation detection and diagnosis, against alignments worked out by hand."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from utterflow.pronunciation.mdd import Position, count_outcomes, overlap, positions, ratios
from utterflow.pronunciation.score import mdd_scores

PHONES = st.lists(st.sampled_from(["A", "B", "C", "<unk>"]), max_size=9)


def outcomes(canonical: str, human: str, model: str) -> dict[str, int]:
    return dict(count_outcomes(positions(canonical.split(), human.split(), model.split())))


@pytest.mark.parametrize(
    ("human", "model", "expected"),
    [
        # Nothing wrong, and the model says so; or says otherwise in each of the three ways.
        ("K AE T", "K AE T", {"TA": 3}),
        ("K AE T", "K EH T", {"TA": 2, "FR": 1}),
        ("K AE T", "K AE", {"TA": 2, "FR": 1}),
        ("K AE T", "K AE T AH", {"TA": 3, "FR": 1}),
        # A substitution: accepted, diagnosed, taken for another phone, for a deletion.
        ("K EH T", "K AE T", {"TA": 2, "FA": 1}),
        ("K EH T", "K EH T", {"TA": 2, "CD": 1}),
        ("K EH T", "K IH T", {"TA": 2, "DE": 1}),
        ("K EH T", "K T", {"TA": 2, "DE": 1}),
        # A deletion: accepted, diagnosed, taken for a substitution.
        ("K AE", "K AE T", {"TA": 2, "FA": 1}),
        ("K AE", "K AE", {"TA": 2, "CD": 1}),
        ("K AE", "K AE D", {"TA": 2, "DE": 1}),
        # An insertion: accepted, diagnosed, taken for another phone.
        ("K AE T AH", "K AE T", {"TA": 3, "FA": 1}),
        ("K AE T AH", "K AE T AH", {"TA": 3, "CD": 1}),
        ("K AE T AH", "K AE T IH", {"TA": 3, "DE": 1}),
        # Several at once.
        ("K EH T AH", "K AE AH", {"TA": 1, "FA": 1, "FR": 1, "CD": 1}),
        ("EH T AH", "K IH AH", {"FA": 1, "DE": 1, "FR": 1, "CD": 1}),
        ("K AE T", "", {"FR": 3}),
        ("K EH", "", {"FR": 1, "DE": 1, "CD": 1}),
        # Two phones for one: a substitution and an insertion.
        ("K EH R T", "K EH T", {"TA": 2, "FA": 1, "CD": 1}),
        # The annotator could not tell the phone, nor could the model.
        ("K <unk> T", "K <unk> T", {"TA": 2, "CD": 1}),
        ("K <unk> T", "K AE T", {"TA": 2, "FA": 1}),
    ],
)
def test_by_hand(human: str, model: str, expected: dict[str, int]) -> None:
    assert outcomes("K AE T", human, model) == expected


def test_the_third_alignment_finds_the_phone_that_was_said() -> None:
    """T T said as T D: the model's only phone, D, is the wrong one that was said; the other T is lost."""
    assert outcomes("T T", "T D", "D") == {"FR": 1, "CD": 1}


def test_a_position_has_all_three_phones_and_the_kind_of_error() -> None:
    assert positions(["K", "AE", "T"], ["K", "EH", "T", "S"], ["K", "EH", "N", "T"]) == [
        Position("K", "K", "K", "correct", "TA"),
        Position("AE", "EH", "EH", "substitution", "CD"),
        Position("T", "T", "T", "correct", "TA"),
        Position(None, "S", None, "insertion", "FA"),
        Position(None, None, "N", "insertion", "FR"),
    ]
    assert mdd_scores(positions(["A"], ["A", "B"], ["A"])).kinds["insertion"] == {
        "FR": 0, "FA": 1, "TR": 0, "CD": 0, "DE": 0,
    }  # fmt: skip


EVENT = st.one_of(
    st.tuples(st.just("slot"), st.sampled_from(["ok", "x", "y", ""]), st.sampled_from(["ok", "x", "y", ""])),
    st.tuples(st.just("gap"), st.sampled_from(["", "x", "y"]), st.sampled_from(["", "x", "y"])),
)


def expected_of(kind: str, human: str, model: str) -> str | None:
    correct = "" if kind == "gap" else "ok"
    if human == correct:
        return ("FR" if model != correct else None) if kind == "gap" else ("TA" if model == correct else "FR")
    return "FA" if model == correct else "CD" if model == human else "DE"


@given(st.lists(EVENT, max_size=8))
@settings(max_examples=150, deadline=None)
def test_errors_between_intact_phones(events: list[tuple[str, str, str]]) -> None:
    """Where each error stands between phones of their own that nobody changed, there is one alignment only."""
    canonical, human, model = ["#"], ["#"], ["#"]
    expected: Counter[str] = Counter({"TA": 1})
    for place, (kind, said, heard) in enumerate(events):
        if kind == "slot":
            canonical.append(f"c{place}")
        for sequence, what in ((human, said), (model, heard)):
            if what:
                sequence.append(f"c{place}" if what == "ok" else f"{what}{place}")
        for sequence in (canonical, human, model):
            sequence.append(f"#{place}")
        expected.update(name for name in (expected_of(kind, said, heard), "TA") if name)
    assert count_outcomes(positions(canonical, human, model)) == expected


@given(PHONES, PHONES, PHONES)
@settings(max_examples=150, deadline=None)
def test_sums(canonical: list[str], human: list[str], model: list[str]) -> None:
    found = positions(canonical, human, model)
    scores = mdd_scores(found)
    assert scores.TA + scores.FR + scores.FA + scores.TR == scores.positions == len(found)
    assert scores.TR == scores.CD + scores.DE
    assert [place.canonical for place in found if place.canonical is not None] == canonical
    assert sorted(place.human for place in found if place.human is not None) == sorted(human)
    assert Levenshtein.distance(canonical, human) == scores.FA + scores.TR
    for name in ("FR", "FA", "TR", "CD", "DE"):
        assert getattr(scores, name) == sum(kind[name] for kind in scores.kinds.values())
    assert scores.kinds["insertion"]["FR"] <= len(model)


@given(PHONES, PHONES)
@settings(max_examples=150, deadline=None)
def test_a_system_that_outputs_the_canonical_phones_detects_nothing(canonical: list[str], human: list[str]) -> None:
    counts = count_outcomes(positions(canonical, human, canonical))
    errors = Levenshtein.distance(canonical, human)
    assert (counts["FA"], counts["FR"], counts["CD"], counts["DE"]) == (errors, 0, 0, 0)
    result = ratios(counts)
    assert result.recall == (0 if errors else None)
    assert result.precision is None


@given(PHONES, PHONES)
@settings(max_examples=150, deadline=None)
def test_a_system_that_outputs_what_was_said_is_right_in_all(canonical: list[str], human: list[str]) -> None:
    counts = count_outcomes(positions(canonical, human, human))
    assert counts["FR"] == counts["FA"] == counts["DE"] == 0
    assert counts["CD"] == Levenshtein.distance(canonical, human)


def test_ratios() -> None:
    found = ratios(Counter({"TA": 80, "FR": 20, "FA": 6, "CD": 3, "DE": 1}))
    assert found.precision == 4 / 24
    assert found.recall == 4 / 10
    assert found.f1 == pytest.approx(2 * (4 / 24) * 0.4 / (4 / 24 + 0.4))
    assert (found.far, found.frr, found.der) == (0.6, 0.2, 0.25)
    assert ratios(Counter()) == (None, None, None, None, None, None)
    assert ratios(Counter({"TA": 5})) == (None, None, None, None, 0, None)


@given(PHONES, PHONES)
@settings(max_examples=300, deadline=None)
def test_overlap(human: list[str], model: list[str]) -> None:
    """Counted one by one; and never less than the phones that an alignment matches."""
    left, shared = list(model), 0
    for phone in human:
        if phone in left:
            left.remove(phone)
            shared += 1
    assert overlap(human, model) == overlap(model, human) == shared
    errors = Levenshtein.distance(human, model)
    if human and errors <= len(human):
        assert 2 * shared / (len(human) + len(model)) >= 1 - errors / len(human) - 1e-12
