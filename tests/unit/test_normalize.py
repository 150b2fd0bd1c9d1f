"""Text normalisation."""

from __future__ import annotations

from typing import get_args

import pytest
from whisper_normalizer.english import EnglishTextNormalizer

from utterflow.config.scoring import Normalizer
from utterflow.errors import UserError
from utterflow.evaluate.normalize import NAMES, normalizer


def test_config_and_command_line_know_the_same_names():
    assert set(get_args(Normalizer)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_normalised_text_of_nothing_but_space_has_no_words(name: str):
    assert normalizer(name)("  \t ").split() == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop, OK?", "don t stop ok"),
        ("state-of-the-art; 3.5%", "state of the art 3 5"),
        ("snake_case « déjà vu »", "snake case déjà vu"),
        ("हिन्दी।", "हिन्दी"),
        ("", ""),
    ],
)
def test_basic(text: str, expected: str):
    assert normalizer("basic")(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't know, really.", "i don't know really"),
        ("well- you know -- maybe", "well you know - maybe"),
        ("a twenty-one--gun salute", "a twenty-onegun salute"),
        ("it 's  here", "it's here"),
        ("10 cafés\tthere", "cafsthere"),
        (" Yes ", "yes"),
    ],
)
def test_brain2text(text: str, expected: str):
    assert normalizer("brain2text")(text) == expected


def test_whisper_english_is_the_packages_without_outer_spaces():
    texts = ["Mr. Smith's colour isn't $20.", " [noise] uh, Twenty five (laughs)", "", "won't  you?"]
    package = EnglishTextNormalizer()
    assert [normalizer("whisper_english")(text) for text in texts] == [package(text).strip() for text in texts]
    assert normalizer("whisper_english")("Uh, twenty five colours!") == "25 colors"


def test_none_changes_nothing():
    assert normalizer("none")(" A,  b ") == " A,  b "


def test_an_unknown_name_is_told_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown normalizer 'whisper'[\s\S]*whisper_english"):
        normalizer("whisper")
