"""The lexicon as a prefix tree in flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from utterflow.beams.jit import kernel
from utterflow.beams.lexicon import Lexicon

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


class Trie(NamedTuple):
    """Node 0 is the root; the children of node i are the nodes child_start[i] to child_start[i + 1] - 1.

    The words that end at node i are word[word_start[i]] to word[word_start[i + 1] - 1], likeliest first; the separator
    that ends a word has no node. `ahead[i]` is the look-ahead of node i: the best `word_score` at or below it,
    0 at the root. The root's child by a token is root_child[token], or -1.
    """

    token: Ints
    child_start: Ints
    word_start: Ints
    word: Ints
    word_score: Floats
    ahead: Floats
    root_child: Ints


def build_trie(lexicon: Lexicon, word_scores: Floats, homophones: int, classes: int) -> Trie:
    """Make the prefix tree of a lexicon's spellings.

    Args:
        word_scores: what a word is expected to add to a score, per word; its maximum over the words below a node is the
            node's look-ahead.
        homophones: how many words of the same spelling are kept, the best by score; 0 for all.
        classes: number of tokens.
    """
    order = sorted(
        range(len(lexicon.spellings)), key=lambda i: (lexicon.spellings[i], -word_scores[lexicon.word_of[i]])
    )
    phones, starts = flatten([lexicon.spellings[i][:-1] for i in order])
    nodes, token, children = _number_nodes(phones, starts)
    # Spellings in sorted order come to each node together, its likeliest word first.
    by_node = np.argsort(nodes, kind="stable")
    words = np.array([lexicon.word_of[i] for i in order], np.int32)[by_node]
    counts = np.bincount(nodes, minlength=len(token))
    if homophones:
        rank = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
        words = words[rank < homophones]
        counts = np.minimum(counts, homophones)
    child_start = _starts(children) + 1
    word_start = _starts(counts)
    scores = word_scores[words]
    root_child = np.full(classes, -1, np.int32)
    first = np.arange(child_start[0], child_start[1], dtype=np.int32)
    root_child[token[first]] = first
    ahead = _look_ahead(child_start, word_start, scores)
    return Trie(token, child_start, word_start, words, scores, ahead, root_child)


def flatten(sequences: Sequence[Sequence[int]]) -> tuple[Ints, Ints]:
    """Sequences one after another, and where each starts (and the last ends)."""
    values = np.array([value for sequence in sequences for value in sequence], np.int32)
    return values, _starts(np.array([len(sequence) for sequence in sequences]))


def _starts(counts: NDArray[Any]) -> Ints:
    starts = np.zeros(len(counts) + 1, np.int32)
    starts[1:] = np.cumsum(counts)
    return starts


@kernel
def _number_nodes(phones: Ints, starts: Ints) -> tuple[Ints, Ints, Ints]:
    """Nodes of sorted spellings, numbered level by level so that siblings stand together.

    Returns the node where each spelling ends, the nodes' tokens, and their numbers of children.
    """
    count = len(starts) - 1
    at = np.zeros(count, np.int32)
    token = np.full(len(phones) + 1, -1, np.int32)
    children = np.zeros(len(phones) + 1, np.int32)
    size, depth, deeper = 1, 0, True
    while deeper:
        deeper = False
        parent = phone = -1
        for i in range(count):
            if starts[i + 1] - starts[i] <= depth:
                continue
            deeper = True
            if at[i] != parent or phones[starts[i] + depth] != phone:
                parent, phone = at[i], phones[starts[i] + depth]
                token[size] = phone
                children[parent] += 1
                size += 1
            at[i] = size - 1
        depth += 1
    return at, token[:size].copy(), children[:size].copy()


@kernel
def _look_ahead(child_start: Ints, word_start: Ints, scores: Floats) -> Floats:
    size = len(child_start) - 1
    ahead = np.full(size, -np.inf)
    for node in range(size - 1, -1, -1):
        for i in range(word_start[node], word_start[node + 1]):
            ahead[node] = max(ahead[node], scores[i])
        for child in range(child_start[node], child_start[node + 1]):
            ahead[node] = max(ahead[node], ahead[child])
    ahead[0] = 0.0
    return ahead
