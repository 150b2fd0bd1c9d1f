"""Alignment of phones, against a slow one by definition."""

from __future__ import annotations

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from utterflow.pronunciation.alignment import Pair, align

PHONES = st.lists(st.sampled_from(["A", "B", "C"]), max_size=8)


def by_definition(left: list[str], right: list[str]) -> list[Pair]:
    if tuple(right) < tuple(left):
        return [Pair(one, other) for other, one in by_definition(right, left)]

    @cache
    def cost(i: int, j: int) -> tuple[int, int]:
        """Fewest edits of what follows, and with these the fewest substitutions."""
        if i == len(left) or j == len(right):
            return len(left) - i + len(right) - j, 0
        wrong = left[i] != right[j]
        return min(plus(cost(i + 1, j + 1), wrong, wrong), plus(cost(i + 1, j), 1, 0), plus(cost(i, j + 1), 1, 0))

    def plus(cost: tuple[int, int], edits: int, substitutions: int) -> tuple[int, int]:
        return cost[0] + edits, cost[1] + substitutions

    def walk(i: int, j: int) -> list[Pair]:
        if i == len(left) and j == len(right):
            return []
        best = cost(i, j)
        if i < len(left) and j < len(right):
            wrong = left[i] != right[j]
            if plus(cost(i + 1, j + 1), wrong, wrong) == best:
                return [Pair(i, j), *walk(i + 1, j + 1)]
        if i < len(left) and plus(cost(i + 1, j), 1, 0) == best:
            return [Pair(i, None), *walk(i + 1, j)]
        return [Pair(None, j), *walk(i, j + 1)]

    return walk(0, 0)


@given(PHONES, PHONES)
@settings(max_examples=300, deadline=None)
def test_the_alignment_is_the_one_that_the_rule_defines(left: list[str], right: list[str]) -> None:
    assert align(left, right) == by_definition(left, right)


@given(PHONES, PHONES)
@settings(max_examples=300, deadline=None)
def test_it_is_whole_in_order_and_of_fewest_edits(left: list[str], right: list[str]) -> None:
    found = align(left, right)
    assert [pair.left for pair in found if pair.left is not None] == list(range(len(left)))
    assert [pair.right for pair in found if pair.right is not None] == list(range(len(right)))
    edits = sum(pair.left is None or pair.right is None or left[pair.left] != right[pair.right] for pair in found)
    assert edits == Levenshtein.distance(left, right)


@given(PHONES, PHONES)
@settings(max_examples=300, deadline=None)
def test_exchanged_sequences_have_the_exchanged_alignment(left: list[str], right: list[str]) -> None:
    assert align(right, left) == [Pair(other, one) for one, other in align(left, right)]


def test_ties() -> None:
    assert align(["A", "A"], ["A"]) == [Pair(0, 0), Pair(1, None)]
    assert align(["T", "T"], ["D"]) == [Pair(0, 0), Pair(1, None)]
    # Two edits either way, but one equal pair more.
    assert align(["A", "B", "C"], ["B", "D", "C"]) == [Pair(0, None), Pair(1, 0), Pair(None, 1), Pair(2, 2)]
    # Two shifts of equal cost: the smaller sequence, 1 2 1, loses its first phone.
    assert align(["2", "1", "2"], ["1", "2", "1"]) == [Pair(None, 0), Pair(0, 1), Pair(1, 2), Pair(2, None)]


def test_empty_sequences() -> None:
    assert align([], []) == []
    assert align(["A"], []) == [Pair(0, None)]
    assert align([], ["A"]) == [Pair(None, 0)]
