"""Duplicates out, the most different kept."""

from __future__ import annotations

import itertools
import random

import pytest

from utterflow.asr.pool import most_different, text_key, without_duplicates


def levenshtein(left: str, right: str) -> int:
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def slow_choice(texts: list[str], count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < min(count, len(texts)):
        rest = [index for index in range(len(texts)) if index not in chosen]
        nearest = {index: min(levenshtein(texts[index], texts[other]) for other in chosen) for index in rest}
        chosen.append(max(rest, key=lambda index: (nearest[index], -index)))
    return sorted(chosen)


@pytest.mark.parametrize("count", [1, 3, 5, 12])
def test_choice_equals_the_slow_one(count):
    generator = random.Random(0)
    words = ["turn", "tern", "on", "of", "off", "the", "light", "lights", "night"]
    for _ in range(20):
        texts = list({" ".join(generator.choices(words, k=generator.randint(1, 5))) for _ in range(11)})
        assert most_different(texts, count) == slow_choice(texts, count)


def test_choice_is_made_on_normalised_text():
    assert most_different(["a b", "A  B C", "xyz"], 2) == [0, 2]


def test_the_chosen_are_never_closer_than_a_random_set_of_a_line():
    texts = ["a" * n for n in (1, 2, 3, 10, 20)]
    chosen = most_different(texts, 3)
    spread = min(abs(len(texts[i]) - len(texts[j])) for i, j in itertools.combinations(chosen, 2))
    assert chosen == [0, 3, 4] and spread == 9


def test_duplicates_are_equal_but_for_case_and_spaces():
    assert without_duplicates(["Hi there", " hi  THERE ", "hi", "hi there!"], str) == [
        "Hi there",
        "hi",
        "hi there!",
    ]
    assert text_key("\tA\nb ") == "a b"
