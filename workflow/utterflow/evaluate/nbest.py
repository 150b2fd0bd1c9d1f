"""What an n-best list holds: first-best, minimum Bayes risk, oracle and compositional oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from utterflow.evaluate.edits import Edits, char_edits, count_edits, intern


class ListScore(NamedTuple):
    """One reference against its n-best list, in words unless said otherwise.

    `edits[i]` belongs to the hypothesis of rank i, `oracle_edits[i]` is the fewest edits among the first i
    + 1, `distinct[i]` the number of different word sequences among them.
    """

    first: Edits
    first_characters: Edits
    edits: tuple[int, ...]
    oracle_edits: tuple[int, ...]
    distinct: tuple[int, ...]
    mbr_rank: int
    compositional_edits: int

    @property
    def mbr_edits(self) -> int:
        return self.edits[self.mbr_rank]


def score_list(
    reference: str,
    hypotheses: Sequence[str],
    normalize: Callable[[str], str],
    weights: Sequence[float] | None = None,
) -> ListScore:
    """Score one n-best list, best first, after normalising reference and hypotheses.

    Hypotheses that are equal after normalisation stay apart: each keeps its rank and its vote in the MBR
    choice.

    Args:
        weights: votes of the MBR choice; default: all alike.

    Raises:
        ValueError: an empty list.
    """
    if not hypotheses:
        raise ValueError("an n-best list needs at least one hypothesis")
    texts = {text: normalize(text) for text in {reference, *hypotheses}}
    target, *candidates = intern([texts[text].split() for text in (reference, *hypotheses)])
    edits = [Levenshtein.distance(target, candidate) for candidate in candidates]
    return ListScore(
        first=count_edits(target, candidates[0]),
        first_characters=char_edits(texts[reference], texts[hypotheses[0]]),
        edits=tuple(edits),
        oracle_edits=tuple(int(least) for least in np.minimum.accumulate(edits)),
        distinct=tuple(count_distinct(candidates)),
        mbr_rank=mbr(candidates, weights),
        compositional_edits=compositional_oracle(target, candidates),
    )


def count_distinct(hypotheses: Sequence[str]) -> list[int]:
    """How many different hypotheses there are among the first 1, 2, ..., all."""
    seen: set[str] = set()
    counts = []
    for hypothesis in hypotheses:
        seen.add(hypothesis)
        counts.append(len(seen))
    return counts


def mbr(hypotheses: Sequence[str], weights: Sequence[float] | None = None) -> int:
    """Rank of the hypothesis with the least expected edit distance to the list (minimum Bayes risk).

    Stolcke, König & Weintraub 1997, "Explicit word error minimization in N-best list rescoring". Ties go to
    the better rank.

    Args:
        hypotheses: interned word sequences (see `edits.intern`), best first.
        weights: probability of each hypothesis, up to a factor; default: all alike.
    """
    votes: dict[str, float] = {}
    for hypothesis, weight in zip(hypotheses, weights or [1] * len(hypotheses), strict=True):
        votes[hypothesis] = votes.get(hypothesis, 0) + weight
    distinct = list(votes)
    distances = cdist(distinct, distinct, scorer=Levenshtein.distance, dtype=np.int32)
    risk = distances @ np.array(list(votes.values()))
    return hypotheses.index(distinct[int(np.argmin(risk))])


def oracle(edits: Sequence[int], n: int) -> int:
    """Rank of the hypothesis with the fewest edits among the first n; ties go to the better rank."""
    first = edits[:n]
    return first.index(min(first))


def compositional_oracle(reference: str, hypotheses: Sequence[str]) -> int:
    """Fewest edits of any word sequence that is made of the list's words alone.

    The compositional oracle o_cp of HyPoradise (Chen et al. 2023, arXiv:2309.15701): what a corrector could
    reach that may use every word of the list, in any order and as often as it likes, and no other word. The
    list counts as a set of word types, so the value is the number of reference words that occur in no
    hypothesis: each of them costs one edit, and all others are free. It is a lower bound of the oracle, and
    blind to insertions.

    Args:
        reference, hypotheses: interned word sequences (see `edits.intern`).
    """
    known = set().union(*hypotheses)
    return sum(word not in known for word in reference)
