"""From candidates to an n-best list: duplicates out, the most different ones kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

T = TypeVar("T")


def text_key(text: str) -> str:
    """Two texts are the same hypothesis when they are equal but for case and white space."""
    return " ".join(text.lower().split())


def without_duplicates(items: Sequence[T], text: Callable[[T], str]) -> list[T]:
    """The first of each set of equal texts, in order."""
    first: dict[str, T] = {}
    for item in items:
        first.setdefault(text_key(text(item)), item)
    return list(first.values())


def most_different(texts: Sequence[str], count: int) -> list[int]:
    """Greedy max-min choice by character Levenshtein distance.

    The first text is always chosen; then, again and again, the one whose nearest chosen text is farthest away, the
    earlier one on ties (Gonzalez 1985, farthest-first traversal).

    Args:
        texts: best first.

    Returns:
        Indices of the chosen texts, in ascending order: so the list stays best first.
    """
    if len(texts) <= count:
        return list(range(len(texts)))
    keys = [text_key(text) for text in texts]
    chosen = [0]
    nearest = _distances(keys[0], keys)
    while len(chosen) < count:
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, _distances(keys[chosen[-1]], keys))
    return sorted(chosen)


def _distances(text: str, texts: Sequence[str]) -> NDArray[Any]:
    return np.asarray(cdist([text], texts, scorer=Levenshtein.distance, dtype=np.int32)[0])
