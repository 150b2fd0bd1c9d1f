"""Beams of CTC models over characters or word pieces, with pyctcdecode."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyctcdecode.alphabet import Alphabet
from pyctcdecode.decoder import BeamSearchDecoderCTC
from pyctcdecode.language_model import LanguageModel

from utterflow.beams.ngram_scores import LN10
from utterflow.config.beams import Beams
from utterflow.errors import UserError
from utterflow.files import read_json, text_lines
from utterflow.jobs import log
from utterflow.records import BeamHypothesis, short

BLANKS = (r"[<\[]pad[>\]]", r"[<\[]blank[>\]]", "-", "_")  # the first that is there
SPECIAL = re.compile(r"[<\[].+[>\]]")
PIECE_START = "▁"
PIECE_CONTINUES = "##"
USUAL = "unk_score: -23, acoustic_scale: 1, beam_prune_threshold: 10, token_prune: 5, beam_size: 100"
FLOOR = -34.0  # pyctcdecode lets no log-probability fall below -34.5

LogProbs = NDArray[np.float32]
Decode = Callable[[LogProbs], list[BeamHypothesis]]


@dataclass(frozen=True)
class Classes:
    """What a CTC model's classes stand for, in pyctcdecode's spelling: blank `""`, word separator `" "`.

    `kept` are the columns that `labels` names; `dropped` those of other special tokens (`<s>`, `<unk>`, ...), which no
    text can hold.
    """

    labels: tuple[str, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    pieces: bool

    @property
    def count(self) -> int:
        return len(self.kept) + len(self.dropped)

    @property
    def blank(self) -> int:
        """The blank's place among `kept`."""
        return self.labels.index("")


def read_classes(path: Path) -> Classes:
    """Read the classes of a CTC model: a Hugging Face `vocab.json`, or a file with a token per line.

    The blank is `<pad>`, `[PAD]`, `<blank>`, `-` or `_`, the first of these that is there; words are apart by `|` or
    `" "`, or pieces begin with `▁`, or go on with `##`.

    Raises:
        UserError: the file cannot be read, numbers or tokens are missing or repeated, there is no blank, or nothing
            keeps words apart.
    """
    names = _read_vocabulary(path) if path.suffix == ".json" else _read_lines(path)
    blank = next((name for kind in BLANKS for name in names if re.fullmatch(kind, name, re.IGNORECASE)), None)
    if blank is None:
        raise UserError(
            f"no blank among the {len(names)} tokens",
            where=str(path),
            fix="name the blank's class <pad>, [PAD], <blank>, - or _",
        )
    continued = any(name.startswith(PIECE_CONTINUES) for name in names)
    pieces = continued or any(name.startswith(PIECE_START) for name in names)
    separator = next((name for name in ("|", " ") if name in names), None)
    if not pieces and separator is None:
        raise UserError(
            f"nothing keeps words apart among the {len(names)} tokens",
            where=str(path),
            fix=f"add the separator `|` of characters; word pieces begin with {PIECE_START} or go on with ##",
        )
    columns = {name: column for column, name in enumerate(names)}
    dropped = [column for name, column in columns.items() if name != blank and SPECIAL.fullmatch(name)]
    if pieces and separator is not None:
        dropped.append(columns[separator])

    def label(name: str) -> str:
        if name == blank:
            return ""
        if continued:
            return name[2:] if name.startswith(PIECE_CONTINUES) else PIECE_START + name
        return " " if name == separator else name

    kept = [(label(name), column) for name, column in columns.items() if column not in dropped]
    labels = [text for text, _ in kept]
    if len(set(labels)) < len(labels):
        twice = next(text for text in labels if labels.count(text) > 1)
        raise UserError(f"two classes stand for {twice!r}", where=str(path), fix="give each class a name of its own")
    return Classes(tuple(labels), tuple(column for _, column in kept), tuple(dropped), pieces)


def _read_vocabulary(path: Path) -> list[str]:
    found = read_json(path)
    if not isinstance(found, dict) or not all(type(number) is int for number in found.values()):
        raise UserError(
            f"expected tokens with their numbers, found {short(found, 80)}",
            where=str(path),
            fix='give the vocab.json of the model, e.g. {"<pad>": 0, "|": 1, "a": 2}; one of its languages, if several',
        )
    names = sorted(found, key=lambda name: int(found[name]))
    wrong = next((i for i, name in enumerate(names) if found[name] != i), None)
    if wrong is not None or not names:
        raise UserError(
            f"the tokens' numbers are not 0 to {len(names) - 1}: {wrong} is missing, or another is there twice",
            where=str(path),
            fix="each number names the column of one class; give every class a token (with added_tokens.json's)",
        )
    return names


def _read_lines(path: Path) -> list[str]:
    names: dict[str, int] = {}
    for number, line in text_lines(path):
        name = line.strip()
        if name in names:
            raise UserError(
                f"token {name!r} stands here twice: first in line {names[name]}",
                where=f"{path}, line {number}",
                fix="delete one of them",
            )
        names[name] = number
    if not names:
        raise UserError("no tokens in this file", where=str(path), fix="write one token per line")
    return list(names)


