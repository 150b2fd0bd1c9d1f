"""Tokens and lexicon: what is read, and what is said about files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from utterflow.beams.lexicon import Lexicon, read_lexicon
from utterflow.beams.tokens import Tokens, read_tokens
from utterflow.errors import UserError

TOKENS = Tokens(("-", "AH", "DH", "IY", "K", "|"), blank=0, separator=5)


def written(folder: Path, text: str) -> Path:
    path = folder / "file.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_tokens_are_the_lines_in_order(tmp_path: Path) -> None:
    assert read_tokens(written(tmp_path, "-\nAH\nDH\nIY\nK\n|\n")) == TOKENS
    assert read_tokens(written(tmp_path, "a\n|\n\n-\n")) == Tokens(("a", "|", "-"), blank=2, separator=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no tokens"),
        ("-\nAH\nAH\n|\n", "line 3"),
        ("-\nAH DH\n|\n", "line 2"),
        ("AH\n|\n", "no blank"),
        ("-\nAH\n", "no separator"),
    ],
)
def test_unusable_tokens(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_tokens(written(tmp_path, text))


def test_missing_files(tmp_path: Path) -> None:
    for read in (read_tokens, lambda path: read_lexicon(path, TOKENS)):
        with pytest.raises(UserError, match=r"file not found[\s\S]*absent"):
            read(tmp_path / "absent")


def test_a_lexicon_with_variants_and_homophones(tmp_path: Path) -> None:
    path = written(tmp_path, "the DH AH |\nthe(2)\tDH IY\nkey K IY |\nquay K IY |\nthe(3) DH AH\n")
    assert read_lexicon(path, TOKENS) == Lexicon(
        words=("the", "key", "quay"),
        spellings=((2, 1, 5), (2, 3, 5), (4, 3, 5), (4, 3, 5)),
        word_of=(0, 0, 1, 2),
    )


def test_only_a_number_in_brackets_makes_a_variant(tmp_path: Path) -> None:
    assert read_lexicon(written(tmp_path, "(2) K |\na(b) AH |\n"), TOKENS).words == ("(2)", "a(b)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n\n", "no words"),
        ("the DH AH |\nkey |\n", r"no phones for 'key'[\s\S]*line 2"),
        ("key\n", "no phones"),
        ("key K IY1 |\n", r"'IY1' of 'key'[\s\S]*line 1[\s\S]*nearest is 'IY'"),
        ("key K - IY |\n", "'-' among the phones"),
        ("key K | IY |\n", "'|' among the phones".replace("|", r"\|")),
        ("<s> K |\n", "bounds of a sentence"),
    ],
)
def test_unusable_lexicons(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_lexicon(written(tmp_path, text), TOKENS)
