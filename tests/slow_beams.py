"""Exhaustive CTC decoding of tiny posteriors: every frame path is spelled out. Shares no code with the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, product

import numpy as np


def collapse(path: Sequence[int], blank: int) -> tuple[int, ...]:
    """The token sequence of a frame path: repeats merged, blanks removed."""
    return tuple(token for token, _ in groupby(path) if token != blank)


def parse(tokens: Sequence[int], separator: int) -> list[tuple[int, ...]] | None:
    """The spelled words of a token sequence, runs of separators as one; None if the last word is not ended."""
    groups = [tuple(run) for is_separator, run in groupby(tokens, lambda token: token == separator) if not is_separator]
    return groups if not tokens or tokens[-1] == separator else None


@lru_cache(maxsize=8)
def spelled_paths(
    frames: int, classes: int, blank: int, separator: int
) -> tuple[np.ndarray, list[tuple[tuple[int, ...], ...]]]:
    """All frame paths that spell whole words, int [paths, frames], and the spellings of each."""
    paths, spelled = [], []
    for path in product(range(classes), repeat=frames):
        words = parse(collapse(path, blank), separator)
        if words is not None:
            paths.append(path)
            spelled.append(tuple(words))
    return np.array(paths), spelled


def best_alignments(
    log_probs: np.ndarray, blank: int, separator: int, words_of: Mapping[tuple[int, ...], Sequence[str]]
) -> dict[tuple[str, ...], float]:
    """Every word sequence with the log-probability of its best frame path."""
    frames, classes = log_probs.shape
    paths, spelled = spelled_paths(frames, classes, blank, separator)
    scores = log_probs[np.arange(frames), paths].sum(axis=1)
    best_spelled: dict[tuple[tuple[int, ...], ...], float] = {}
    for spelling, score in zip(spelled, scores, strict=True):
        best_spelled[spelling] = max(best_spelled.get(spelling, -np.inf), score)
    best: dict[tuple[str, ...], float] = {}
    for spelling, score in best_spelled.items():
        for words in product(*(words_of.get(one, ()) for one in spelling)):
            best[words] = max(best.get(words, -np.inf), score)
    return best


def exhaustive_list(
    acoustic: Mapping[tuple[str, ...], float],
    lm: Callable[[tuple[str, ...]], float],
    scale: float,
    alpha: float,
    bonus: float,
) -> list[tuple[str, float, float, float]]:
    """(text, score, acoustic, lm) of every word sequence, best first, ties by text."""

    def rows() -> Iterator[tuple[str, float, float, float]]:
        for words, score in acoustic.items():
            ngram = lm(words)
            yield " ".join(words), scale * score + alpha * ngram + bonus * len(words), score, ngram

    ranked = sorted((row for row in rows() if row[1] > -np.inf), key=lambda row: -row[1])
    ordered: list[tuple[str, float, float, float]] = []
    ties: list[tuple[str, float, float, float]] = []
    for row in ranked:
        if ties and ties[-1][1] - row[1] > 1e-6:
            ordered += sorted(ties)
            ties = []
        ties.append(row)
    return ordered + sorted(ties)
