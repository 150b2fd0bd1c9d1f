"""Beams of CTC models over characters and word pieces."""

from __future__ import annotations

import json
import logging
import math
from itertools import groupby, product
from pathlib import Path

import kenlm
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from utterflow.beams.characters import character_decoder, read_classes, read_unigrams, sentence_score
from utterflow.config.beams import Beams
from utterflow.errors import UserError

WAV2VEC2 = ["<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "I"]
ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-1.5\t<unk>\t0
0\t<s>\t-0.3
-0.9\t</s>
-0.6\ta\t-0.2
-0.7\tba\t-0.25
-0.8\tab\t-0.1

\\2-grams:
-0.2\t<s> ba
-0.4\tba a
-0.1\ta </s>
-0.5\tab ba

\\end\\
"""


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    (tmp_path / "lm.arpa").write_text(ARPA)
    return tmp_path / "lm.arpa"


def cfg(**keys) -> Beams:
    return Beams.model_validate(
        {
            "logits": "l",
            "decoder": "characters",
            "tokens": "vocab.json",
            "beam_size": 10_000,
            "top_n": 20,
            "beam_prune_threshold": 1000,
            "token_prune": 1000,
            **keys,
        }
    )


def vocab(folder: Path, names: list[str]) -> Path:
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    return folder / "vocab.json"


def lines(folder: Path, names: list[str]) -> Path:
    (folder / "tokens.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "tokens.txt"


def random_logits(seed: int, frames: int, classes: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 2, (frames, classes))
    return log_softmax(values, axis=1).astype(np.float32)


def every_text(log_probs: np.ndarray, names: list[str], blank: str) -> dict[str, float]:
    """ln P(text) by summing over all alignments; special tokens count as the blank."""
    silent = [i for i, name in enumerate(names) if name.startswith("<") or name == blank]
    found: dict[str, list[float]] = {}
    for path in product(range(len(names)), repeat=len(log_probs)):
        runs = (i for i, _ in groupby(-1 if i in silent else i for i in path))
        kept = [names[i] for i in runs if i >= 0]
        text = " ".join("".join(kept).replace("|", " ").split())
        found.setdefault(text, []).append(sum(log_probs[t, i] for t, i in enumerate(path)))
    return {text: float(logsumexp(scores)) for text, scores in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_without_limits_the_list_is_exact(tmp_path, arpa, seed):
    names = ["<pad>", "<unk>", "|", "a", "b"]
    keys = {"acoustic_scale": 0.5, "alpha_ngram": 0.8, "word_insertion_bonus": 0.3, "unk_score": -2.0}
    log_probs = random_logits(seed, 6, len(names))
    model = kenlm.Model(str(arpa))
    truth = every_text(log_probs, names, "<pad>")
    expected = {
        text: 0.5 * score + 0.8 * sentence_score(model, text, -2.0) + 0.3 * len(text.split())
        for text, score in truth.items()
    }
    found = character_decoder(read_classes(vocab(tmp_path, names)), cfg(**keys), model, None)(log_probs)
    best = sorted(expected, key=lambda text: -expected[text])[:20]
    assert [item.text for item in found] == best
    for item in found:
        assert item.acoustic_score == pytest.approx(truth[item.text], abs=1e-4)
        assert item.score == pytest.approx(expected[item.text], abs=1e-4)


def test_language_model_scores_are_those_of_whole_sentences(tmp_path, arpa):
    model = kenlm.Model(str(arpa))
    found = character_decoder(read_classes(vocab(tmp_path, WAV2VEC2)), cfg(), model, None)(random_logits(1, 7, 8))
    assert len(found) == 20
    for item in found:
        assert item.lm_score == pytest.approx(model.score(item.text) * math.log(10), abs=1e-5)
    assert sentence_score(model, "ba xx a", -3.0) == pytest.approx(model.score("ba xx a") * math.log(10) - 3.0)


def test_without_a_model_scores_are_acoustic(tmp_path):
    found = character_decoder(read_classes(vocab(tmp_path, WAV2VEC2)), cfg(acoustic_scale=0.4), None, None)(
        random_logits(2, 6, 8)
    )
    assert all(item.lm_score == 0 and item.score == pytest.approx(0.4 * item.acoustic_score) for item in found)
    assert any(any(letter in item.text for letter in "ABI") for item in found)


def test_capitals_become_small_where_the_model_has_small_letters(tmp_path, arpa):
    classes = read_classes(vocab(tmp_path, WAV2VEC2))
    log_probs = random_logits(3, 6, 8)
    small = character_decoder(classes, cfg(), kenlm.Model(str(arpa)), None)(log_probs)
    assert any(item.text for item in small) and all(item.text == item.text.lower() for item in small)
    (tmp_path / "capitals.arpa").write_text(
        ARPA.replace("\ta\t", "\tA\t").replace("ba a", "ba A").replace("\ta <", "\tA <")
    )
    large = character_decoder(classes, cfg(), kenlm.Model(str(tmp_path / "capitals.arpa")), None)(log_probs)
    assert any("A" in item.text for item in large)


def test_special_tokens_are_silent(tmp_path):
    log_probs = np.full((3, 8), -20.0, np.float32)
    log_probs[0, 5] = log_probs[1, 3] = log_probs[2, 5] = -1e-6  # A, <unk>, A
    found = character_decoder(read_classes(vocab(tmp_path, WAV2VEC2)), cfg(), None, None)(log_probs)
    assert found[0].text == "AA" and found[0].acoustic_score == pytest.approx(0, abs=1e-3)
    assert not any("<" in item.text or "⁇" in item.text for item in found)


@pytest.mark.parametrize(
    "names", [["<blank>", "▁a", "▁b", "c"], ["[PAD]", "a", "b", "##c"], ["▁a", "<unk>", "c", "▁b", "-"]]
)
def test_word_pieces(tmp_path, names):
    classes = read_classes(lines(tmp_path, names))
    assert classes.pieces and classes.count == len(names)
    column = dict(zip(classes.labels, classes.kept, strict=True))
    log_probs = np.full((5, len(names)), -20.0, np.float32)
    for frame, label in enumerate(["▁a", "c", "", "c", "▁b"]):
        log_probs[frame, column[label]] = -1e-6
    assert character_decoder(classes, cfg(), None, None)(log_probs)[0].text == "acc b"


def test_the_words_of_a_model_are_read(arpa, tmp_path):
    assert read_unigrams(arpa) == {"a", "ab", "ba"}
    classes = read_classes(vocab(tmp_path, WAV2VEC2))
    model = kenlm.Model(str(arpa))
    found = character_decoder(classes, cfg(unk_score=-50.0), model, read_unigrams(arpa))(random_logits(4, 7, 8))
    assert all(word in model for word in found[0].text.split())


def test_cheap_unknown_words_are_warned_of(arpa, tmp_path, caplog):
    logging.getLogger("utterflow").propagate = True
    classes, model = read_classes(vocab(tmp_path, WAV2VEC2)), kenlm.Model(str(arpa))
    character_decoder(classes, cfg(unk_score=-23.0), model, None)
    character_decoder(classes, cfg(), None, None)
    assert "unk_score" not in caplog.text
    character_decoder(classes, cfg(), model, None)
    assert "unk_score 0 makes unknown words cheap" in caplog.text


@pytest.mark.parametrize(
    ("shape", "message"), [((4, 7), r"\[4, 7\], the tokens are 8"), ((0, 8), "no frames"), ((4,), "wrong classes")]
)
def test_logits_of_another_shape(tmp_path, shape, message):
    decode = character_decoder(read_classes(vocab(tmp_path, WAV2VEC2)), cfg(), None, None)
    with pytest.raises(ValueError, match=message):
        decode(np.full(shape, -1.0, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers(tmp_path, value):
    decode = character_decoder(read_classes(vocab(tmp_path, WAV2VEC2)), cfg(), None, None)
    with pytest.raises(ValueError, match="not numbers"):
        decode(np.full((3, 8), value, np.float32))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", '{"|": 0, "a": 1}', r"no blank among the 2 tokens[\s\S]*<pad>"),
        ("vocab.json", '{"<pad>": 0, "a": 1}', r"nothing keeps words apart[\s\S]*`\|`"),
        ("vocab.json", '{"<pad>": 0, "|": 1, "a": 3}', r"not 0 to 2: 2 is missing"),
        ("vocab.json", '{"<pad>": 0, "|": 0, "a": 1}', r"not 0 to 2"),
        ("vocab.json", '{"eng": {"<pad>": 0}}', r"expected tokens with their numbers"),
        ("vocab.json", '["a"]', r"expected tokens with their numbers"),
        ("vocab.json", "{}", r"not 0 to -1|no blank"),
        ("vocab.json", "nonsense", "not valid JSON"),
        ("tokens.txt", "", "no tokens"),
        ("tokens.txt", "-\na\n|\na\n", r"'a' stands here twice: first in line 2[\s\S]*line 4"),
        ("tokens.txt", "[PAD]\n▁a\na\n##▁a\n", r"two classes stand for"),
        ("missing.txt", None, "file not found"),
    ],
)
def test_tokens_that_cannot_be_used_are_plain_errors(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_classes(tmp_path / name)
