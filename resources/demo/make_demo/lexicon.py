"""The demo's phone tokens and pronunciation lexicon, for decoders from phones to words.

Pronunciations come from eSpeak NG (General American), mapped from its IPA to the 39 ARPABET phones without stress.
"""

from __future__ import annotations

import argparse
import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from grammar import PATTERNS, SLOTS

BLANK, WORD_END = "-", "|"
VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
STOPS_AND_NASALS = ["B", "CH", "D", "G", "JH", "K", "M", "N", "NG", "P", "T"]
OTHER_CONSONANTS = ["DH", "F", "HH", "L", "R", "S", "SH", "TH", "V", "W", "Y", "Z", "ZH"]
PHONES = sorted([*VOWELS, *STOPS_AND_NASALS, *OTHER_CONSONANTS])

# eSpeak's IPA symbol (stress marks removed) -> ARPABET.
ARPABET = {
    # vowels
    "ɑː": "AA",
    "æ": "AE",
    "ʌ": "AH",
    "ə": "AH",
    "ɐ": "AH",
    "ɔː": "AO",
    "ɔ": "AO",
    "aʊ": "AW",
    "aɪ": "AY",
    "ɛ": "EH",
    "ɜː": "ER",
    "ɚ": "ER",
    "eɪ": "EY",
    "ɪ": "IH",
    "ᵻ": "IH",
    "iː": "IY",
    "i": "IY",
    "oʊ": "OW",
    "ɔɪ": "OY",
    "ʊ": "UH",
    "uː": "UW",
    # two phones in one symbol
    "aɪə": "AY AH",
    "ɑːɹ": "AA R",
    "ɛɹ": "EH R",
    "ɪɹ": "IY R",
    "ɔːɹ": "AO R",
    "əl": "AH L",
    # consonants
    "b": "B",
    "tʃ": "CH",
    "d": "D",
    "ð": "DH",
    "f": "F",
    "ɡ": "G",
    "h": "HH",
    "dʒ": "JH",
    "k": "K",
    "x": "K",  # the end of "bach"
    "l": "L",
    "m": "M",
    "n": "N",
    "ŋ": "NG",
    "p": "P",
    "ɹ": "R",
    "s": "S",
    "ʃ": "SH",
    "t": "T",
    "ɾ": "T",  # the flap; all words of the grammar that have it spell it with a t
    "θ": "TH",
    "v": "V",
    "w": "W",
    "j": "Y",
    "z": "Z",
    "ʒ": "ZH",
}

# Second pronunciations of words whose vowel depends on what follows or on the speaker.
VARIANTS = {
    "a": "AH",
    "for": "F ER",
    "office": "AO F IH S",
    "on": "AA N",
    "the": "DH IY",
    "to": "T AH",
    "tomorrow": "T UW M AA R OW",
    "want": "W AA N T",
}

IPA_OUTPUT, SEPARATOR = 0x02, "_"
GLIDE_AFTER_I = "ɪ__"  # the glide from this vowel to the next has no symbol: "radio", "vienna"
CHARS_UTF8 = 1
OUTPUT_SYNCHRONOUS = 2
STRESS = str.maketrans("", "", "ˈˌ")


def grammar_words() -> list[str]:
    """All words that a sentence of the grammar can hold, sorted."""
    patterns = [re.sub(r"\[\w+\]", " ", pattern) for group in PATTERNS.values() for pattern in group]
    fillers = [value for values in SLOTS.values() for value in values]
    return sorted({word for text in [*patterns, *fillers, "please", "hey"] for word in text.split()})


def espeak_ipa(words: Sequence[str]) -> dict[str, list[str]]:
    """IPA symbols of each word, spoken alone by eSpeak NG's General American voice."""
    import espeakng_loader

    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    if library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0) <= 0:
        raise RuntimeError("eSpeak NG did not start")
    if library.espeak_SetVoiceByName(b"en-us") != 0:
        raise RuntimeError("eSpeak NG has no voice 'en-us'")
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    symbols = {}
    for word in words:
        text = ctypes.c_char_p(word.encode())
        mode = ord(SEPARATOR) << 8 | IPA_OUTPUT
        spoken = library.espeak_TextToPhonemes(ctypes.byref(text), CHARS_UTF8, mode).decode()
        spoken = spoken.translate(STRESS).replace(GLIDE_AFTER_I, "i_")
        symbols[word] = [symbol for symbol in spoken.split(SEPARATOR) if symbol]
    return symbols


def arpabet(symbols: Sequence[str]) -> list[str]:
    """The phones of IPA symbols; an R after ER is part of it.

    Raises:
        KeyError: a symbol that the table lacks.
    """
    phones = " ".join(ARPABET[symbol] for symbol in symbols).split()
    return [phone for before, phone in zip(["", *phones], phones, strict=False) if (before, phone) != ("ER", "R")]


def build_lexicon(ipa: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Entry (`word` or `word(2)`) -> phones, sorted by word."""
    entries = {}
    for word in sorted(ipa):
        entries[word] = arpabet(ipa[word])
        if word in VARIANTS:
            entries[f"{word}(2)"] = VARIANTS[word].split()
    return entries


def make_lexicon(folder: Path) -> dict[str, list[str]]:
    """Write tokens.txt (blank, 39 phones, word end) and lexicon.txt (`word PH PH |`)."""
    entries = build_lexicon(espeak_ipa(grammar_words()))
    folder.mkdir(parents=True, exist_ok=True)
    tokens = "".join(f"{token}\n" for token in [BLANK, *PHONES, WORD_END])
    lines = "".join(f"{entry} {' '.join(phones)} {WORD_END}\n" for entry, phones in entries.items())
    (folder / "tokens.txt").write_text(tokens, encoding="utf-8")
    (folder / "lexicon.txt").write_text(lines, encoding="utf-8")
    print(f"lexicon: {len(entries)} pronunciations of {len(grammar_words())} words", flush=True)
    return entries


def read_dictionary(path: Path) -> dict[str, list[list[str]]]:
    """The pronunciations of a dictionary in CMUdict's format, without stress."""
    pronunciations: dict[str, list[list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry, *phones = line.partition("#")[0].split()
        word = re.sub(r"\(\d+\)$", "", entry)
        pronunciations.setdefault(word, []).append([phone.rstrip("012") for phone in phones])
    return pronunciations


def compare(entries: Mapping[str, Sequence[str]], known: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Print how many words have a pronunciation of another dictionary too, and the phone error rate against it."""
    from rapidfuzz.distance import Levenshtein

    first = {entry: phones for entry, phones in entries.items() if not entry.endswith(")")}
    shared = [word for word in first if word in known]
    same, edits, total = 0, 0, 0
    for word in shared:
        distances = [(Levenshtein.distance(first[word], other), len(other)) for other in known[word]]
        least, length = min(distances)
        edits, total, same = edits + least, total + length, same + (least == 0)
        if least:
            print(f"{word}: {' '.join(first[word])}; there: {', '.join(map(' '.join, known[word]))}")
    print(f"{len(shared)} of {len(first)} words are in both, {same} of them pronounced alike")
    print(f"{edits} edits in {total} phones")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[1] / "lexicon")
    parser.add_argument("--compare", type=Path, help="a dictionary in CMUdict's format to compare with")
    options = parser.parse_args()
    entries = make_lexicon(options.folder)
    if options.compare:
        compare(entries, read_dictionary(options.compare))


if __name__ == "__main__":
    main()
