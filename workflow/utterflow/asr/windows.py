"""Recordings longer than the model's window: where to cut them, and how their n-best lists join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEARCH_SHARE = 1 / 6  # the cut is looked for in this last part of a window: 5 s of Whisper's 30 s
FRAME_SECONDS = 0.02


def cut_windows(signal: NDArray[Any], max_samples: int, sample_rate: int) -> list[NDArray[Any]]:
    """Cut a recording [samples] into windows of at most `max_samples`, each at the quietest place near its end."""
    frame = max(1, int(FRAME_SECONDS * sample_rate))
    windows = []
    rest = signal
    while len(rest) > max_samples:
        earliest = int(max_samples * (1 - SEARCH_SHARE))
        zone = rest[earliest:max_samples]
        energy = np.square(zone[: len(zone) // frame * frame].reshape(-1, frame)).sum(1)
        cut = earliest + int(energy.argmin()) * frame + frame // 2 if len(energy) else max_samples
        windows.append(rest[:cut])
        rest = rest[cut:]
    windows.append(rest)
    return windows


@dataclass(frozen=True)
class Scored:
    """A text with its log-probability and its tokens' own."""

    text: str
    logprobs: tuple[float, ...]
    finished: bool

    @property
    def score(self) -> float:
        return float(sum(self.logprobs))


def join_windows(lists: Sequence[Sequence[Scored]], count: int, length_penalty: float) -> list[Scored]:
    """The `count` best ways to take one hypothesis from each window's list, best first.

    Windows are joined one after another, with `count` best partial joins kept at each; with length_penalty 0 that is
    exact, since the scores add up.
    """
    joined = [Scored("", (), True)]
    for following in lists:
        scores = np.add.outer([left.score for left in joined], [right.score for right in following])
        lengths = np.add.outer([len(left.logprobs) for left in joined], [len(right.logprobs) for right in following])
        ranks = scores / np.maximum(lengths, 1) ** length_penalty
        best = np.argsort(-ranks, axis=None, kind="stable")[:count]
        pairs = [(joined[left], following[right]) for left, right in np.transpose(np.unravel_index(best, ranks.shape))]
        joined = [
            Scored(
                f"{left.text} {right.text}".strip(),
                left.logprobs + right.logprobs,
                left.finished and right.finished,
            )
            for left, right in pairs
        ]
    return joined
