"""Text normalisation before scoring."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable

from utterflow.errors import UserError

NAMES = ("whisper_english", "basic", "brain2text", "none")


def normalizer(name: str) -> Callable[[str], str]:
    """The normaliser of that name; one of `NAMES`.

    - `whisper_english`: Radford et al. 2022 (arXiv:2212.04356), appendix C: lower case, contractions
      spelled out, numbers as digits, American spelling, fillers and bracketed words dropped. English only.
    - `basic`: see `basic`.
    - `brain2text`: see `brain2text`.
    - `none`: the text as it is.

    Raises:
        UserError: unknown name.
    """
    match name:
        case "whisper_english":
            return whisper_english()
        case "basic":
            return basic
        case "brain2text":
            return brain2text
        case "none":
            return str
    raise UserError(f"unknown normalizer {name!r}", fix=f"choose one of {', '.join(NAMES)}")


@functools.cache
def whisper_english() -> Callable[[str], str]:
    """Whisper's English normaliser (package `whisper_normalizer`), outer spaces stripped."""
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = EnglishTextNormalizer()
    return lambda text: str(normalize(text)).strip()


def basic(text: str) -> str:
    """Lower case; punctuation and symbols (Unicode P and S, apostrophes too) to space; single spaces."""
    spaced = "".join(" " if unicodedata.category(char)[0] in "PS" else char for char in text.lower())
    return " ".join(spaced.split())


def brain2text(text: str) -> str:
    """The normalisation of the Brain-to-Text benchmarks (Card et al. 2024, doi:10.1056/NEJMoa2314132).

    Only ASCII letters, hyphens, spaces and apostrophes stay; a hyphen at a word's end becomes a space, a
    double hyphen goes, a space before an apostrophe goes; lower case; single spaces.
    """
    kept = re.sub(r"[^a-zA-Z\- ']", "", text)
    joined = kept.replace("- ", " ").replace("--", "").replace(" '", "'")
    return " ".join(joined.lower().split())
