"""SLURP's official metrics of spoken language understanding.

Bastianelli, Vanzo, Swietojanski & Rieser 2020, "SLURP: A Spoken Language Understanding Resource Package", section 5,
with each branch as in the evaluation script of the corpus. docs/slu-scores.md has the definitions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import Levenshtein

from utterflow.evaluate.edits import intern
from utterflow.slu.records import SluScores

Average = Literal["micro", "macro"]
Entities = tuple[tuple[str, str], ...]

METRICS = ("scenario", "action", "intent", "entity", "word", "char", "slu")
DISTANCES_CACHED = 100_000


class Meaning(NamedTuple):
    """What a command means; entities are (type, filler)."""

    scenario: str
    action: str
    entities: Entities

    @property
    def intent(self) -> str:
        """Scenario and action in one, as the metrics compare them."""
        return f"{self.scenario}_{self.action}"


# What an answer without meaning is scored as: no such scenario, no such action, no entity.
NOTHING = Meaning("", "", ())


class Counts(NamedTuple):
    """True positives, false positives, false negatives; distances make them fractional."""

    true: float
    false: float
    missed: float

    def plus(self, other: Counts) -> Counts:
        """The sums."""
        return Counts(self.true + other.true, self.false + other.false, self.missed + other.missed)


class Quality(NamedTuple):
    """Precision, recall and F1."""

    precision: float
    recall: float
    f1: float


ZERO = Counts(0.0, 0.0, 0.0)
HIT, FALSE, MISSED = Counts(1.0, 0.0, 0.0), Counts(0.0, 1.0, 0.0), Counts(0.0, 0.0, 1.0)
Labelled = list[tuple[str, Counts]]
# Metric -> label -> counts.
Tally = dict[str, dict[str, Counts]]


def gold_meaning(scenario: str, action: str, entities: Iterable[tuple[str, str]]) -> Meaning:
    """A gold meaning: its fillers in lower case. Predicted ones stay as they are."""
    return Meaning(scenario, action, tuple((kind, filler.lower()) for kind, filler in entities))


def row_counts(gold: Meaning, predicted: Meaning) -> dict[str, Labelled]:
    """The counts that one prediction adds to each of `METRICS`, by label."""
    counts = {
        "scenario": label_counts(gold.scenario, predicted.scenario),
        "action": label_counts(gold.action, predicted.action),
        "intent": label_counts(gold.intent, predicted.intent),
        "entity": entity_counts(gold.entities, predicted.entities),
        "word": distance_counts(gold.entities, predicted.entities, word_distance),
        "char": distance_counts(gold.entities, predicted.entities, char_distance),
    }
    return {**counts, "slu": counts["word"] + counts["char"]}


def label_counts(gold: str, predicted: str) -> Labelled:
    """A wrong label is a false positive of the predicted one and a false negative of the gold one."""
    return [(gold, HIT)] if gold == predicted else [(predicted, FALSE), (gold, MISSED)]


def entity_counts(gold: Entities, predicted: Entities) -> Labelled:
    """Exact matches of (type, filler); each gold entity is matched once."""
    left = list(gold)
    counts = []
    for entity in predicted:
        if entity in left:
            left.remove(entity)
            counts.append((entity[0], HIT))
        else:
            counts.append((entity[0], FALSE))
    return counts + [(kind, MISSED) for kind, _ in left]


def distance_counts(gold: Entities, predicted: Entities, distance: Callable[[str, str], float]) -> Labelled:
    """Matches by type, softened by the distance d of the fillers.

    Each predicted entity, in order, takes the closest gold one of its type that is left, the first of equally close
    ones: a true positive, and d false positives and d false negatives. Without one of its type it is a false
    positive. Gold entities that are left are false negatives.
    """
    left = list(gold)
    counts = []
    for kind, filler in predicted:
        near = [(distance(entity[1], filler), index) for index, entity in enumerate(left) if entity[0] == kind]
        if near:
            far, index = min(near)
            counts.append((kind, Counts(1.0, far, far)))
            del left[index]
        else:
            counts.append((kind, FALSE))
    return counts + [(kind, MISSED) for kind, _ in left]


@functools.lru_cache(maxsize=DISTANCES_CACHED)
def word_distance(gold: str, predicted: str) -> float:
    """Word error rate of a filler; it may exceed 1.

    Words are told apart as the official script's library does it: runs of white space are one space, and only spaces
    separate. Without a gold word the rate is the number of predicted words, as jiwer 4 has it (the versions of the
    script's time refuse such a filler; the corpus has none).
    """
    reference, hypothesis = intern([_words(gold), _words(predicted)])
    return Levenshtein.distance(reference, hypothesis) / (len(reference) or 1)


@functools.lru_cache(maxsize=DISTANCES_CACHED)
def char_distance(gold: str, predicted: str) -> float:
    """Levenshtein distance by the characters of the longer filler; 0 where both are empty."""
    return Levenshtein.distance(gold, predicted) / (max(len(gold), len(predicted)) or 1)


def tally(rows: Iterable[dict[str, Labelled]]) -> Tally:
    """Sums of the counts of rows, by metric and label."""
    sums: Tally = {name: {} for name in METRICS}
    for row in rows:
        for name, counts in row.items():
            labels = sums[name]
            for label, count in counts:
                labels[label] = labels.get(label, ZERO).plus(count)
    return sums


def tally_pairs(pairs: Iterable[tuple[Meaning, Meaning]]) -> Tally:
    """Sums of the counts of (gold, predicted), by metric and label."""
    return tally(row_counts(gold, predicted) for gold, predicted in pairs)


def total(counts: Iterable[Counts]) -> Counts:
    """Sum of counts."""
    found = list(counts)
    return Counts(*(float(sum(column)) for column in zip(ZERO, *found, strict=True)))


def quality(counts: Counts) -> Quality:
    """Precision, recall and F1; 0 where they are undefined, as in the official script."""
    precision = counts.true / (counts.true + counts.false) if counts.true or counts.false else 0.0
    recall = counts.true / (counts.true + counts.missed) if counts.true or counts.missed else 0.0
    f1 = 2.0 * ((precision * recall) / (precision + recall)) if precision or recall else 0.0
    return Quality(precision, recall, f1)


def averaged(labels: dict[str, Counts], average: Average) -> Quality:
    """Quality over all labels: of their summed counts (micro), or the mean of each label's (macro).

    Labels are those that occur in gold or prediction. Without any all is 0 (the official script fails in macro).
    """
    if average == "micro":
        return quality(total(labels.values()))
    each = [quality(counts) for counts in labels.values()]
    return Quality(*(sum(column) / len(each) for column in zip(*each, strict=True))) if each else Quality(0, 0, 0)


def scores(sums: Tally, average: Average) -> SluScores:
    """The F1 of each metric."""
    return SluScores(**{f"{name}_f1": averaged(sums[name], average).f1 for name in METRICS})


def _words(text: str) -> Sequence[str]:
    return [word for word in re.sub(r"\s\s+", " ", text).strip().split(" ") if word]
