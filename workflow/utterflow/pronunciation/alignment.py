"""Alignment of two sequences of phones by minimum edit distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein


class Pair(NamedTuple):
    """Places of two aligned phones, from 0; None on the side that has no phone."""

    left: int | None
    right: int | None


def align(left: Sequence[str], right: Sequence[str]) -> list[Pair]:
    """An alignment with the fewest substitutions, deletions and insertions, in order.

    Of several, one with the most equal pairs; of several such, the one that this rule finds: walk from the beginnings
    to the ends; where such an alignment pairs the two phones, pair them, equal or not; else leave the first sequence's
    phone alone, where such an alignment does; else the second's. The first sequence is the smaller of the two in the
    order of Python's tuples: so the alignment of (b, a) is always that of (a, b) with its sides exchanged.
    """
    first, second = tuple(left), tuple(right)
    if second < first:
        return [Pair(one, other) for other, one in align(second, first)]
    one_edit = len(first) + len(second) + 1
    costs = _costs(first, second, one_edit)
    i = j = 0
    found = []
    while i < len(first) or j < len(second):
        here = costs[i][j]
        if i < len(first) and j < len(second):
            pairing = 0 if first[i] == second[j] else one_edit + 1
            if costs[i + 1][j + 1] + pairing == here:
                found.append(Pair(i, j))
                i, j = i + 1, j + 1
                continue
        if i < len(first) and costs[i + 1][j] + one_edit == here:
            found.append(Pair(i, None))
            i += 1
        else:
            found.append(Pair(None, j))
            j += 1
    return found


def _costs(left: tuple[str, ...], right: tuple[str, ...], one_edit: int) -> list[list[int]]:
    """Costs of aligning what begins at each place, [len(left) + 1][len(right) + 1], as far as they can matter.

    An edit costs `one_edit`, which is more than there can be edits, and a substitution 1 more: so of alignments with
    equally many edits the one with fewer substitutions is cheaper, which is the one with more equal pairs.
    With distance d no alignment of d edits pairs places more than d apart (Ukkonen 1985), counted from the ends: the
    rest is not computed.
    """
    width: int = Levenshtein.distance(left, right)
    rows_in, columns_in = len(left), len(right)
    far = one_edit * (one_edit + 1)
    shift = columns_in - rows_in
    below = [far] * (columns_in + 1)
    for place in range(max(0, columns_in - width), columns_in + 1):
        below[place] = (columns_in - place) * one_edit
    rows = [below]
    for number in range(rows_in - 1, -1, -1):
        phone = left[number]
        row = [far] * (columns_in + 1)
        if rows_in - number <= width:
            row[columns_in] = (rows_in - number) * one_edit
        middle = number + shift
        for place in range(min(columns_in - 1, middle + width), max(0, middle - width) - 1, -1):
            if phone == right[place]:
                row[place] = below[place + 1]
            else:
                best = below[place + 1] + 1
                if below[place] < best:
                    best = below[place]
                if row[place + 1] < best:
                    best = row[place + 1]
                row[place] = best + one_edit
        rows.append(row)
        below = row
    return rows[::-1]
