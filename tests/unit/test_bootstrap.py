"""Bootstrap intervals against slow and exact ones."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from utterflow.evaluate import bootstrap
from utterflow.evaluate.bootstrap import bootstrap_intervals


def slow_interval(edits: np.ndarray, lengths: np.ndarray, samples: int, confidence: float, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    rates = []
    for _ in range(samples):
        chosen = draw.integers(len(lengths), size=len(lengths))
        rates.append(edits[chosen].sum() / lengths[chosen].sum())
    return np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])


def corpus(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 15, size)
    return draw.binomial(lengths, 0.2)[:, None], lengths


def test_it_agrees_with_a_slow_loop():
    edits, lengths = corpus(400)
    fast = bootstrap_intervals(edits, lengths, samples=20_000, confidence=0.9, seed=1)[0]
    slow = slow_interval(edits[:, 0], lengths, samples=20_000, confidence=0.9, seed=2)
    assert np.allclose(fast, slow, atol=0.04 * (slow[1] - slow[0]))
    assert fast[0] < edits.sum() / lengths.sum() < fast[1]


def test_it_agrees_with_all_resamples_of_a_tiny_corpus():
    edits, lengths = np.array([[0], [2], [1], [5]]), np.array([3, 4, 9, 5])
    every = [edits[list(chosen)].sum() / lengths[list(chosen)].sum() for chosen in product(range(4), repeat=4)]
    made = bootstrap_intervals(edits, lengths, samples=60_000, confidence=0.8, seed=1)[0]
    assert np.allclose(made, np.quantile(every, [0.1, 0.9]), atol=0.012)


def test_by_speaker_is_by_utterance_over_the_speakers_sums():
    edits, lengths = corpus(60)
    speakers = np.arange(60) % 7
    sums = [np.array([values[speakers == one].sum() for one in range(7)]) for values in (edits[:, 0], lengths)]
    options = {"samples": 500, "confidence": 0.95, "seed": 3}
    by_speaker = bootstrap_intervals(edits, lengths, clusters=speakers, **options)
    assert np.array_equal(by_speaker, bootstrap_intervals(sums[0][:, None], sums[1], **options))
    assert not np.array_equal(by_speaker, bootstrap_intervals(edits, lengths, **options))


def test_speakers_that_differ_widen_the_interval():
    lengths = np.full(200, 10)
    speakers = np.repeat(np.arange(10), 20)
    edits = (speakers * 1)[:, None]
    options = {"samples": 2000, "confidence": 0.95, "seed": 3}
    (low, high), (speaker_low, speaker_high) = (
        bootstrap_intervals(edits, lengths, clusters=clusters, **options)[0] for clusters in (None, speakers)
    )
    assert speaker_high - speaker_low > 2 * (high - low)


def test_same_seed_same_interval_and_all_rates_share_draws(monkeypatch: pytest.MonkeyPatch):
    edits, lengths = corpus(50)
    both = np.column_stack([edits, edits])
    options = {"samples": 300, "confidence": 0.95}
    first = bootstrap_intervals(both, lengths, seed=5, **options)
    assert np.array_equal(first, bootstrap_intervals(both, lengths, seed=5, **options))
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first, bootstrap_intervals(both, lengths, seed=6, **options))
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 1)
    assert np.array_equal(first, bootstrap_intervals(both, lengths, seed=5, **options))


def test_more_confidence_is_a_wider_interval():
    edits, lengths = corpus(80)
    widths = [
        np.ptp(bootstrap_intervals(edits, lengths, samples=2000, confidence=level, seed=1))
        for level in (0.5, 0.9, 0.99)
    ]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


@pytest.mark.parametrize(
    ("edits", "lengths", "samples"),
    [([[1]], [4], 100), ([[1], [2]], [4, 4], 0), ([[1], [2]], [0, 0], 100)],
    ids=["one unit", "no samples", "no reference words"],
)
def test_where_there_is_no_interval(edits: list[list[int]], lengths: list[int], samples: int):
    made = bootstrap_intervals(np.array(edits), np.array(lengths), samples=samples, confidence=0.95, seed=1)
    assert np.isnan(made).all()


def test_draws_without_reference_words_are_left_out():
    made = bootstrap_intervals(np.array([[1], [1]]), np.array([0, 2]), samples=500, confidence=0.95, seed=1)
    assert made.tolist() == [[0.5, 1.0]]


def test_a_million_utterances_take_seconds():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 30, 1_000_000)
    edits = draw.binomial(lengths[:, None], [0.2, 0.18, 0.1])
    low, high = bootstrap_intervals(edits, lengths, samples=200, confidence=0.95, seed=1)[0]
    assert 0 < high - low < 0.001
