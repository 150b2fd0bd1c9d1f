"""The lexicon beam search against an exhaustive search, and what it promises beside the scores."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from slow_beams import best_alignments, exhaustive_list

from utterflow.beams import search
from utterflow.beams.lexicon import Lexicon
from utterflow.beams.ngram_scores import LN10, WordScorer, load_ngram
from utterflow.beams.search import Beam, LexiconDecoder, SearchSettings
from utterflow.beams.tokens import Tokens
from utterflow.errors import UserError

TOKENS = Tokens(("-", "a", "b", "|"), blank=0, separator=3)
BLANK, A, B, BAR = range(4)
UNLIMITED = SearchSettings(
    beam_size=10**9,
    top_n=100,
    acoustic_scale=1.0,
    alpha_ngram=1.0,
    beam_prune_threshold=math.inf,
    word_insertion_bonus=0.0,
    token_prune=math.inf,
    homophones=0,
)


def make_lexicon(entries: Sequence[tuple[str, Sequence[int]]]) -> Lexicon:
    words = tuple(dict.fromkeys(word for word, _ in entries))
    return Lexicon(
        words, tuple((*phones, BAR) for _, phones in entries), tuple(words.index(word) for word, _ in entries)
    )


def random_lexicon(draw: random.Random) -> Lexicon:
    """A few short words over two phones: variants, homophones and repeated phones come by themselves."""
    entries = {
        (f"w{word}", tuple(draw.choices([A, B], k=draw.randint(1, 3))))
        for word in range(draw.randint(2, 6))
        for _ in range(draw.choice([1, 1, 2]))
    }
    return make_lexicon(sorted(entries))


def write_arpa(path: Path, words: Sequence[str], draw: random.Random) -> Path:
    """A 3-gram with random scores over most of the words; the others are unknown to it."""
    known = [word for word in words if draw.random() < 0.9]
    following = [*known, "</s>"]
    bigrams = [(first, second) for first in ["<s>", *known] for second in following if draw.random() < 0.5]
    bigrams = bigrams or [("<s>", "</s>")]
    trigrams = [(*pair, third) for pair in bigrams for third in following if (pair[1], third) in bigrams]
    trigrams = [gram for gram in trigrams if draw.random() < 0.5]
    orders: list[list[tuple[str, ...]]] = [[(word,) for word in ["<unk>", "<s>", *following]], bigrams, trigrams]
    order = 3 if trigrams else 2
    lines = ["\\data\\", *(f"ngram {n}={len(grams)}" for n, grams in enumerate(orders, start=1) if grams)]
    for n, grams in enumerate(orders, start=1):
        lines += ["", f"\\{n}-grams:"] if grams else []
        for gram in grams:
            backoff = f"\t{-draw.uniform(0, 0.5):.4f}" if n < order and gram[-1] != "</s>" else ""
            lines.append(f"{-draw.uniform(0.1, 2):.4f}\t{' '.join(gram)}{backoff}")
    path.write_text("\n".join([*lines, "", "\\end\\", ""]), encoding="utf-8")
    return path


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def spikes(*labels: int, share: float = 0.97) -> np.ndarray:
    """Posteriors [frames, 4] with one likely token per frame."""
    return np.log(np.where(np.arange(4) == np.array(labels)[:, None], share, (1 - share) / 3)).astype(np.float32)


def spelled(lexicon: Lexicon) -> dict[tuple[int, ...], set[str]]:
    words = defaultdict(set)
    for spelling, word in zip(lexicon.spellings, lexicon.word_of, strict=True):
        words[spelling[:-1]].add(lexicon.words[word])
    return words


def sentence_score(model: Any, unk_score: float) -> Callable[[tuple[str, ...]], float]:
    """The n-gram's score of a sentence: KenLM's own parts, in double precision as ours."""

    def score(words: tuple[str, ...]) -> float:
        parts = list(model.full_scores(" ".join(words)))
        return sum(part * LN10 + unk_score * unknown for part, _, unknown in parts)

    return score


@pytest.mark.parametrize("seed", range(60))
def test_unlimited_search_is_exact(tmp_path: Path, seed: int) -> None:
    """Texts, order and all scores of the whole list, and of the list cut at 7."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    lexicon = random_lexicon(draw)
    model = load_ngram(write_arpa(tmp_path / "lm.arpa", lexicon.words, draw)) if draw.random() < 0.85 else None
    unk_score = draw.choice([0.0, -1.5])
    scorer = WordScorer(model, lexicon.words, unk_score) if model else None
    log_probs = log_softmax(noise.normal(0, draw.choice([0.5, 2, 4]), (draw.randint(1, 7), 4)))
    if draw.random() < 0.3:
        log_probs[noise.random(log_probs.shape) < 0.2] = -np.inf
    scale, alpha, bonus = draw.choice([0.4, 1.0]), draw.choice([0.3, 1.0, 1.5]), draw.choice([0.0, 0.7, -0.6])
    settings = replace(UNLIMITED, acoustic_scale=scale, alpha_ngram=alpha, word_insertion_bonus=bonus, top_n=10**4)

    acoustic = best_alignments(log_probs.astype(np.float64), BLANK, BAR, spelled(lexicon))
    lm = sentence_score(model, unk_score) if model else lambda words: 0.0
    expected = exhaustive_list(acoustic, lm, scale, alpha if model else 0.0, bonus)
    for top_n in (10**4, 7):
        found = LexiconDecoder(TOKENS, lexicon, scorer, replace(settings, top_n=top_n)).decode(log_probs)
        assert [beam.text for beam in found] == [text for text, *_ in expected[:top_n]]
        numbers = [(beam.score, beam.acoustic_score, beam.lm_score) for beam in found]
        assert np.allclose(numbers, [row[1:] for row in expected[: len(found)]], atol=1e-4, rtol=0)
        assert all(tuple(beam.text.split()) == beam.words for beam in found)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lexicon, Any]:
    """A lexicon of 40 words over two phones and a 3-gram over it."""
    draw = random.Random(5)
    entries = {(f"w{word}", tuple(draw.choices([A, B], k=draw.randint(1, 6)))) for word in range(40) for _ in range(2)}
    lexicon = make_lexicon(sorted(entries))
    path = write_arpa(tmp_path_factory.mktemp("ngram") / "lm.arpa", lexicon.words, draw)
    return lexicon, load_ngram(path)


