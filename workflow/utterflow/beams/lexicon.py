"""Pronunciation lexicon: words and their spellings in tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from utterflow.beams.tokens import Tokens
from utterflow.errors import UserError
from utterflow.files import text_lines

VARIANT = re.compile(r"(.+)\(\d+\)")
RESERVED = ("<s>", "</s>")


@dataclass(frozen=True)
class Lexicon:
    """Words and their pronunciations.

    `spellings[i]` are the token columns of one pronunciation, the separator at its end, and `word_of[i]` is the place
    of its word in `words`. A word has one spelling or more; a spelling belongs to one word or, with homophones, more.
    """

    words: tuple[str, ...]
    spellings: tuple[tuple[int, ...], ...]
    word_of: tuple[int, ...]


def read_lexicon(path: Path, tokens: Tokens) -> Lexicon:
    """Read a lexicon: a word and its phones per line, in any order of lines.

    `the DH AH |`, or a further pronunciation `the(2) DH IY |`. The separator at the end may be left out in the file;
    a spelling always has it. A line that repeats a word with the same phones changes nothing.

    Raises:
        UserError: the file is missing or has no words; a line has no phones, a phone that is no token, a separator or
            blank among its phones, or a word that the language model reserves.
    """
    columns = {name: column for column, name in enumerate(tokens.names)}
    words: dict[str, int] = {}
    entries: dict[tuple[int, tuple[int, ...]], None] = {}
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        name, *phones = line.split()
        variant = VARIANT.fullmatch(name)
        word = variant[1] if variant else name
        if word in RESERVED:
            raise UserError(f"{word} is no word: it marks the bounds of a sentence", where=where, fix="delete the line")
        spelling = _spelling(word, phones, columns, tokens, where)
        entries[words.setdefault(word, len(words)), spelling] = None
    if not words:
        raise UserError("no words in this lexicon", where=str(path), fix="write lines as `the DH AH |`")
    return Lexicon(
        words=tuple(words),
        spellings=tuple(spelling for _, spelling in entries),
        word_of=tuple(word for word, _ in entries),
    )


def _spelling(word: str, phones: list[str], columns: dict[str, int], tokens: Tokens, where: str) -> tuple[int, ...]:
    separator, blank = tokens.names[tokens.separator], tokens.names[tokens.blank]
    if phones and phones[-1] == separator:
        phones = phones[:-1]
    if not phones:
        raise UserError(f"no phones for {word!r}", where=where, fix=f"write `{word} PHONE PHONE ... {separator}`")
    for phone in phones:
        if phone in (separator, blank):
            raise UserError(f"{phone!r} among the phones of {word!r}", where=where, fix="leave it out: it is no phone")
        if phone not in columns:
            near = get_close_matches(phone, [*columns, phone.rstrip("012")], n=2, cutoff=0.0)
            near = [name for name in near if name in columns and name not in (separator, blank)]
            raise UserError(
                f"phone {phone!r} of {word!r} is not among the tokens",
                where=where,
                fix=f"write one of the tokens; the nearest is {near[0]!r}" if near else "write one of the tokens",
            )
    return (*(columns[phone] for phone in phones), tokens.separator)
