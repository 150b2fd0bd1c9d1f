"""Cutting long recordings and joining their lists."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from utterflow.asr.windows import Scored, cut_windows, join_windows

RATE = 16000


def test_short_recordings_stay_whole():
    signal = np.ones(3 * RATE, np.float32)
    assert [len(part) for part in cut_windows(signal, 3 * RATE, RATE)] == [3 * RATE]


def test_cuts_fall_into_the_pause():
    signal = np.random.default_rng(0).normal(0, 1, 8 * RATE).astype(np.float32)
    pause = slice(int(2.7 * RATE), int(2.8 * RATE))
    signal[pause] = 0
    parts = cut_windows(signal, 3 * RATE, RATE)
    assert pause.start <= len(parts[0]) <= pause.stop
    assert max(map(len, parts)) <= 3 * RATE
    np.testing.assert_array_equal(np.concatenate(parts), signal)


def test_joined_lists_are_the_best_of_all_combinations():
    generator = np.random.default_rng(0)
    lists = [
        [Scored(f"{window}{place}", (float(-generator.random() * 5),), True) for place in range(3)]
        for window in range(4)
    ]
    joined = join_windows(lists, 5, length_penalty=0.0)
    everything = [
        (sum(item.score for item in choice), " ".join(item.text for item in choice))
        for choice in itertools.product(*lists)
    ]
    expected = sorted(everything, reverse=True)[:5]
    assert [item.text for item in joined] == [text for _, text in expected]
    assert [item.score for item in joined] == pytest.approx([score for score, _ in expected])


def test_joins_are_those_of_the_definition_at_each_window():
    """The `count` best partial joins by log-probability per token ** length_penalty, window after window."""
    generator = np.random.default_rng(1)
    lists = [
        [
            Scored(f"{window}{place}", tuple((-generator.random(generator.integers(1, 6))).tolist()), True)
            for place in range(4)
        ]
        for window in range(5)
    ]
    kept: list[tuple[Scored, ...]] = [()]
    for following in lists:
        pairs = [(*left, right) for left in kept for right in following]

        def value(choice: tuple[Scored, ...]) -> float:
            values = [value for item in choice for value in item.logprobs]
            return sum(values) / len(values) ** 0.7

        kept = sorted(pairs, key=value, reverse=True)[:6]
    joined = join_windows(lists, 6, length_penalty=0.7)
    assert [item.text for item in joined] == [" ".join(part.text for part in choice) for choice in kept]
    assert [item.logprobs for item in joined] == [sum((part.logprobs for part in choice), ()) for choice in kept]


def test_a_window_without_hypotheses_leaves_none():
    some = [Scored("a", (-1.0,), True)]
    for lists in ([[], some], [some, []], [[]]):
        assert join_windows(lists, 3, 1.0) == []


def test_long_lists_of_long_recordings_join_quickly():
    lists = [[Scored(f"{window}{place}", (-1.0 - place,) * 20, True) for place in range(50)] for window in range(60)]
    start = time.process_time()
    assert len(join_windows(lists, 100, 1.0)) == 100
    assert time.process_time() - start < 3


def test_a_join_is_finished_only_when_all_parts_are():
    joined = join_windows([[Scored("a", (-1.0,), True)], [Scored("", (-1.0,), False)]], 1, 1.0)
    assert joined == [Scored("a", (-1.0, -1.0), False)]
