"""Matched-pairs bootstrap against slow loops, other tests and its own promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from utterflow.evaluate.bootstrap import bootstrap_intervals
from utterflow.evaluate.significance import paired_difference

OPTIONS = {"samples": 2000, "confidence": 0.95, "seed": 1}


def systems(size: int, better: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edits of two systems that share most of their errors, and reference lengths."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 20, size)
    shared = draw.binomial(lengths, 0.15)
    baseline = shared + draw.binomial(lengths, 0.05)
    return shared + draw.binomial(lengths, 0.05 * better), baseline, lengths


def test_it_agrees_with_a_slow_loop() -> None:
    edits, baseline, lengths = systems(300, 0.7, 3)
    made = paired_difference(edits, baseline, lengths, **{**OPTIONS, "samples": 20_000})
    draw = np.random.default_rng(7)
    slow = []
    for _ in range(20_000):
        chosen = draw.integers(300, size=300)
        slow.append((edits[chosen].sum() - baseline[chosen].sum()) / lengths[chosen].sum())
    low, high = np.quantile(slow, [0.025, 0.975])
    assert made.value == (edits.sum() - baseline.sum()) / lengths.sum()
    assert made.low == pytest.approx(low, abs=0.05 * (high - low))
    assert made.high == pytest.approx(high, abs=0.05 * (high - low))
    rarer = min(np.mean(np.array(slow) <= 0), np.mean(np.array(slow) >= 0))
    assert made.p_value == pytest.approx(2 * rarer, abs=0.01)


def test_pairs_see_what_two_intervals_do_not() -> None:
    edits, baseline, lengths = systems(250, 0.5, 5)
    made = paired_difference(edits, baseline, lengths, **OPTIONS)
    ours, theirs = bootstrap_intervals(np.column_stack([edits, baseline]), lengths, **OPTIONS)
    assert ours[1] > theirs[0]
    assert made.high is not None and made.high < 0
    assert made.p_value is not None and made.p_value < 0.01


def test_equal_systems_seldom_differ() -> None:
    """Under no difference p < 0.05 in about 5% of corpora; 300 corpora: 95% of such counts lie in 8..23."""
    p_values = []
    for seed in range(300):
        edits, baseline, lengths = systems(100, 1.0, 1000 + seed)
        p_values.append(paired_difference(edits, baseline, lengths, **{**OPTIONS, "samples": 500}).p_value)
    assert 5 <= sum(p is not None and p < 0.05 for p in p_values) <= 27
    assert 0.4 < np.mean([p for p in p_values if p is not None]) < 0.6


def test_with_equal_lengths_it_agrees_with_the_paired_t_test() -> None:
    lengths = np.full(200, 10)
    for seed in range(10):
        edits, baseline, _ = systems(200, 0.8, seed)
        made = paired_difference(edits, baseline, lengths, **OPTIONS).p_value
        assert made == pytest.approx(float(ttest_rel(edits, baseline).pvalue), abs=0.06)


def test_swapped_systems_have_the_mirrored_difference() -> None:
    edits, baseline, lengths = systems(150, 0.6, 2)
    one, other = (paired_difference(*pair, lengths, **OPTIONS) for pair in ((edits, baseline), (baseline, edits)))
    assert one.p_value is not None and other.p_value is not None
    assert one.value == -(other.value or 0)
    assert one.low == pytest.approx(-(other.high or 0), abs=0.003)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)


def test_identical_systems_and_one_that_always_wins() -> None:
    edits, _, lengths = systems(50, 1, 1)
    same = paired_difference(edits, edits, lengths, **OPTIONS)
    assert same == (0.0, 0.0, 0.0, 1.0)
    won = paired_difference(np.zeros(50, dtype=int), np.ones(50, dtype=int), lengths, **OPTIONS)
    assert won.p_value == 2 / 2001


def test_by_speaker_differences_of_one_speaker_do_not_count_as_many() -> None:
    edits, baseline = np.zeros(100, dtype=int), np.zeros(100, dtype=int)
    baseline[:50] = 1
    lengths, speakers = np.full(100, 5), np.arange(100) // 50
    alone = paired_difference(edits, baseline, lengths, **OPTIONS)
    by_speaker = paired_difference(edits, baseline, lengths, clusters=speakers, **OPTIONS)
    assert alone.p_value is not None and alone.p_value < 0.01
    assert by_speaker.p_value is not None and by_speaker.p_value > 0.2


@pytest.mark.parametrize(
    ("edits", "baseline", "lengths", "samples", "expected"),
    [
        ([1], [2], [4], 100, (-0.25, None, None, None)),
        ([1, 1], [1, 2], [2, 2], 0, (-0.25, None, None, None)),
        ([1, 1], [1, 2], [0, 0], 100, (None, None, None, None)),
    ],
    ids=["one unit", "no samples", "no reference words"],
)
def test_where_there_is_no_test(edits, baseline, lengths, samples, expected) -> None:
    arrays = (np.array(values) for values in (edits, baseline, lengths))
    assert paired_difference(*arrays, **{**OPTIONS, "samples": samples}) == expected
