"""Edit counts against hand-made alignments and jiwer."""

from __future__ import annotations

import random

import jiwer
import pytest

from utterflow.evaluate.edits import Edits, char_edits, intern, rate, total_edits, word_edits


def random_pairs(count: int, longest: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)

    def text() -> str:
        words = [draw.choice(["a", "b", "ab", "ba", "c", "dd"]) for _ in range(draw.randint(0, longest))]
        return draw.choice([" ", "  "]).join(words)

    return [(text(), text()) for _ in range(count)]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("turn on the light", "turn on the light", Edits(4, 0, 0, 0)),
        ("turn on the light", "turn off light", Edits(2, 1, 1, 0)),
        ("turn on", "please turn on now", Edits(2, 0, 0, 2)),
        ("turn on", "", Edits(0, 0, 2, 0)),
        ("", "turn on", Edits(0, 0, 0, 2)),
        ("", "", Edits(0, 0, 0, 0)),
        ("  turn\ton ", "turn on", Edits(2, 0, 0, 0)),
    ],
)
def test_word_edits(reference: str, hypothesis: str, expected: Edits):
    assert word_edits(reference, hypothesis) == expected


def test_char_edits_count_inner_spaces_and_no_outer_ones():
    assert char_edits(" ab c ", "abc") == Edits(3, 0, 1, 0)
    assert char_edits("", "ab") == Edits(0, 0, 0, 2)


def test_totals_are_jiwers_on_random_texts():
    pairs = random_pairs(3000, 14, seed=1)
    references, hypotheses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert any(not reference for reference in references)
    for count, process in ((word_edits, jiwer.process_words), (char_edits, jiwer.process_characters)):
        theirs = process(references, hypotheses)
        ours = total_edits(count(*pair) for pair in pairs)
        assert ours == Edits(theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)


def test_totals_are_jiwers_on_long_texts():
    pairs = random_pairs(4, 3000, seed=2)
    theirs = jiwer.process_words([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    ours = total_edits(word_edits(*pair) for pair in pairs)
    assert ours == Edits(theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions)


def test_more_different_words_than_one_plane_of_characters():
    words = [f"w{index}" for index in range(70_000)]
    first, second = intern([words, words[1:]])
    assert len(set(first)) == 70_000
    assert second == first[1:]


def test_rate_is_undefined_without_a_reference():
    assert rate(3, 0) is None
    assert rate(3, 2) == 1.5
