"""Sections `ngrams` and `beams`: word n-gram models, and CTC beams as n-best lists."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required
from utterflow.config.scoring import Normalizer

TRAIN_NGRAM = "train_ngram"
DUMP = "dump_beams"


class Ngram(Section):
    """A KenLM word n-gram: a file that is there, or one trained from text."""

    file: str | None = key(None, "a KenLM file (ARPA or binary) that is there already; null: train one", DUMP)
    texts: tuple[str, ...] = key((), "files to train from: .txt with a sentence a line, or .jsonl", TRAIN_NGRAM)
    field: str = key("sentence", "the key that holds the sentence in a .jsonl", TRAIN_NGRAM)
    normalizer: Normalizer = key("brain2text", "applied to each sentence first", TRAIN_NGRAM)
    order: int = key(4, "longest n-gram", TRAIN_NGRAM, ge=2, le=6)
    prune: tuple[int, ...] = key(
        (0,), "n-grams of each order that occur so often or less are dropped; the last holds on", TRAIN_NGRAM
    )
    discount_fallback: bool = key(True, "allow small texts, whose counts give no discounts", TRAIN_NGRAM)
    structure: Literal["probing", "trie"] = key(
        "probing", "of the binary: `probing` is fast, `trie` small", TRAIN_NGRAM
    )
    threads: int = key(1, "CPU threads per job", "none", ge=1)
    mem_mb: int = key(4000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(60, "minutes per job; grows with each retry", "none", ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Ngram:
        if (self.file is None) == (not self.texts):
            raise ValueError("write either `file` (a KenLM file that is there) or `texts` (files to train from)")
        if len(self.prune) > self.order:
            raise ValueError(f"prune has {len(self.prune)} numbers for an n-gram of order {self.order}")
        if self.prune and (self.prune[0] != 0 or list(self.prune) != sorted(self.prune)):
            raise ValueError("prune must begin with 0 and never fall, e.g. [0, 0, 1]")
        return self


class Beams(Section):
    """One way to decode logits to n-best lists."""

    logits: Name = required("a name under `logits`", DUMP, examples=["b2t_25"])
    decoder: Literal["lexicon", "characters"] = key(
        "lexicon",
        "`lexicon`: phones constrained to a lexicon's words; `characters`: pyctcdecode over characters or BPE",
        DUMP,
    )
    tokens: str = required(
        "the logits' classes, one per line: a tokens file, or the vocab.json of a CTC model (`characters`)",
        DUMP,
        examples=["tokens.txt"],
    )
    lexicon: str | None = key(None, "pronunciations `word PH PH |`, variants `word(2) PH |`", DUMP)
    ngram: Name | None = key(None, "a name under `ngrams`; null: no language model", DUMP)
    beam_size: int = key(300, "states kept per frame", DUMP, ge=1, le=100_000)
    top_n: int = key(100, "different word sequences to keep per trial", DUMP, ge=1, le=10_000)
    acoustic_scale: float = key(0.4, "factor of the logits' log-probabilities", DUMP, gt=0)
    alpha_ngram: float = key(1.0, "factor of the n-gram's natural log-probability", DUMP, ge=0)
    word_insertion_bonus: float = key(0.0, "added per word", DUMP)
    beam_prune_threshold: float = key(25.0, "states this far below the frame's best are dropped", DUMP, gt=0)
    token_prune: float = key(
        20.0, "tokens this far below a frame's best one (natural log, before the scale) are not tried", DUMP, gt=0
    )
    homophones: int = key(
        0, "homophone pruning: how many words of one pronunciation to keep, the likeliest first; 0: all", DUMP, ge=0
    )
    unk_score: float = key(0.0, "added to the n-gram's score of a word that it does not know", DUMP, le=0)
    max_samples: int | None = key(None, "decode only the first trials of each partition", DUMP, ge=1)
    trial_indices: tuple[int, ...] | None = key(None, "decode only the trials at these positions, from 0", DUMP)
    batch_size: int = key(16, "trials between two entries in the journal", DUMP, ge=1)
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", DUMP)
    threads: int = key(1, "processes that decode, per job", "none", ge=1)
    mem_mb: int = key(4000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(60, "minutes per job; grows with each retry", "none", ge=1)

    @model_validator(mode="after")
    def _decoder_has_what_it_needs(self) -> Beams:
        if self.decoder == "lexicon" and self.lexicon is None:
            raise ValueError("decoder lexicon needs `lexicon: <file>`")
        if self.decoder == "characters" and self.lexicon is not None:
            raise ValueError("decoder characters takes no `lexicon`; leave it out")
        return self
