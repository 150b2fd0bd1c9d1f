"""Forward pass: frame-synchronous Viterbi beam search over (n-gram state, node of the lexicon's tree).

A beam entry is a state of the language model and a node of the tree, with two scores: the best alignment that ends in
the node's token, and the best that ends in a blank after it. At the root, between words, blank and separator are both
silence, so there is one score. An entry has one predecessor beside itself, its parent in the tree, so that words alone
make entries meet. No history is kept: what ends where, and with which score, is written to `Trace`, from which
`nbest.py` reads whole sentences.

Inside a word an entry's score holds the look-ahead of its node; it gives way to the word's own score at the word's end.
Between words there is none: that keeps states alive which have yet to pay for their next word.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from utterflow.beams.jit import kernel, part
from utterflow.beams.trie import Floats, Ints, Trie

Longs = NDArray[np.int64]

DONE, MISSING, WORK_FULL, TRACE_FULL = range(4)  # what `advance` returns

# Places in Work.counts.
FRAME, SIZE, PHONES, CANDIDATES, ENDS, MISSES, ARRIVALS, PENDING, STAMP, COUNTS = range(10)

EMPTY = -1
STAMP_SHIFT = 32
ENTRY_MASK = (1 << STAMP_SHIFT) - 1


class Scores(NamedTuple):
    """Known n-gram scores: a hash table `slots` of pairs (state, word), numbered as they came."""

    slots: Ints
    state: Ints
    word: Ints
    score: Floats
    following: Ints


class Work(NamedTuple):
    """Beam, candidates for the next beam, word ends of the frame, and the hash table over (state, node)."""

    counts: Longs
    state: Ints
    node: Ints
    token_score: Floats
    blank_score: Floats
    new_state: Ints
    new_node: Ints
    new_token: Floats
    new_blank: Floats
    place: Ints
    scratch: Floats
    slots: Longs
    enter: Floats
    open_tokens: Ints
    end_entry: Ints
    end_word: Ints
    end_base: Floats
    end_guess: Floats
    end_pair: Ints
    miss_state: Ints
    miss_word: Ints


class Trace(NamedTuple):
    """What the forward pass leaves: word ends (pair of state and word, frames consumed, score), and per frame the best
    score between words and the best of all, both without look-ahead."""

    pair: Ints
    time: Ints
    score: Floats
    best_root: Floats
    best_any: Floats


class Rules(NamedTuple):
    """What the search needs of the settings, and the columns of blank and separator."""

    blank: int
    separator: int
    beam_size: int
    threshold: float
    token_prune: float
    lm_weight: float
    bonus: float


@part
def mix(first: int, second: int, mask: int) -> int:
    """A slot for a pair of small integers, in a table of mask + 1 slots."""
    value = np.uint64(first) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(second) * np.uint64(0xC2B2AE3D27D4EB4F)
    value ^= value >> np.uint64(29)
    value *= np.uint64(0xBF58476D1CE4E5B9)
    return int(np.int64(value >> np.uint64(32)) & mask)


@part
def find_pair(slots: Ints, states: Ints, words: Ints, state: int, word: int) -> int:
    """Number of a known pair, or -1."""
    mask = len(slots) - 1
    slot = mix(state, word, mask)
    while slots[slot] != EMPTY:
        pair = slots[slot]
        if states[pair] == state and words[pair] == word:
            return int(pair)
        slot = (slot + 1) & mask
    return -1


@kernel
def add_pairs(scores: Scores, count: int, state: Ints, word: Ints, score: Floats, following: Ints) -> int:
    """Append pairs that are not yet known; the new number of pairs."""
    for i in range(len(state)):
        if find_pair(scores.slots, scores.state, scores.word, state[i], word[i]) == -1:
            scores.state[count], scores.word[count] = state[i], word[i]
            scores.score[count], scores.following[count] = score[i], following[i]
            _link_pair(scores, count)
            count += 1
    return count


@kernel
def link_pairs(scores: Scores, count: int) -> None:
    """Enter the first `count` pairs into an empty table."""
    for pair in range(count):
        _link_pair(scores, pair)


@part
def _link_pair(scores: Scores, pair: int) -> None:
    mask = len(scores.slots) - 1
    slot = mix(scores.state[pair], scores.word[pair], mask)
    while scores.slots[slot] != EMPTY:
        slot = (slot + 1) & mask
    scores.slots[slot] = pair


@kernel
def start(work: Work, trace: Trace) -> None:
    """A beam of one entry: the root, after `<s>`, before the first frame."""
    work.counts[:STAMP] = 0
    work.state[0] = 0
    work.node[0] = 0
    work.token_score[0] = 0.0
    work.blank_score[0] = -np.inf
    work.counts[SIZE] = 1
    trace.best_root[0] = 0.0
    trace.best_any[0] = 0.0
    work.counts[STAMP] += 1
    enter_slot(work.slots, work.counts[STAMP], 0, 0, 0)


@kernel
def link_entries(work: Work) -> None:
    """Enter the beam into an empty hash table."""
    for i in range(work.counts[SIZE]):
        enter_slot(work.slots, work.counts[STAMP], work.state[i], work.node[i], i)


@kernel
def advance(posteriors: Floats, rules: Rules, trie: Trie, scores: Scores, work: Work, trace: Trace) -> int:
    """Go on with the forward pass as far as possible.

    Args:
        posteriors: scaled log-probabilities, float64 [frames, classes].

    Returns:
        DONE at the end; MISSING when n-gram scores of the pairs `miss_state`, `miss_word` are to be added to `scores`
        first; WORK_FULL or TRACE_FULL when one is too small for the next frame. Call again after that.
    """
    counts = work.counts
    while counts[FRAME] < len(posteriors):
        frame = posteriors[counts[FRAME]]
        if counts[PENDING] == 0:
            busy = _open_tokens(frame, rules, work)
            if not busy:
                _rest(frame, rules, trie, work, trace)
                continue
            short = _find_short(work, trie, trace)
            if short:
                return short
            best, floor = _stay(frame, rules, trie, work)
            best = _enter(rules, trie, work, best, floor)
            if counts[FRAME] == len(posteriors) - 1:
                best, floor = _drop_unfinished(work), -np.inf
            if _words_may_end(work, rules):
                _find_ends(rules, trie, work, max(floor, best - rules.threshold))
        _look_up(scores, work)
        if counts[MISSES]:
            counts[PENDING] = 1
            return MISSING
        counts[PENDING] = 0
        _arrive(rules, trie, scores, work)
        _select(rules, trie, work, trace)
    return DONE


@part
def _words_may_end(work: Work, rules: Rules) -> bool:
    return bool(work.enter[rules.separator] > -np.inf)


@part
def _open_tokens(frame: Floats, rules: Rules, work: Work) -> int:
    """Which tokens may be entered in this frame: those near the best. Returns how many, the separator included."""
    floor = frame.max() - rules.token_prune
    count = phones = 0
    for token in range(len(frame)):
        work.enter[token] = -np.inf
        if token != rules.blank and frame[token] >= floor and frame[token] > -np.inf:
            work.enter[token] = frame[token]
            count += 1
            if token != rules.separator:
                work.open_tokens[phones] = token
                phones += 1
    work.counts[PHONES] = phones
    work.counts[ENDS] = 0
    work.counts[MISSES] = 0
    return count


@part
def _find_short(work: Work, trie: Trie, trace: Trace) -> int:
    """What has too little room for all candidates and word ends that the frame may have; 0 where all is well."""
    size, phones = work.counts[SIZE], work.counts[PHONES]
    ends = children = 0
    for i in range(size):
        node = work.node[i]
        ends += trie.word_start[node + 1] - trie.word_start[node]
        children += phones if node == 0 else trie.child_start[node + 1] - trie.child_start[node]
    if len(work.state) < size + ends + children:
        return WORK_FULL
    if len(trace.pair) < work.counts[ARRIVALS] + ends:
        return TRACE_FULL
    return 0


@part
def _rest(frame: Floats, rules: Rules, trie: Trie, work: Work, trace: Trace) -> None:
    """A frame that no token may be entered in: every entry stays, none is added."""
    blank, silence = frame[rules.blank], max(frame[rules.blank], frame[rules.separator])
    best_root = best_any = -np.inf
    for i in range(work.counts[SIZE]):
        node = work.node[i]
        if node == 0:
            work.token_score[i] += silence
            best_root = max(best_root, work.token_score[i])
        else:
            top = max(work.token_score[i], work.blank_score[i])
            work.token_score[i] += frame[trie.token[node]]
            work.blank_score[i] = top + blank
            best_any = max(best_any, max(work.token_score[i], work.blank_score[i]) - trie.ahead[node])
    work.counts[FRAME] += 1
    time = work.counts[FRAME]
    trace.best_root[time] = best_root
    trace.best_any[time] = max(best_any, trace.best_root[time])


@part
def _stay(frame: Floats, rules: Rules, trie: Trie, work: Work) -> tuple[float, float]:
    """Each entry repeats its token or takes a blank.

    Returns the best score, and a floor: a full beam has no room for candidates below its worst entry.
    """
    blank, silence = frame[rules.blank], max(frame[rules.blank], frame[rules.separator])
    best, worst = -np.inf, np.inf
    for i in range(work.counts[SIZE]):
        node = work.node[i]
        if node == 0:
            token_score, blank_score = work.token_score[i] + silence, -np.inf
        else:
            token_score = work.token_score[i] + frame[trie.token[node]]
            blank_score = max(work.token_score[i], work.blank_score[i]) + blank
        work.new_state[i], work.new_node[i] = work.state[i], node
        work.new_token[i], work.new_blank[i] = token_score, blank_score
        score = max(token_score, blank_score)
        best, worst = max(best, score), min(worst, score)
    full = work.counts[SIZE] >= rules.beam_size
    return best, worst if full else -np.inf


@part
def _enter(rules: Rules, trie: Trie, work: Work, best: float, floor: float) -> float:
    """Each entry goes on to the children of its node. Returns the best score.

    The tables are taken out of their tuples before the loops: to pass the tuples on costs more than the work itself.
    """
    phones, size = work.counts[PHONES], work.counts[SIZE]
    stamp, threshold = work.counts[STAMP], rules.threshold
    enter, open_tokens, slots = work.enter, work.open_tokens, work.slots
    new_state, new_node, new_token, new_blank = work.new_state, work.new_node, work.new_token, work.new_blank
    token_of, child_start, ahead, root_child = trie.token, trie.child_start, trie.ahead, trie.root_child
    count = size
    floor = max(floor, best - threshold)
    likeliest = -np.inf
    for j in range(phones):
        likeliest = max(likeliest, enter[open_tokens[j]])
    for i in range(size):
        state, node = work.state[i], work.node[i]
        # No child has a better look-ahead than its parent, but for the root, which has none.
        if node != 0 and max(work.token_score[i], work.blank_score[i]) + likeliest < floor:
            continue
        after_blank = work.blank_score[i] - ahead[node]
        base = max(work.token_score[i] - ahead[node], after_blank)
        if node == 0:
            first, last = 0, phones
        else:
            first, last = child_start[node], child_start[node + 1]
        for j in range(first, last):
            if node == 0:
                token = open_tokens[j]
                child = root_child[token]
                if child < 0:
                    continue
                score = base
            else:
                token, child = token_of[j], j
                score = after_blank if token == token_of[node] else base
            score += enter[token] + ahead[child]
            if score < floor or score == -np.inf:
                continue
            if score > best:
                best = score
                floor = max(floor, best - threshold)
            slot = find_slot(slots, stamp, new_state, new_node, state, child)
            if slots[slot] >> STAMP_SHIFT == stamp:
                entry = slots[slot] & ENTRY_MASK
                new_token[entry] = max(new_token[entry], score)
            else:
                new_state[count], new_node[count] = state, child
                new_token[count], new_blank[count] = score, -np.inf
                count += 1
    work.counts[CANDIDATES] = count
    return best


@part
def find_slot(slots: Longs, stamp: int, new_state: Ints, new_node: Ints, state: int, node: int) -> int:
    """The slot of a candidate, or the free one where it would stand."""
    mask = len(slots) - 1
    slot = mix(state, node, mask)
    while slots[slot] >> STAMP_SHIFT == stamp:
        entry = slots[slot] & ENTRY_MASK
        if new_state[entry] == state and new_node[entry] == node:
            break
        slot = (slot + 1) & mask
    return slot


@part
def enter_slot(slots: Longs, stamp: int, state: int, node: int, entry: int) -> None:
    """Enter a candidate that is not there yet."""
    mask = len(slots) - 1
    slot = mix(state, node, mask)
    while slots[slot] >> STAMP_SHIFT == stamp:
        slot = (slot + 1) & mask
    slots[slot] = stamp << STAMP_SHIFT | entry


@part
def _drop_unfinished(work: Work) -> float:
    """In the last frame entries inside a word are of no use. Returns the best score of the others."""
    best = -np.inf
    for i in range(work.counts[CANDIDATES]):
        if work.new_node[i] != 0:
            work.new_token[i] = work.new_blank[i] = -np.inf
        best = max(best, work.new_token[i])
    return best


@part
def _find_ends(rules: Rules, trie: Trie, work: Work, floor: float) -> None:
    """List the word ends that would enter the beam if each word had its look-ahead score."""
    separator = work.enter[rules.separator]
    count = 0
    for i in range(work.counts[SIZE]):
        node = work.node[i]
        first, last = trie.word_start[node], trie.word_start[node + 1]
        if first == last:
            continue
        base = max(work.token_score[i], work.blank_score[i]) - trie.ahead[node] + separator
        for j in range(first, last):
            guess = base + trie.word_score[j]
            if guess < floor or guess == -np.inf:
                break
            work.end_entry[count], work.end_word[count] = i, trie.word[j]
            work.end_base[count], work.end_guess[count] = base, guess
            count += 1
    work.counts[ENDS] = count
    _keep_best_ends(rules, work)


@part
def _keep_best_ends(rules: Rules, work: Work) -> None:
    ends, candidates = work.counts[ENDS], work.counts[CANDIDATES]
    if ends + candidates <= rules.beam_size:
        return
    for i in range(candidates):
        work.scratch[i] = max(work.new_token[i], work.new_blank[i])
    work.scratch[candidates : candidates + ends] = work.end_guess[:ends]
    cut = kth_largest(work.scratch, candidates + ends, rules.beam_size)
    kept = 0
    for i in range(ends):
        if work.end_guess[i] >= cut and kept < rules.beam_size:
            work.end_entry[kept], work.end_word[kept] = work.end_entry[i], work.end_word[i]
            work.end_base[kept] = work.end_base[i]
            kept += 1
    work.counts[ENDS] = kept


@part
def _look_up(scores: Scores, work: Work) -> None:
    """Find the pairs of the word ends; list those that are not known yet."""
    misses = 0
    for i in range(work.counts[ENDS]):
        state, word = work.state[work.end_entry[i]], work.end_word[i]
        pair = find_pair(scores.slots, scores.state, scores.word, state, word)
        work.end_pair[i] = pair
        if pair == -1:
            work.miss_state[misses], work.miss_word[misses] = state, word
            misses += 1
    work.counts[MISSES] = misses


@part
def _arrive(rules: Rules, trie: Trie, scores: Scores, work: Work) -> None:
    """Word ends reach the root of the state after the word."""
    for i in range(work.counts[ENDS]):
        pair = work.end_pair[i]
        score = work.end_base[i] + rules.lm_weight * scores.score[pair] + rules.bonus
        state = scores.following[pair]
        slot = find_slot(work.slots, work.counts[STAMP], work.new_state, work.new_node, state, 0)
        if work.slots[slot] >> STAMP_SHIFT == work.counts[STAMP]:
            entry = work.slots[slot] & ENTRY_MASK
            work.new_token[entry] = max(work.new_token[entry], score)
        else:
            entry = work.counts[CANDIDATES]
            work.counts[CANDIDATES] += 1
            work.new_state[entry], work.new_node[entry] = state, 0
            work.new_token[entry], work.new_blank[entry] = score, -np.inf
            work.slots[slot] = work.counts[STAMP] << STAMP_SHIFT | entry
        work.end_entry[i] = entry
        work.end_guess[i] = score


@part
def _select(rules: Rules, trie: Trie, work: Work, trace: Trace) -> None:
    """The best candidates become the beam; word ends that reached it are written to the trace."""
    candidates = work.counts[CANDIDATES]
    best = -np.inf
    for i in range(candidates):
        work.scratch[i] = max(work.new_token[i], work.new_blank[i])
        best = max(best, work.scratch[i])
    floor = best - rules.threshold
    if candidates > rules.beam_size:
        floor = max(floor, kth_largest(work.scratch, candidates, rules.beam_size))
    work.counts[STAMP] += 1
    stamp, slots, place, ahead = work.counts[STAMP], work.slots, work.place, trie.ahead
    state, node, token_score, blank_score = work.state, work.node, work.token_score, work.blank_score
    best_root = best_any = -np.inf
    size = 0
    for i in range(candidates):
        score = max(work.new_token[i], work.new_blank[i])
        place[i] = -1
        if score < floor or score == -np.inf or size == rules.beam_size:
            continue
        place[i] = size
        state[size], node[size] = work.new_state[i], work.new_node[i]
        token_score[size], blank_score[size] = work.new_token[i], work.new_blank[i]
        enter_slot(slots, stamp, state[size], node[size], size)
        if node[size] == 0:
            best_root = max(best_root, score)
        best_any = max(best_any, score - ahead[node[size]])
        size += 1
    work.counts[SIZE] = size
    work.counts[FRAME] += 1
    time = work.counts[FRAME]
    trace.best_root[time] = best_root
    trace.best_any[time] = best_any
    _write_ends(work, trace)


@part
def _write_ends(work: Work, trace: Trace) -> None:
    count = work.counts[ARRIVALS]
    for i in range(work.counts[ENDS]):
        if work.place[work.end_entry[i]] >= 0:
            trace.pair[count], trace.time[count] = work.end_pair[i], work.counts[FRAME]
            trace.score[count] = work.end_guess[i]
            count += 1
    work.counts[ARRIVALS] = count


@part
def kth_largest(values: Floats, count: int, k: int) -> float:
    """The k-th largest of the first `count` values, which are reordered (Hoare's selection)."""
    low, high, target = 0, count - 1, k - 1
    while low < high:
        pivot = values[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            high = j
        elif target >= i:
            low = i
        else:
            break
    return float(values[target])
