"""Lexicon-constrained CTC beam search with a word n-gram: posteriors -> many distinct sentences.

What a sentence's score is
--------------------------
Tokens of an alignment, with repeats in adjacent frames collapsed and blanks removed (CTC), must read as silence, then
any number of words, each followed by silence. A word is one of its spellings; silence after a word is one separator or
more, silence before the first word any number, also none. So a sentence ends in a separator, and the sentence without
words is blanks and separators only. Then

    score = acoustic_scale * acoustic_score + alpha_ngram * lm_score + word_insertion_bonus * words

where `acoustic_score` is the log-probability of the best alignment of any of the words' spellings (Viterbi, not a sum),
and `lm_score` is ln P(words </s> | <s>). All logarithms are natural.

How it is found
---------------
A forward beam search (`kernels.py`) keeps the scores of where words end; a backward search (`nbest.py`) reads the best
distinct sentences from them, so that the length of the list does not depend on the width of the beam. A sentence
and its score are lost or lowered only by what the beam lost: with no limits on the beam, the list is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utterflow.beams import kernels
from utterflow.beams.kernels import Rules, Scores, Trace, Work
from utterflow.beams.lexicon import Lexicon
from utterflow.beams.nbest import TOLERANCE, Ends, Frames, Sentences, Spellings, best_sentences, build_lattice
from utterflow.beams.ngram_scores import START, WordScorer
from utterflow.beams.tokens import Tokens
from utterflow.beams.trie import Floats, Ints, build_trie, flatten

MAX_SCORES, MAX_STATES = 2_000_000, 500_000  # n-gram scores and states kept from one utterance to the next
FIRST_ROOM, FIRST_BEAM, CANDIDATES = 1 << 16, 1 << 12, 64  # sizes of tables, which grow as needed
TIES = 2  # sentences that tie with the last of the list are looked at up to this many times its length


@dataclass(frozen=True)
class SearchSettings:
    """What bounds the search and how scores are weighed; see `utterflow.beams.search` for the formula.

    Attributes:
        beam_size: entries (n-gram state and place in the lexicon's tree) kept per frame.
        top_n: length of the list.
        acoustic_scale: weight of the posteriors, above 0.
        alpha_ngram: weight of the n-gram's natural log-probability.
        beam_prune_threshold: entries this much below the frame's best are dropped (in units of the score).
        word_insertion_bonus: added per word.
        token_prune: a phone or separator is entered only in frames where its log-probability is at most this much below
            the frame's best token; `inf` for all.
        homophones: words of the same spelling that are kept, the likeliest by unigram; 0 for all.
    """

    beam_size: int
    top_n: int
    acoustic_scale: float
    alpha_ngram: float
    beam_prune_threshold: float
    word_insertion_bonus: float
    token_prune: float
    homophones: int


@dataclass(frozen=True)
class Beam:
    """A sentence of the list; scores are natural logarithms, `score` as the settings weigh the other two."""

    text: str
    words: tuple[str, ...]
    score: float
    acoustic_score: float
    lm_score: float


class LexiconDecoder:
    """Decodes utterances one after another; n-gram scores that were looked up are kept for the next ones.

    A decoder belongs to one thread, and a scorer to one decoder. The same input gives the same list, whatever was
    decoded before.
    """

    def __init__(self, tokens: Tokens, lexicon: Lexicon, scorer: WordScorer | None, settings: SearchSettings) -> None:
        if scorer is not None and scorer.words != lexicon.words:
            raise ValueError("the scorer was made for other words than the lexicon's")
        self.tokens, self.lexicon, self.scorer, self.settings = tokens, lexicon, scorer, settings
        self._rules = Rules(
            blank=tokens.blank,
            separator=tokens.separator,
            beam_size=settings.beam_size,
            threshold=float(settings.beam_prune_threshold),
            token_prune=float(settings.token_prune) * settings.acoustic_scale,
            lm_weight=float(settings.alpha_ngram) if scorer else 0.0,
            bonus=float(settings.word_insertion_bonus),
        )
        unigrams = scorer.unigrams() if scorer else np.zeros(len(lexicon.words))
        expected = self._rules.lm_weight * unigrams + self._rules.bonus
        self._trie = build_trie(lexicon, expected, settings.homophones, len(tokens.names))
        self._spellings = _by_word(lexicon)
        self._scores, self._count = _new_scores(FIRST_ROOM), 0
        self._arc_mark, self._state_mark = _marks(FIRST_ROOM), _marks(FIRST_ROOM)
        room = min(settings.beam_size, FIRST_BEAM) * CANDIDATES
        self._work = _new_work(room, settings.beam_size, len(tokens.names))
        self._trace = _new_trace(FIRST_ROOM, 1 << 10)

    def decode(self, log_probs: NDArray[np.float32]) -> list[Beam]:
        """The best distinct word sequences, at most `top_n`, best first; ties are in order of their texts.

        Fewer where the beam holds fewer; none where no sentence has a probability above zero or the beam lost all that
        end with the last frame.

        Args:
            log_probs: natural log-probabilities of the tokens, [frames, classes]; -inf is allowed. They are taken as
                they are: normalise logits before (log-softmax).

        Raises:
            ValueError: no frames, another number of classes than tokens, or values that are NaN or +inf.
        """
        self._check(log_probs)
        if self._count > MAX_SCORES or self._num_states() > MAX_STATES:
            self._forget()
        posteriors = np.ascontiguousarray(log_probs, dtype=np.float64) * self.settings.acoustic_scale
        self._forward(posteriors)
        return self._beams(self._backward(posteriors))

    def _check(self, log_probs: NDArray[np.float32]) -> None:
        classes = len(self.tokens.names)
        if log_probs.ndim != 2:
            raise ValueError(f"expected log-probabilities [frames, classes], found {log_probs.ndim} dimensions")
        if log_probs.shape[1] != classes:
            raise ValueError(f"the posteriors have {log_probs.shape[1]} classes, the tokens file {classes}")
        if not len(log_probs):
            raise ValueError("no frames")
        if not (log_probs < np.inf).all():
            frame = int(np.argmin((log_probs < np.inf).all(axis=1)))
            raise ValueError(f"frame {frame} holds values that are NaN or +inf")

    def _forward(self, posteriors: Floats) -> None:
        frames = len(posteriors)
        if len(self._trace.best_root) <= frames:
            self._trace = _new_trace(len(self._trace.pair), 2 * frames)
        kernels.start(self._work, self._trace)
        while True:
            status = kernels.advance(posteriors, self._rules, self._trie, self._scores, self._work, self._trace)
            if status == kernels.DONE:
                return
            if status == kernels.MISSING:
                self._look_up()
            elif status == kernels.WORK_FULL:
                self._work = _wider_work(self._work, 2 * len(self._work.state), self.settings.beam_size)
            else:
                self._trace = _wider_trace(self._trace, 2 * len(self._trace.pair))

    def _look_up(self) -> None:
        """Add the scores that the kernel asks for."""
        misses = int(self._work.counts[kernels.MISSES])
        states, words = self._work.miss_state[:misses], self._work.miss_word[:misses]
        scores, following = self._ask(states, words)
        if self._count + misses > len(self._scores.state):
            self._scores = _wider_scores(self._scores, self._count, self._count + misses)
        self._count = kernels.add_pairs(self._scores, self._count, states, words, scores, following)

    def _ask(self, states: Ints, words: Ints) -> tuple[Floats, Ints]:
        if self.scorer is None:
            return np.zeros(len(words)), np.full(len(words), START, np.int32)
        scores, following = self.scorer.score(states.tolist(), words.tolist())
        return np.array(scores), np.array(following, np.int32)

    def _num_states(self) -> int:
        return self.scorer.num_states if self.scorer else 1

    def _forget(self) -> None:
        """Start with no known n-gram scores."""
        if self.scorer:
            self.scorer.forget()
        self._scores, self._count = _new_scores(FIRST_ROOM), 0

    def _backward(self, posteriors: Floats) -> Sentences:
        work, trace, scores = self._work, self._trace, self._scores
        arrivals, size = int(work.counts[kernels.ARRIVALS]), int(work.counts[kernels.SIZE])
        if self._count > len(self._arc_mark):
            self._arc_mark = _marks(2 * self._count)
        if self._num_states() > len(self._state_mark):
            self._state_mark = _marks(2 * self._num_states())
        lattice, states = build_lattice(
            trace.pair[:arrivals],
            trace.time[:arrivals],
            trace.score[:arrivals],
            scores.state,
            scores.word,
            scores.score,
            scores.following,
            self._arc_mark,
            self._state_mark,
        )
        return best_sentences(
            Frames(posteriors, trace.best_root, trace.best_any),
            self._rules,
            self._spellings,
            lattice,
            self._ends(states, size),
            self.settings.top_n,
            TIES * self.settings.top_n,
        )

    def _ends(self, states: Ints, size: int) -> Ends:
        """The beam's entries between words after the last frame."""
        numbers = {int(state): number for number, state in enumerate(states)}
        finished = [i for i in range(size) if self._work.node[i] == 0 and self._work.token_score[i] > -np.inf]
        last = [int(self._work.state[i]) for i in finished]
        return Ends(
            state=np.array([numbers[state] for state in last], np.int32),
            score=self._work.token_score[finished],
            lm=np.array([self.scorer.end_score(state) if self.scorer else 0.0 for state in last], np.float64),
        )

    def _beams(self, found: Sentences) -> list[Beam]:
        names = [self.lexicon.words[word] for word in found.word.tolist()]
        beams = []
        for score, lm, (first, last) in zip(
            found.score.tolist(), found.lm.tolist(), pairwise(found.start.tolist()), strict=True
        ):
            words = tuple(names[first:last])
            weighed = self._rules.lm_weight * lm + self._rules.bonus * len(words)
            acoustic = (score - weighed) / self.settings.acoustic_scale
            beams.append(Beam(" ".join(words), words, score, acoustic, lm))
        return _ordered(beams)[: self.settings.top_n]


def _ordered(beams: list[Beam]) -> list[Beam]:
    """Best first; runs of scores that differ by rounding only are in order of their texts."""
    ranked = sorted(beams, key=lambda beam: -beam.score)
    gaps = (last.score - beam.score > TOLERANCE for last, beam in pairwise(ranked))
    runs = accumulate(gaps, initial=0)
    return [beam for _, beam in sorted(zip(runs, ranked, strict=False), key=lambda item: (item[0], item[1].text))]


def _by_word(lexicon: Lexicon) -> Spellings:
    spellings: list[list[int]] = [[] for _ in lexicon.words]
    for spelling, word in enumerate(lexicon.word_of):
        spellings[word].append(spelling)
    phone, start = flatten([spelling[:-1] for spelling in lexicon.spellings])
    by_word, word_start = flatten(spellings)
    return Spellings(phone, start, by_word, word_start)


def _new_work(room: int, beam_size: int, classes: int) -> Work:
    def ints() -> Ints:
        return np.zeros(room, np.int32)

    def floats() -> Floats:
        return np.zeros(room)

    return Work(
        counts=np.zeros(kernels.COUNTS, np.int64),
        state=ints(),
        node=ints(),
        token_score=floats(),
        blank_score=floats(),
        new_state=ints(),
        new_node=ints(),
        new_token=floats(),
        new_blank=floats(),
        place=ints(),
        scratch=floats(),
        slots=np.zeros(1 << (2 * min(room, 2 * beam_size) - 1).bit_length(), np.int64),
        enter=np.zeros(classes),
        open_tokens=np.zeros(classes, np.int32),
        end_entry=ints(),
        end_word=ints(),
        end_base=floats(),
        end_guess=floats(),
        end_pair=ints(),
        miss_state=ints(),
        miss_word=ints(),
    )


def _wider_work(work: Work, room: int, beam_size: int) -> Work:
    """A copy with more room: the beam, its counts and its hash table."""
    wider = _new_work(room, beam_size, len(work.enter))
    size = int(work.counts[kernels.SIZE])
    wider.counts[:] = work.counts
    for name in ("state", "node", "token_score", "blank_score"):
        getattr(wider, name)[:size] = getattr(work, name)[:size]
    kernels.link_entries(wider)
    return wider


def _new_trace(room: int, frames: int) -> Trace:
    return Trace(
        pair=np.zeros(room, np.int32),
        time=np.zeros(room, np.int32),
        score=np.zeros(room),
        best_root=np.zeros(frames + 1),
        best_any=np.zeros(frames + 1),
    )


def _wider_trace(trace: Trace, room: int) -> Trace:
    return trace._replace(
        pair=_longer(trace.pair, room), time=_longer(trace.time, room), score=_longer(trace.score, room)
    )


def _new_scores(room: int) -> Scores:
    return Scores(
        slots=np.full(1 << (2 * room - 1).bit_length(), kernels.EMPTY, np.int32),
        state=np.zeros(room, np.int32),
        word=np.zeros(room, np.int32),
        score=np.zeros(room),
        following=np.zeros(room, np.int32),
    )


def _wider_scores(scores: Scores, count: int, needed: int) -> Scores:
    wider = _new_scores(2 * needed)
    for name in ("state", "word", "score", "following"):
        getattr(wider, name)[:count] = getattr(scores, name)[:count]
    kernels.link_pairs(wider, count)
    return wider


def _longer(values: NDArray[Any], room: int) -> NDArray[Any]:
    longer = np.zeros(room, values.dtype)
    longer[: len(values)] = values
    return longer


def _marks(room: int) -> Ints:
    return np.full(room, -1, np.int32)