def noisy(seed: int, frames: int) -> np.ndarray:
    return log_softmax(np.random.default_rng(seed).normal(0, 2, (frames, 4)))


def decoder(lexicon: Lexicon, model: Any = None, **settings: Any) -> LexiconDecoder:
    scorer = WordScorer(model, lexicon.words, 0.0) if model else None
    return LexiconDecoder(TOKENS, lexicon, scorer, replace(UNLIMITED, **settings))


def viterbi(log_probs: np.ndarray, lexicon: Lexicon, words: Sequence[str]) -> float:
    """Best alignment of a sentence, by a search over (frames, words done, phones done, last token) that keeps all."""
    spellings = defaultdict(list)
    for spelling, word in zip(lexicon.spellings, lexicon.word_of, strict=True):
        spellings[lexicon.words[word]].append(spelling[:-1])
    # A place: words done, phones of the word so far (a tuple), whether a token could be repeated.
    places: dict[tuple[int, tuple[int, ...], bool], float] = {(0, (), False): 0.0}
    for frame in log_probs.astype(np.float64):
        onward: dict[tuple[int, tuple[int, ...], bool], float] = {}

        def reach(place: tuple[int, tuple[int, ...], bool], score: float, onward: dict[Any, float] = onward) -> None:
            onward[place] = max(onward.get(place, -math.inf), score)

        for (done, phones, fresh), score in places.items():
            reach((done, phones, False), score + frame[BLANK])
            if not phones:
                reach((done, (), False), score + frame[BAR])
            elif fresh:
                reach((done, phones, True), score + frame[phones[-1]])
            if done == len(words):
                continue
            for spelling in spellings[words[done]]:
                if spelling[: len(phones)] != phones:
                    continue
                if len(spelling) == len(phones):
                    reach((done + 1, (), False), score + frame[BAR])
                elif not (fresh and spelling[len(phones)] == phones[-1]):
                    reach((done, spelling[: len(phones) + 1], True), score + frame[spelling[len(phones)]])
        places = onward
    return places.get((len(words), (), False), -math.inf)


def test_a_narrow_beam_gives_a_long_list_of_true_scores(trained: tuple[Lexicon, Any]) -> None:
    """Hundreds of distinct sentences from 20 entries per frame; each with the score of its best alignment."""
    lexicon, model = trained
    log_probs = noisy(1, 60)
    found = decoder(lexicon, model, beam_size=20, top_n=300, alpha_ngram=0.5).decode(log_probs)
    assert len(found) == len({beam.text for beam in found}) == 300
    assert all(first.score >= second.score - 1e-6 for first, second in pairwise(found))
    for beam in found[::30]:
        best = viterbi(log_probs, lexicon, beam.words)
        assert beam.acoustic_score <= best + 1e-6
        assert beam.lm_score == pytest.approx(model.score(beam.text) * LN10, abs=1e-4)
        assert beam.score == pytest.approx(beam.acoustic_score + 0.5 * beam.lm_score, abs=1e-6)
    assert found[0].acoustic_score == pytest.approx(viterbi(log_probs, lexicon, found[0].words), abs=1e-6)


