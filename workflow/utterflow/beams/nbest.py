"""Backward pass: the best distinct sentences of a trace, in order.

Tree-trellis search (Soong and Huang 1991): partial sentences grow from the end to the start, the likeliest first. What
is still missing of a partial sentence is known exactly, from the forward pass, so the search is A* with a perfect
estimate: complete sentences come out in order, and no work is spent on others. A partial sentence keeps its best score
for each frame where it may begin, so that all alignments of its words count as one sentence, and none comes twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utterflow.beams.jit import kernel, part
from utterflow.beams.kernels import Rules
from utterflow.beams.trie import Floats, Ints

NO_WORD = -1
COMPLETE = -2
TOLERANCE = 1e-6  # scores that differ by less are a tie


class Spellings(NamedTuple):
    """Phones of spelling i: phone[start[i] : start[i + 1]], without the separator; the spellings of word w:
    spelling[word_start[w] : word_start[w + 1]]."""

    phone: Ints
    start: Ints
    spelling: Ints
    word_start: Ints


class Lattice(NamedTuple):
    """Word arcs by the state that they lead to: those into state s are into[s] to into[s + 1] - 1.

    An arc is a word after a state (`source`); it ends at frames time[i] with forward scores score[i], for i from
    first[arc] to first[arc + 1] - 1, in order of time. `born` is the first frame at which a state stood between words.
    """

    into: Ints
    source: Ints
    word: Ints
    lm: Floats
    first: Ints
    time: Ints
    score: Floats
    born: Ints


class Ends(NamedTuple):
    """States between words after the last frame: forward score, and ln P(</s>) after them."""

    state: Ints
    score: Floats
    lm: Floats


class Frames(NamedTuple):
    """Scaled log-probabilities [frames, classes], and the best forward scores after each number of frames: between
    words, and at all."""

    posteriors: Floats
    best_root: Floats
    best_any: Floats


class Tree(NamedTuple):
    """Partial sentences as a tree of suffixes.

    Node i is the word `word[i]` before those of node `rest[i]`, after the n-gram state `state[i]`; `goal[i]` is the
    score of the best sentence that ends so, `lm[i]` the sum of its n-gram scores. Once looked at, its words may begin
    at frames low[i] to high[i], with the scores that stand from place at[i] on. `heap` holds the nodes still to be
    looked at.
    """

    word: Ints
    rest: Ints
    state: Ints
    goal: Floats
    lm: Floats
    low: Ints
    high: Ints
    at: Ints
    heap: Ints


class Scratch(NamedTuple):
    """Scores by frame, and of the phones of a word."""

    starts: Floats
    token: Floats
    blank: Floats


class Sentences(NamedTuple):
    """Sentences found: score, sum of n-gram scores, and words: word[start[i] : start[i + 1]]."""

    score: Floats
    lm: Floats
    word: Ints
    start: Ints


@kernel
def build_lattice(
    pair: Ints,
    time: Ints,
    score: Floats,
    pair_state: Ints,
    pair_word: Ints,
    pair_score: Floats,
    following: Ints,
    arc_mark: Ints,
    state_mark: Ints,
) -> tuple[Lattice, Ints]:
    """Sort the word ends of a trace into arcs.

    `arc_mark` and `state_mark` hold -1 for every known pair and state, before and after.

    Returns:
        The lattice, with states numbered anew (the start is 0), and the old numbers of its states.
    """
    states, arcs = np.empty(2 * len(pair) + 1, np.int32), np.empty(len(pair), np.int32)
    states[0] = 0
    state_mark[0] = 0
    num_states, num_arcs = 1, 0
    for p in pair:
        if arc_mark[p] == -1:
            arc_mark[p] = num_arcs
            arcs[num_arcs] = p
            num_arcs += 1
            for state in (pair_state[p], following[p]):
                if state_mark[state] == -1:
                    state_mark[state] = num_states
                    states[num_states] = state
                    num_states += 1
    # Arcs in order of the state they lead to, then of their first end.
    into = np.zeros(num_states + 1, np.int32)
    for arc in range(num_arcs):
        into[state_mark[following[arcs[arc]]] + 1] += 1
    into = np.cumsum(into).astype(np.int32)
    free = into.copy()
    source, word = np.empty(num_arcs, np.int32), np.empty(num_arcs, np.int32)
    lm = np.empty(num_arcs)
    for arc in range(num_arcs):
        p = arcs[arc]
        target = state_mark[following[p]]
        place = free[target]
        free[target] += 1
        arc_mark[p] = place
        source[place], word[place], lm[place] = state_mark[pair_state[p]], pair_word[p], pair_score[p]
    first = np.zeros(num_arcs + 1, np.int32)
    for p in pair:
        first[arc_mark[p] + 1] += 1
    first = np.cumsum(first).astype(np.int32)
    free = first.copy()
    times, scores = np.empty(len(pair), np.int32), np.empty(len(pair))
    born = np.full(num_states, 2**30, np.int32)
    born[0] = 0
    for i in range(len(pair)):
        arc = arc_mark[pair[i]]
        times[free[arc]], scores[free[arc]] = time[i], score[i]
        free[arc] += 1
        target = state_mark[following[pair[i]]]
        born[target] = min(born[target], time[i])
    for arc in range(num_arcs):
        arc_mark[arcs[arc]] = -1
    state_mark[states[:num_states]] = -1
    return Lattice(into, source, word, lm, first, times, scores, born), states[:num_states].copy()


@kernel
def best_sentences(
    frames: Frames, rules: Rules, spellings: Spellings, lattice: Lattice, ends: Ends, top_n: int, limit: int
) -> Sentences:
    """The `top_n` best sentences, best first, and up to `limit` where more tie with the last of these."""
    tree = _new_tree(1024)
    starts, starts_used = np.empty(1 << 14), 0
    floors = np.full(top_n, -np.inf)
    longest = np.max(spellings.start[1:] - spellings.start[:-1])
    scratch = Scratch(np.empty(len(frames.posteriors) + 1), np.empty(longest), np.empty(longest))
    chosen, found = np.empty(limit, np.int32), 0
    tree = _wider_tree(tree, len(ends.state))
    size = waiting = _plant(tree, rules, ends, floors)
    while waiting and found < limit:
        node, waiting = _pop(tree.heap, waiting, tree.goal)
        if found >= top_n and tree.goal[node] < tree.goal[chosen[top_n - 1]] - TOLERANCE:
            break
        if tree.word[node] == COMPLETE:
            chosen[found] = node
            found += 1
            continue
        lo, hi = _find_starts(frames, rules, spellings, lattice, tree, node, starts, floors[0] - TOLERANCE, scratch)
        if lo > hi:
            continue
        starts = _wider(starts, starts_used + hi - lo + 1)
        starts[starts_used : starts_used + hi - lo + 1] = scratch.starts[lo : hi + 1]
        tree.low[node], tree.high[node], tree.at[node] = lo, hi, starts_used
        starts_used += hi - lo + 1
        state = tree.state[node]
        tree = _wider_tree(tree, size + 1 + lattice.into[state + 1] - lattice.into[state])
        size, waiting = _extend(tree, lattice, node, scratch.starts, floors, size, waiting)
    words, start = _read_words(chosen[:found], tree.word, tree.rest)
    return Sentences(tree.goal[chosen[:found]], tree.lm[chosen[:found]], words, start)


@part
def _new_tree(room: int) -> Tree:
    return Tree(
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room),
        np.empty(room),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
    )


@part
def _wider_tree(tree: Tree, size: int) -> Tree:
    return Tree(
        _wider(tree.word, size),
        _wider(tree.rest, size),
        _wider(tree.state, size),
        _wider(tree.goal, size),
        _wider(tree.lm, size),
        _wider(tree.low, size),
        _wider(tree.high, size),
        _wider(tree.at, size),
        _wider(tree.heap, size),
    )


@part
def _wider(values: NDArray[Any], size: int) -> NDArray[Any]:
    """`values`, or a longer copy when `size` does not fit."""
    if size <= len(values):
        return values
    wider = np.empty(2 * size, values.dtype)
    wider[: len(values)] = values
    return wider


@part
def _plant(tree: Tree, rules: Rules, ends: Ends, floors: Floats) -> int:
    """A node for each state at the end, with no words yet. Returns their number."""
    for i in range(len(ends.state)):
        tree.word[i], tree.rest[i], tree.state[i] = NO_WORD, -1, ends.state[i]
        tree.lm[i] = ends.lm[i]
        tree.goal[i] = ends.score[i] + rules.lm_weight * ends.lm[i]
        _push(tree.heap, i, tree.goal, i)
        _raise_floor(floors, tree.goal[i])
    return len(ends.state)


@part
def _find_starts(
    frames: Frames,
    rules: Rules,
    spellings: Spellings,
    lattice: Lattice,
    tree: Tree,
    node: int,
    starts: Floats,
    bound: float,
    scratch: Scratch,
) -> tuple[int, int]:
    """Scores of a node's words for each frame where they may begin, into `scratch.starts`.

    Returns:
        The first and the last such frame; the first after the last where there is none.
    """
    born = lattice.born[tree.state[node]]
    if tree.word[node] == NO_WORD:
        return _silence_to_end(frames, rules, rules.lm_weight * tree.lm[node], born, bound, scratch.starts)
    after = tree.rest[node]
    gain = rules.lm_weight * (tree.lm[node] - tree.lm[after]) + rules.bonus
    later = starts[tree.at[after] : tree.at[after] + tree.high[after] - tree.low[after] + 1]
    hi = tree.high[after]
    if hi <= born:
        return 1, 0
    scratch.starts[born : hi + 1] = -np.inf
    lo = hi
    word = tree.word[node]
    for i in range(spellings.word_start[word], spellings.word_start[word + 1]):
        spelling = spellings.spelling[i]
        phones = spellings.phone[spellings.start[spelling] : spellings.start[spelling + 1]]
        lo = min(lo, _prepend(frames, rules, phones, gain, later, tree.low[after], born, bound, scratch))
    return _trim(lo, hi, bound, frames.best_root, scratch.starts)


@part
def _silence_to_end(
    frames: Frames, rules: Rules, end: float, born: int, bound: float, starts: Floats
) -> tuple[int, int]:
    """Scores of silence from each frame to the last, from `born` on or from where they fall below `bound`."""
    posteriors, best_root = frames.posteriors, frames.best_root
    lo = hi = len(posteriors)
    starts[hi] = end
    while lo > born and starts[lo] + best_root[lo] >= bound:
        lo -= 1
        starts[lo] = starts[lo + 1] + max(posteriors[lo, rules.blank], posteriors[lo, rules.separator])
    return _trim(lo, hi, bound, best_root, starts)


@part
def _prepend(
    frames: Frames,
    rules: Rules,
    phones: Ints,
    gain: float,
    later: Floats,
    later_low: int,
    born: int,
    bound: float,
    scratch: Scratch,
) -> int:
    """Viterbi from the end of a spelling to its start; raises `scratch.starts` where it is better.

    `token[j]` is the best score from phone j on when the frame before was that phone, `blank[j]` when it was a blank
    after it.

    Args:
        gain: what the word adds beside its alignment.
        later: scores of the words after it when they begin at frame `later_low`, `later_low` + 1, ...

    Returns:
        The first frame reached: `born`, or where nothing above `bound` can come any more.
    """
    starts, token, blank = scratch.starts, scratch.token, scratch.blank
    length = len(phones)
    token[:length] = -np.inf
    blank[:length] = -np.inf
    here = -np.inf
    time = later_low + len(later) - 1
    while time > born:
        time -= 1
        frame = frames.posteriors[time]
        here = max(here + max(frame[rules.blank], frame[rules.separator]), frame[phones[0]] + token[0])
        starts[time] = max(starts[time], here)
        top = -np.inf
        for j in range(length):
            phone = phones[j]
            onward = at_once = -np.inf
            if j + 1 < length:
                onward = frame[phones[j + 1]] + token[j + 1]
                if phones[j + 1] != phone:
                    at_once = onward
            elif time + 1 >= later_low:
                onward = at_once = frame[rules.separator] + gain + later[time + 1 - later_low]
            wait = frame[rules.blank] + blank[j]
            token[j] = max(frame[phone] + token[j], wait, at_once)
            blank[j] = max(wait, onward)
            top = max(top, token[j], blank[j])
        if time < later_low and max(top + frames.best_any[time], here + frames.best_root[time]) < bound:
            break
    return time


@part
def _trim(lo: int, hi: int, bound: float, best_root: Floats, starts: Floats) -> tuple[int, int]:
    """Leave out frames at both ends where no sentence above `bound` begins."""
    while lo <= hi and (starts[hi] == -np.inf or starts[hi] + best_root[hi] < bound):
        hi -= 1
    while lo <= hi and (starts[lo] == -np.inf or starts[lo] + best_root[lo] < bound):
        lo += 1
    return lo, hi


@part
def _extend(
    tree: Tree, lattice: Lattice, node: int, starts: Floats, floors: Floats, size: int, waiting: int
) -> tuple[int, int]:
    """Add a node for each word that may stand before a node's words, and one if they are a whole sentence.

    Returns the sizes of tree and heap.
    """
    lo, hi, state = tree.low[node], tree.high[node], tree.state[node]
    best = -np.inf
    for arc in range(lattice.into[state] - 1, lattice.into[state + 1]):
        whole = arc < lattice.into[state]
        if whole:
            score = starts[0] if state == 0 and lo == 0 else -np.inf
        else:
            score = _best_end(lattice, arc, lo, hi, starts)
        if score == -np.inf or score < floors[0] - TOLERANCE:
            continue
        tree.rest[size], tree.goal[size] = node, score
        if whole:
            tree.word[size], tree.state[size], tree.lm[size] = COMPLETE, 0, tree.lm[node]
        else:
            tree.word[size], tree.state[size] = lattice.word[arc], lattice.source[arc]
            tree.lm[size] = tree.lm[node] + lattice.lm[arc]
        waiting = _push(tree.heap, waiting, tree.goal, size)
        size += 1
        # The best continuation takes the place of what it continues, which is among the floors already.
        _raise_floor(floors, min(score, best))
        best = max(best, score)
    return size, waiting


@part
def _best_end(lattice: Lattice, arc: int, lo: int, hi: int, starts: Floats) -> float:
    """The best score of an arc that ends where the words after it begin."""
    first, last = lattice.first[arc], lattice.first[arc + 1]
    best = -np.inf
    if lattice.time[first] > hi or lattice.time[last - 1] < lo:
        return best
    for i in range(first, last):
        time = lattice.time[i]
        if lo <= time <= hi:
            best = max(best, lattice.score[i] + starts[time])
    return best


@part
def _read_words(nodes: Ints, word: Ints, rest: Ints) -> tuple[Ints, Ints]:
    """The words after each node, one sentence after another, and where each starts."""
    start = np.zeros(len(nodes) + 1, np.int32)
    words = np.empty(64 * len(nodes) + 64, np.int32)
    for i in range(len(nodes)):
        node, size = nodes[i], start[i]
        node = rest[node]
        while word[node] != NO_WORD:
            words = _wider(words, size + 1)
            words[size] = word[node]
            size += 1
            node = rest[node]
        start[i + 1] = size
    return words[: start[-1]], start


@part
def _raise_floor(floors: Floats, score: float) -> None:
    """Enter a score among the best so far: a heap whose first is the least."""
    if score <= floors[0]:
        return
    i, size = 0, len(floors)
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and floors[child + 1] < floors[child]:
            child += 1
        if floors[child] >= score:
            break
        floors[i] = floors[child]
        i = child
    floors[i] = score


@part
def _before(goal: Floats, first: int, second: int) -> bool:
    return goal[first] > goal[second] or (goal[first] == goal[second] and first < second)


@part
def _push(heap: Ints, size: int, goal: Floats, node: int) -> int:
    """Enter a node into the heap of nodes, the best goal first. Returns the heap's size."""
    i = size
    while i > 0 and _before(goal, node, heap[(i - 1) >> 1]):
        heap[i] = heap[(i - 1) >> 1]
        i = (i - 1) >> 1
    heap[i] = node
    return size + 1


@part
def _pop(heap: Ints, size: int, goal: Floats) -> tuple[int, int]:
    """Take the best node. Returns it and the heap's size."""
    best, last = heap[0], heap[size - 1]
    size -= 1
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _before(goal, heap[child + 1], heap[child]):
            child += 1
        if not _before(goal, heap[child], last):
            break
        heap[i] = heap[child]
        i = child
    heap[i] = last
    return best, size
