"""MBR, oracle and compositional oracle against brute force."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utterflow.evaluate.edits import word_edits
from utterflow.evaluate.nbest import compositional_oracle, mbr, oracle, score_list
from utterflow.evaluate.normalize import basic

sentences = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=5).map(" ".join)
lists = st.lists(sentences, min_size=1, max_size=6)


def distance(first: str, second: str) -> int:
    """Levenshtein distance in words, by its definition."""
    return words_distance(tuple(first.split()), tuple(second.split()))


def words_distance(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    if not first or not second:
        return len(first) + len(second)
    return min(
        words_distance(first[1:], second) + 1,
        words_distance(first, second[1:]) + 1,
        words_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


@settings(max_examples=150, deadline=None, database=None)
@given(sentences, lists)
def test_score_list_is_the_brute_force_one(reference: str, hypotheses: list[str]):
    score = score_list(reference, hypotheses, str)
    edits = [distance(reference, hypothesis) for hypothesis in hypotheses]
    assert list(score.edits) == edits
    assert score.first == word_edits(reference, hypotheses[0])
    assert score.first.edits == edits[0]
    sizes = range(1, len(hypotheses) + 1)
    assert list(score.oracle_edits) == [min(edits[:n]) for n in sizes]
    assert list(score.distinct) == [len(set(hypotheses[:n])) for n in sizes]
    risks = [sum(distance(one, other) for other in hypotheses) for one in hypotheses]
    assert score.mbr_rank == risks.index(min(risks))
    for n in sizes:
        assert oracle(score.edits, n) == edits[:n].index(min(edits[:n]))


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=4).map("".join),
    st.lists(st.lists(st.sampled_from("abd"), max_size=3).map("".join), min_size=1, max_size=3),
)
def test_compositional_oracle_is_the_best_of_all_sequences_of_the_lists_words(reference: str, hypotheses: list[str]):
    known = sorted(set("".join(hypotheses)))
    sequences = [made for size in range(len(reference) + 2) for made in product(known, repeat=size)]
    assert compositional_oracle(reference, hypotheses) == min(
        words_distance(tuple(reference), made) for made in sequences
    )


def test_a_hand_made_list():
    score = score_list(
        "turn the light on",
        ["turn light on now", "turn the night on", "turn the night on", "burn the light"],
        str,
    )
    assert score.edits == (2, 1, 1, 2)
    assert score.mbr_rank == 1
    assert score.mbr_edits == 1
    assert score.oracle_edits == (2, 1, 1, 1)
    assert score.distinct == (1, 2, 2, 3)
    assert score.compositional_edits == 0


def test_normalisation_comes_first():
    score = score_list("Hello, World!", ["hello world", "HELLO WORLD"], basic)
    assert score.edits == (0, 0)
    assert score.distinct == (1, 1)
    assert score.first_characters.edits == 0


def test_mbr_ties_go_to_the_better_rank():
    assert mbr(["ab", "ac"]) == 0
    assert mbr(["xyz", "ab", "ac"]) == 1


def test_mbr_weights_decide():
    hypotheses = ["abc", "abd", "xyz"]
    assert mbr(hypotheses) == 0
    assert mbr(hypotheses, [0.1, 0.1, 0.8]) == 2
    assert mbr(hypotheses, [1, 1, 1]) == mbr(hypotheses)


def test_an_empty_reference_makes_each_word_an_insertion():
    score = score_list("", ["a b", "a"], str)
    assert score.first.insertions == 2
    assert score.first.reference_length == 0
    assert score.oracle_edits == (2, 1)
    assert score.compositional_edits == 0


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one hypothesis"):
        score_list("a", [], str)


def test_posterior_weights_are_a_softmax_of_scores():
    from utterflow.evaluate.score import posterior
    from utterflow.records import Hypothesis

    scores = (-1.0, -2.0, -900.0)
    hypotheses = [
        Hypothesis(text="a", score=score, mean_logprob=score, num_tokens=1, finished=True) for score in scores
    ]
    weights = posterior(hypotheses)
    assert weights == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e), 0.0])


def test_weights_reach_the_choice():
    hypotheses = ["a b c", "a b d", "x y z"]
    assert score_list("", hypotheses, str).mbr_rank == 0
    assert score_list("", hypotheses, str, [0.1, 0.1, 0.8]).mbr_rank == 2
