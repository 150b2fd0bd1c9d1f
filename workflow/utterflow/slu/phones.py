"""Words as phones: ARPABET as a lexicon has them, or IPA."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from utterflow.corpora.candidates import numbered_lines
from utterflow.errors import UserError
from utterflow.jobs import log

# The 39 phones of the CMU Pronouncing Dictionary and the reduced vowels AX and AXR, in the IPA of General American:
# https://en.wikipedia.org/wiki/ARPABET. The dictionary has no reduced vowels: it writes them AH0 and ER0.
IPA = {
    "AA": "ɑ", "AE": "æ", "AH": "ʌ", "AO": "ɔ", "AW": "aʊ", "AX": "ə", "AXR": "ɚ", "AY": "aɪ", "B": "b", "CH": "tʃ",
    "D": "d", "DH": "ð", "EH": "ɛ", "ER": "ɝ", "EY": "eɪ", "F": "f", "G": "ɡ", "HH": "h", "IH": "ɪ", "IY": "i",
    "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "ŋ", "OW": "oʊ", "OY": "ɔɪ", "P": "p", "R": "ɹ",
    "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "UH": "ʊ", "UW": "u", "V": "v", "W": "w", "Y": "j", "Z": "z",
    "ZH": "ʒ",
}  # fmt: skip
REDUCED = {"AH0": "ə", "ER0": "ɚ"}
STRESS = "012"
SEPARATOR = "|"
COMMENT = ";;;"
VARIANT = re.compile(r"(.+)\(\d+\)")

Form = Literal["ipa", "arp"]
Pronunciations = Mapping[str, tuple[str, ...]]


class Spelt(NamedTuple):
    """A word in phones, or as written; `missing` is its plain form where it has no pronunciation."""

    phones: str
    missing: str | None = None


@dataclass
class Speller:
    """Writes texts in phones, and counts the words that it cannot; `spelt` are the words that it has met."""

    lexicon: Pronunciations
    form: Form
    words: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    spelt: dict[str, Spelt] = field(default_factory=dict)

    def spell(self, text: str) -> str:
        """The text in phones; words without a pronunciation stay as they are written, punctuation goes.

        IPA has one space between words, ARPABET ` | `: there the phones of a word are apart.
        """
        found = [self._word(word) for word in text.split()]
        self.words += sum(bool(word.phones) for word in found)
        self.unknown.update(word.missing for word in found if word.missing)
        return (" " if self.form == "ipa" else f" {SEPARATOR} ").join(word.phones for word in found if word.phones)

    def _word(self, word: str) -> Spelt:
        if word not in self.spelt:
            self.spelt[word] = self._look_up(word)
        return self.spelt[word]

    def _look_up(self, word: str) -> Spelt:
        plain = word.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
        bare = _bare(plain)
        if not bare:
            return Spelt("")
        phones = next((self.lexicon[name] for name in (plain, bare, bare.strip("'")) if name in self.lexicon), None)
        if phones is None:
            return Spelt(word, missing=bare)
        return Spelt(ipa(phones) if self.form == "ipa" else arpabet(phones))


def read_pronunciations(path: Path, form: Form) -> dict[str, tuple[str, ...]]:
    """Word in lower case -> its first pronunciation, in ARPABET phones, stress digits included.

    The format is CMUdict's: `word  PH0 PH1 ...` per line; further pronunciations are `word(2)`; lines that begin with
    `;;;` and what follows ` #` are comments. A separator `|` after the phones may stand there, as in a decoder's
    lexicon. Lines that are not UTF-8 are left out, and logged.

    Raises:
        UserError: the file is missing or has no words, a word has no phones or, for IPA, one that is not ARPABET's.
    """
    if not path.is_file():
        raise UserError("there is no such lexicon", where=str(path), fix="correct `lexicon` in the data set")
    found: dict[str, tuple[str, ...]] = {}
    unreadable = 0
    for number, line in numbered_lines(path):
        if line is None:
            unreadable += 1
            continue
        name, *phones = _fields(line) or [""]
        if not name:
            continue
        where = f"{path}, line {number}"
        if not phones:
            raise UserError(f"no phones for {name!r}", where=where, fix=f"write `{name}  PHONE PHONE ...`")
        if form == "ipa":
            _check_phones(name, phones, where)
        variant = VARIANT.fullmatch(name)
        found.setdefault((variant[1] if variant else name).lower(), tuple(phones))
    if unreadable:
        log.warning("%d lines of %s are not UTF-8 and were left out", unreadable, path)
    if not found:
        raise UserError("no words in this lexicon", where=str(path), fix="write lines as `the  DH AH0`")
    return found


def ipa(phones: tuple[str, ...]) -> str:
    """ARPABET phones in IPA, without marks of stress; `AH0` is a schwa."""
    return "".join(REDUCED.get(phone) or IPA[phone.rstrip(STRESS)] for phone in phones)


def arpabet(phones: tuple[str, ...]) -> str:
    """ARPABET phones without stress digits, joined by spaces."""
    return " ".join(phone.rstrip(STRESS) for phone in phones)


def _fields(line: str) -> list[str]:
    """The word and the phones of a line; nothing for a comment."""
    if line.startswith(COMMENT):
        return []
    fields = re.split(r"(?:^|\s)#(?:\s|$)", line, maxsplit=1)[0].split()
    return fields[:-1] if len(fields) > 1 and fields[-1] == SEPARATOR else fields


def _check_phones(name: str, phones: list[str], where: str) -> None:
    for phone in phones:
        if phone.rstrip(STRESS) not in IPA:
            raise UserError(
                f"phone {phone!r} of {name!r} is not in ARPABET",
                where=where,
                fix=f"write one of {', '.join(IPA)}; vowels may have a stress digit",
            )


def _bare(word: str) -> str:
    """The word without punctuation around it; an apostrophe stays, as in `'em` and `dogs'`."""
    return re.sub(r"^[^\w']+|[^\w']+$", "", word).strip("_") if any(map(str.isalnum, word)) else ""