def read_unigrams(arpa: Path) -> set[str]:
    """The words of an ARPA file.

    Raises:
        UserError: the file is missing or is not text.
    """
    words: set[str] = set()
    inside = False
    for _, line in text_lines(arpa):
        if line.startswith("\\"):
            if inside:
                break
            inside = line.startswith("\\1-grams:")
        elif inside:
            words.add(line.rstrip("\n").split("\t")[1])
    return words - {"<s>", "</s>", "<unk>"}


def character_decoder(classes: Classes, cfg: Beams, model: Any | None, unigrams: set[str] | None) -> Decode:
    """A function from log-probabilities [frames, classes] to hypotheses, best first.

    The search is pyctcdecode's prefix beam search, which sums over alignments. Its weights are scaled so that it orders
    prefixes by

        acoustic_scale * acoustic_score + alpha_ngram * lm_score + word_insertion_bonus * words,

    and the hypotheses that it finds are scored and ordered anew by this: pyctcdecode's own totals count a word too many
    where an alignment ends in a separator. `acoustic_score` is the log-probability of the alignments that the search
    kept; the probability of dropped special tokens goes to the blank. `token_prune` bounds the log-probability itself.

    Args:
        model: a `kenlm.Model`, or None.
        unigrams: the model's words; with them a beginning that no word has is worse by `unk_score` at once.

    Returns:
        The decoder; it raises ValueError for no frames, another number of classes, and values that are NaN or +inf.
    """
    logging.getLogger("pyctcdecode").setLevel(logging.ERROR)
    if model is not None and cfg.alpha_ngram and not cfg.unk_score:
        log.warning("unk_score 0 makes unknown words cheap, and texts without spaces likely; try %s", USUAL)
    scale = cfg.acoustic_scale
    labels = _cased_like(model, classes) if model is not None else classes.labels
    language_model = model and LanguageModel(
        model,
        unigrams,
        alpha=cfg.alpha_ngram / scale,
        beta=cfg.word_insertion_bonus / scale,
        unk_score_offset=cfg.unk_score / LN10,
    )
    search = BeamSearchDecoderCTC(Alphabet(list(labels), classes.pieces), language_model)

    def decode(log_probs: LogProbs) -> list[BeamHypothesis]:
        found = search.decode_beams(
            _fold(log_probs, classes),
            beam_width=cfg.beam_size,
            beam_prune_logp=-cfg.beam_prune_threshold / scale,
            token_min_logp=max(-cfg.token_prune, FLOOR),
        )
        acoustic: dict[str, float] = {}
        for text, _, _, logit_score, _ in found:
            acoustic[text] = max(float(logit_score), acoustic.get(text, -math.inf))
        scored = []
        for text, score in acoustic.items():
            lm_score = sentence_score(model, text, cfg.unk_score) if model is not None else 0.0
            total = scale * score + cfg.alpha_ngram * lm_score + cfg.word_insertion_bonus * len(text.split())
            scored.append(BeamHypothesis(text=text, score=total, acoustic_score=score, lm_score=lm_score))
        return sorted(scored, key=lambda item: (-item.score, item.text))[: cfg.top_n]

    return decode


def sentence_score(model: Any, text: str, unk_score: float) -> float:
    """ln P(text </s> | <s>) of a `kenlm.Model`; `unk_score` is added for each word that it does not know."""
    words = model.full_scores(text, bos=True, eos=True)
    return float(sum(score * LN10 + (unk_score if unknown else 0.0) for score, _, unknown in words))


def _fold(log_probs: LogProbs, classes: Classes) -> NDArray[Any]:
    """The columns that have labels; the others' probability is the blank's."""
    if log_probs.ndim != 2 or log_probs.shape[1] != classes.count:
        raise ValueError(f"wrong classes: the logits are {list(log_probs.shape)}, the tokens are {classes.count}")
    if not len(log_probs):
        raise ValueError("no frames")
    if not (log_probs < np.inf).all():
        raise ValueError("not numbers: values that are NaN or infinite")
    folded = log_probs[:, classes.kept].astype(np.float64)
    if classes.dropped:
        lost = np.logaddexp.reduce(log_probs[:, classes.dropped].astype(np.float64), axis=1)
        folded[:, classes.blank] = np.logaddexp(folded[:, classes.blank], lost)
    return folded


def _cased_like(model: Any, classes: Classes) -> Sequence[str]:
    """The labels, in small letters where they are all capitals and the model knows words of small letters only.

    CTC models over characters often have capitals only, and normalised texts none. Letters that are words (a, i) tell.
    """
    lower = [label.lower() for label in classes.labels]
    letters = [label for label in classes.labels if len(label) == 1 and label.isalpha()]
    capitals = all(label == label.upper() for label in classes.labels) and len(set(lower)) == len(lower)
    if capitals and any(name.lower() in model for name in letters) and not any(name in model for name in letters):
        log.info("the tokens are capitals and the n-gram's words are not: decoding to small letters")
        return lower
    return classes.labels
