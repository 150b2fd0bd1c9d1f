"""Phones of the CMU Pronouncing Dictionary, as annotations and models write them."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

INVENTORY = frozenset((
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH", "K",
    "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
))  # fmt: skip
UNKNOWN = "<unk>"
DELETED = "<DEL>"
STRESS = "012"
ACCENTED = "*"
# The dictionary has no reduced vowels: it writes them AH0 and ER0.
REDUCED = {"AX": "AH", "AXR": "ER"}
SEPARATORS = re.compile(r"[\s,|]+")


@functools.lru_cache(maxsize=10_000)
def plain_phone(phone: str) -> str:
    """A phone in upper case without its stress digit; `<unk>` stays in lower case, and AX and AXR are AH and ER."""
    upper = phone.strip().upper()
    if upper == UNKNOWN.upper():
        return UNKNOWN
    bare = upper.rstrip(STRESS)
    return REDUCED.get(bare, bare)


def pronounced_phones(annotation: str) -> tuple[str, ...]:
    """What stands for one canonical phone, from speechocean762's `pronounced-phone`.

    - `<DEL>`: nothing.
    - `<unk>`, a phone outside the inventory, a phone with an accent mark (`R*`): `<unk>`. The corpus marks `R*` where
      the phone was meant but scored as wrong, so it is not the canonical R either.
    - several phones (`EH R`): these; all but one of them are insertions.
    """
    if annotation.strip().upper() == DELETED:
        return ()
    found = (plain_phone(phone) for phone in annotation.split())
    return tuple(phone if phone in INVENTORY else UNKNOWN for phone in found)


def predicted_phones(answer: str | Sequence[str]) -> tuple[str, ...]:
    """Phones of an answer: a list, or a text with spaces, commas or bars between them.

    Stress digits go; a phone with an accent mark is `<unk>`, `<DEL>` is nothing. Other signs outside the inventory
    stay: made `<unk>`, they would agree with an annotator who could not tell the phone.
    """
    text = answer if isinstance(answer, str) else " ".join(answer)
    found = [plain_phone(phone) for phone in SEPARATORS.split(text) if phone]
    return tuple(UNKNOWN if phone.endswith(ACCENTED) else phone for phone in found if phone and phone != DELETED)
