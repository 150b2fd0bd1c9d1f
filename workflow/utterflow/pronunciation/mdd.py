"""Mispronunciation detection and diagnosis: what a transcript of phones says about the speaker's errors.

The outcomes are those of Qian, Soong & Meng 2010 and Leung, Liu & Meng 2019 ("CNN-RNN-CTC based end-to-end
mispronunciation detection and diagnosis"), over three alignments: canonical-human, human-model, canonical-model.
docs/pronunciation-scores.md has the definitions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from utterflow.pronunciation.alignment import Pair, align

Outcome = Literal["TA", "FR", "FA", "CD", "DE"]
Kind = Literal["correct", "substitution", "insertion", "deletion"]

OUTCOMES: tuple[Outcome, ...] = ("TA", "FR", "FA", "CD", "DE")
ERRORS: tuple[Kind, ...] = ("substitution", "insertion", "deletion")


class Position(NamedTuple):
    """A place of the three-way alignment: a canonical phone, or a phone that was inserted.

    Attributes:
        human: the phone as pronounced; None where there is none.
        model: the phone as the model has it at the canonical phone, or at the inserted one; None where there is none.
        kind: what the speaker did here; where that was correct and the model says otherwise (FR), what the model has.
    """

    canonical: str | None
    human: str | None
    model: str | None
    kind: Kind
    outcome: Outcome


class Ratios(NamedTuple):
    """Ratios of the counts; None where they are undefined."""

    precision: float | None
    recall: float | None
    f1: float | None
    far: float | None
    frr: float | None
    der: float | None


def positions(canonical: Sequence[str], human: Sequence[str], model: Sequence[str]) -> list[Position]:
    """The places of the canonical phones, then of those that the speaker inserted, then of those that the model did.

    - A canonical phone was pronounced correctly, or substituted or deleted, as canonical-human has it. The model
      accepts it where canonical-model pairs it with the same phone. A detected substitution is diagnosed where
      human-model pairs the speaker's phone with the same phone, a detected deletion where canonical-model deletes too.
    - A phone that the speaker inserted is accepted where human-model leaves it alone, else detected, and diagnosed
      where human-model pairs it with the same phone.
    - A phone of the model that both human-model and canonical-model leave alone is a false rejection.
    """
    said = align(canonical, human)
    heard = _right_of(align(canonical, model))
    diagnosed = _right_of(align(human, model))
    found = [
        _canonical_position(pair, canonical, human, model, heard, diagnosed) for pair in said if pair.left is not None
    ]
    for place in (pair.right for pair in said if pair.left is None and pair.right is not None):
        match = _phone(model, diagnosed.get(place))
        outcome: Outcome = "FA" if match is None else "CD" if match == human[place] else "DE"
        found.append(Position(None, human[place], match, "insertion", outcome))
    alone = set(range(len(model))) - set(heard.values()) - set(diagnosed.values())
    found += [Position(None, None, model[place], "insertion", "FR") for place in sorted(alone)]
    return found


def _canonical_position(
    pair: Pair,
    canonical: Sequence[str],
    human: Sequence[str],
    model: Sequence[str],
    heard: dict[int, int],
    diagnosed: dict[int, int],
) -> Position:
    assert pair.left is not None
    target, spoken = canonical[pair.left], _phone(human, pair.right)
    answer = _phone(model, heard.get(pair.left))
    if spoken == target:
        kind = _kind(target, answer)
        return Position(target, spoken, answer, kind, "TA" if kind == "correct" else "FR")
    kind = _kind(target, spoken)
    if answer == target:
        return Position(target, spoken, answer, kind, "FA")
    if pair.right is None:
        equal = answer is None
    else:
        equal = _phone(model, diagnosed.get(pair.right)) == spoken
    return Position(target, spoken, answer, kind, "CD" if equal else "DE")


def _kind(target: str, phone: str | None) -> Kind:
    return "deletion" if phone is None else "correct" if phone == target else "substitution"


def _phone(phones: Sequence[str], place: int | None) -> str | None:
    return None if place is None else phones[place]


def _right_of(pairs: Iterable[Pair]) -> dict[int, int]:
    return {pair.left: pair.right for pair in pairs if pair.left is not None and pair.right is not None}


def count_outcomes(found: Iterable[Position]) -> Counter[Outcome]:
    """Number of positions by outcome; TR is CD + DE."""
    return Counter(position.outcome for position in found)


def ratios(counts: Counter[Outcome]) -> Ratios:
    """Detection precision, recall and F1 of rejections; rates of false acceptance, false rejection, wrong diagnosis.

    Precision TR/(TR+FR), recall TR/(TR+FA), FAR FA/(FA+TR), FRR FR/(TA+FR), DER DE/(CD+DE).
    """
    rejected = counts["CD"] + counts["DE"]
    precision, recall = _ratio(rejected, counts["FR"]), _ratio(rejected, counts["FA"])
    return Ratios(
        precision=precision,
        recall=recall,
        f1=_ratio(2 * rejected, counts["FR"] + counts["FA"]),
        far=_ratio(counts["FA"], rejected),
        frr=_ratio(counts["FR"], counts["TA"]),
        der=_ratio(counts["DE"], counts["CD"]),
    )


def _ratio(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def overlap(human: Sequence[str], model: Sequence[str]) -> int:
    """Number of tokens that two sequences share whatever their order, each token counted as often as both have it."""
    return (Counter(human) & Counter(model)).total()