def test_a_wider_beam_is_not_worse_and_reaches_the_exact_list(trained: tuple[Lexicon, Any]) -> None:
    lexicon, model = trained
    log_probs = noisy(2, 30)
    exact = decoder(lexicon, model, top_n=50).decode(log_probs)
    assert len(exact) == 50
    totals = []
    for beam_size in (30, 100, 10**5):
        found = decoder(lexicon, model, top_n=50, beam_size=beam_size).decode(log_probs)
        assert len(found) == 50
        assert all(one.score <= best.score + 1e-6 for one, best in zip(found, exact, strict=False))
        totals.append(sum(one.score for one in found))
    assert totals[2] == pytest.approx(sum(one.score for one in exact), abs=1e-4)
    assert totals[0] < totals[1] < totals[2] + 1e-6


def test_a_threshold_prunes(trained: tuple[Lexicon, Any]) -> None:
    lexicon, model = trained
    log_probs = noisy(3, 30)
    free, pruned = (
        decoder(lexicon, model, top_n=5000, beam_prune_threshold=threshold).decode(log_probs)
        for threshold in (math.inf, 2.0)
    )
    assert 0 < len(pruned) < len(free)


def test_tokens_far_below_the_best_are_not_entered() -> None:
    lexicon = make_lexicon([("ay", [A]), ("bee", [B])])
    log_probs = np.log(np.array([[0.01, 0.96, 0.03, 1e-9], [0.01, 0.01, 0.01, 0.97]], np.float32))
    assert {beam.text for beam in decoder(lexicon).decode(log_probs)} == {"ay", "bee", ""}
    assert {beam.text for beam in decoder(lexicon, token_prune=3.0).decode(log_probs)} == {"ay", ""}
    quiet = np.vstack([log_probs[:1], spikes(BLANK, BLANK, BLANK, share=0.999), log_probs[1:]])
    free, pruned = decoder(lexicon).decode(quiet), decoder(lexicon, token_prune=3.0).decode(quiet)
    assert pruned[0].text == "ay"
    assert pruned[0].score == pytest.approx(free[0].score, abs=1e-6)


def best_text(labels: Sequence[int], *entries: tuple[str, Sequence[int]]) -> str:
    return decoder(make_lexicon(entries)).decode(spikes(*labels))[0].text


def test_separators_are_silence() -> None:
    """Before the first word, repeated, and again after a blank; but a word needs one at its end."""
    word = ("ay", [A])
    assert best_text([A, BAR], word) == "ay"
    assert best_text([BAR, BAR, BLANK, BAR, A, BAR, BAR, BLANK, BAR, A, A, BLANK, BAR], word) == "ay ay"
    assert best_text([BLANK, BLANK], word) == best_text([BAR, BLANK, BAR], word) == ""
    unfinished = decoder(make_lexicon([word])).decode(spikes(A, BAR, BLANK, A))
    assert unfinished[0].text == "ay"
    assert unfinished[0].acoustic_score < 3 * math.log(0.97) + math.log(0.03)


def test_a_repeated_phone_needs_a_blank_between() -> None:
    words = ("one", [A]), ("two", [A, A])
    assert best_text([A, A, BAR], *words) == "one"
    assert best_text([A, BLANK, A, BAR], *words) == "two"
    assert [beam.text for beam in decoder(make_lexicon(words[1:])).decode(spikes(A, A, BAR))] == [""]


def test_ties_are_in_order_of_text_also_where_the_list_is_cut() -> None:
    lexicon = make_lexicon([(word, [A]) for word in ("d", "b", "a", "c", "e")])
    assert [beam.text for beam in decoder(lexicon, top_n=4).decode(spikes(A, BAR))] == ["a", "b", "c", "d"]


