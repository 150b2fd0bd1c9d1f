"""Cutting long recordings and joining their lists."""

from __future__ import annotations

import itertools

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


def test_a_join_is_finished_only_when_all_parts_are():
    joined = join_windows([[Scored("a", (-1.0,), True)], [Scored("", (-1.0,), False)]], 1, 1.0)
    assert joined == [Scored("a", (-1.0, -1.0), False)]
