"""Word n-gram scores by number: a KenLM model seen through states and words that are small integers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kenlm  # type: ignore[import-not-found]
import numpy as np
from numpy.typing import NDArray

from utterflow.errors import UserError

LN10 = math.log(10.0)
START = 0


def load_ngram(path: Path) -> Any:
    """Load a KenLM model from an ARPA or a binary file.

    Raises:
        UserError: the file is missing or is no such model.
    """
    if not path.is_file():
        raise UserError("file not found", where=str(path))
    options = kenlm.Config()
    options.show_progress = False
    options.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(str(path), options)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"not a language model that KenLM can read: {_reason(error)}",
            where=str(path),
            fix="give an ARPA file, or a binary file made by build_binary of the same KenLM",
        ) from None


def _reason(error: Exception) -> str:
    """What KenLM says, without the path and the place in its source that it says first."""
    text = " ".join(str(error).split())
    return re.sub(r"^Cannot read model '.*' \((.*Exception\.)?|\)$", "", text).strip()


class WordScorer:
    """Scores of words after a state, as natural logarithms.

    A state stands for the last words as far as the model tells them apart (KenLM's own minimal state); `START` is the
    state after `<s>`. States are numbered as they turn up and kept until `forget`; scores are KenLM's, so that the sum
    over a sentence and its end is `kenlm.Model.score` times ln 10. A word that the model does not know has the score of
    `<unk>` plus `unk_score`.
    """

    def __init__(self, model: Any, words: Sequence[str], unk_score: float) -> None:
        self.words = tuple(words)
        self._model = model
        self._offsets = [0.0 if word in model else unk_score for word in self.words]
        self.forget()

    @property
    def unknown_words(self) -> int:
        """How many of the words the model does not know."""
        return sum(word not in self._model for word in self.words)

    @property
    def num_states(self) -> int:
        return len(self._states)

    def forget(self) -> None:
        """Drop all states but `START`: numbers given before are void."""
        start = kenlm.State()
        self._model.BeginSentenceWrite(start)
        self._states = [start]
        self._numbers = {start: START}
        self._ends: dict[int, float] = {}

    def score(self, states: Sequence[int], words: Sequence[int]) -> tuple[list[float], list[int]]:
        """ln P(word | state) and the state after it, for each pair."""
        known, numbers, names, offsets, ask = (
            self._states,
            self._numbers,
            self.words,
            self._offsets,
            self._model.BaseScore,
        )
        scores, following = [], []
        after = kenlm.State()
        for state, word in zip(states, words, strict=True):
            scores.append(ask(known[state], names[word], after) * LN10 + offsets[word])
            number = numbers.get(after)
            if number is None:
                number = numbers[after] = len(known)
                known.append(after)
                after = kenlm.State()
            following.append(number)
        return scores, following

    def end_score(self, state: int) -> float:
        """ln P(</s> | state)."""
        if state not in self._ends:
            self._ends[state] = self._model.BaseScore(self._states[state], "</s>", kenlm.State()) * LN10
        return self._ends[state]

    def unigrams(self) -> NDArray[np.float64]:
        """ln P(word) without context, for each word: float64 [words]."""
        empty, after = kenlm.State(), kenlm.State()
        self._model.NullContextWrite(empty)
        scores = [self._model.BaseScore(empty, word, after) for word in self.words]
        return np.array(scores, np.float64) * LN10 + np.array(self._offsets, np.float64)