def test_homophones_kept_are_the_likeliest(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    unigrams = ["-1\t<unk>", "-99\t<s>\t0", "-1\t</s>", "-3\trare", "-0.5\tcommon", "-1\tmiddle"]
    head, tail = (
        ["\\data\\", "ngram 1=6", "ngram 2=1", "", "\\1-grams:"],
        ["", "\\2-grams:", "-1\t<s> </s>", "", "\\end\\"],
    )
    path.write_text("\n".join([*head, *unigrams, *tail, ""]), encoding="utf-8")
    lexicon, model = make_lexicon([("rare", [A]), ("common", [A]), ("middle", [A]), ("bee", [B])]), load_ngram(path)
    first = [beam.text for beam in decoder(lexicon, model, homophones=2).decode(spikes(A, BAR))]
    assert first[:2] == ["common", "middle"]
    assert "rare" not in first
    assert "rare" in [beam.text for beam in decoder(lexicon, model).decode(spikes(A, BAR))]


def test_the_list_does_not_depend_on_what_was_decoded_before(
    trained: tuple[Lexicon, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the tables start tiny and grow, and where known scores are dropped between utterances."""
    lexicon, model = trained
    utterances = [noisy(seed, 25) for seed in range(4)]

    def lists(order: Sequence[int]) -> dict[int, list[Beam]]:
        one = decoder(lexicon, model, beam_size=200)
        return {index: one.decode(utterances[index]) for index in order}

    expected = lists([0, 1, 2, 3])
    assert lists([3, 1, 2, 0]) == expected
    monkeypatch.setattr(search, "MAX_SCORES", 10)
    assert lists([0, 1, 2, 3]) == expected
    for name in ("FIRST_ROOM", "FIRST_BEAM", "CANDIDATES"):
        monkeypatch.setattr(search, name, 2)
    assert lists([2, 3, 0, 1]) == expected


def test_long_utterances(trained: tuple[Lexicon, Any]) -> None:
    lexicon, model = trained
    assert len(decoder(lexicon, model, beam_size=30, top_n=5).decode(noisy(7, 3000))) == 5


def test_unfinished_words_do_not_crowd_out_sentences_in_the_last_frame() -> None:
    lexicon = make_lexicon([("ay", [A]), ("aybee", [A, B])])
    log_probs = np.log(np.array([[0.01, 0.97, 0.01, 0.01], [0.01, 0.01, 0.6, 0.38]], np.float32))
    assert decoder(lexicon, beam_size=1).decode(log_probs)[0].text == "ay"


def test_no_sentence_is_possible() -> None:
    lexicon = make_lexicon([("ay", [A])])
    impossible = np.full((3, 4), -np.inf, np.float32)
    impossible[:, B] = 0.0
    assert decoder(lexicon).decode(impossible) == []
    assert decoder(lexicon).decode(np.full((2, 4), -np.inf, np.float32)) == []


@pytest.mark.parametrize(
    ("log_probs", "said"),
    [
        (np.zeros((3, 5), np.float32), "5 classes, the tokens file 4"),
        (np.zeros((0, 4), np.float32), "no frames"),
        (np.zeros(4, np.float32), "1 dimensions"),
        (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), "frame 1 .*NaN"),
        (np.array([[0, 0, np.inf, 0]], np.float32), "frame 0 .*inf"),
    ],
)
def test_unusable_posteriors(log_probs: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        decoder(make_lexicon([("ay", [A])])).decode(log_probs)


def test_a_scorer_for_other_words_is_refused(trained: tuple[Lexicon, Any]) -> None:
    with pytest.raises(ValueError, match="other words"):
        LexiconDecoder(TOKENS, trained[0], WordScorer(trained[1], ("x",), 0.0), UNLIMITED)


def test_scores_of_words_are_those_of_kenlm(trained: tuple[Lexicon, Any]) -> None:
    """Word by word through states, unknown words included."""
    lexicon, model = trained
    scorer = WordScorer(model, (*lexicon.words, "unheard"), -2.0)
    assert scorer.unknown_words == sum(word not in model for word in lexicon.words) + 1
    draw = random.Random(3)
    for _ in range(50):
        words = draw.choices(range(len(scorer.words)), k=draw.randint(0, 6))
        state, total = 0, 0.0
        for word in words:
            (score,), (state,) = scorer.score([state], [word])
            total += score
        names = [scorer.words[word] for word in words]
        unknown = sum(name not in model for name in names)
        expected = model.score(" ".join(names)) * LN10 - 2.0 * unknown
        assert total + scorer.end_score(state) == pytest.approx(expected, abs=1e-4)


def test_files_that_are_no_ngram(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="file not found"):
        load_ngram(tmp_path / "absent.arpa")
    broken = tmp_path / "broken.arpa"
    broken.write_text("hello\n", encoding="utf-8")
    with pytest.raises(UserError, match="not a language model"):
        load_ngram(broken)
