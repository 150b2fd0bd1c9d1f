"""A model's answer as scores and transcripts."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from utterflow.pronunciation.apa import ASPECTS, HIGHEST, LOWEST
from utterflow.pronunciation.phones import predicted_phones
from utterflow.records import short

WORDS, PHONES = "word_transcript", "phoneme_transcript"
TRANSCRIPTS = (WORDS, PHONES)
SHOWN = 60
MISSING = "missing"
# Longer texts are no answer of this task, and Python's parser is slow on them.
LITERAL_LIMIT = 20_000


class Prediction(NamedTuple):
    """What a model predicted for an utterance; None where there is nothing usable, `problems` says why, by field."""

    scores: dict[str, float | None]
    words: str | None
    phones: tuple[str, ...] | None
    problems: dict[str, str]


NOTHING = Prediction(dict.fromkeys(ASPECTS), None, None, dict.fromkeys((*ASPECTS, *TRANSCRIPTS), MISSING))


def prediction_of(fields: Mapping[str, Any]) -> Prediction:
    """Read the fields of both tasks; each that is missing, null or unusable is a problem, the others count.

    A reason begins with its kind (`missing`, `not a number`, `out of range`, `not a text`); a colon ends it.
    """
    scores: dict[str, float | None] = dict.fromkeys(ASPECTS)
    problems: dict[str, str] = {}
    for name in ASPECTS:
        try:
            scores[name] = read_score(fields.get(name))
        except ValueError as error:
            problems[name] = str(error)
    words: str | None = None
    phones: tuple[str, ...] | None = None
    try:
        words = _text(fields.get(WORDS))
    except ValueError as error:
        problems[WORDS] = str(error)
    try:
        phones = read_phones(fields.get(PHONES))
    except ValueError as error:
        problems[PHONES] = str(error)
    return Prediction(scores, words, phones, problems)


def read_score(value: Any) -> float:
    """A score from 0 to 10: a number, or a text that is one. Others are not clipped.

    Raises:
        ValueError: why it is none.
    """
    if value is None:
        raise ValueError(MISSING)
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"not a number: {short(value, SHOWN)}")
    if not LOWEST <= number <= HIGHEST:
        raise ValueError(f"out of range: {short(value, SHOWN)} is not from {LOWEST:g} to {HIGHEST:g}")
    return number


def read_phones(value: Any) -> tuple[str, ...]:
    """Phones: a text with spaces between them, or a list of texts; see `phones.predicted_phones`.

    Raises:
        ValueError: why there are none.
    """
    if isinstance(value, list):
        if not all(isinstance(phone, str) for phone in value):
            raise ValueError(f"not a text: {short(value, SHOWN)}")
        return predicted_phones(value)
    return predicted_phones(_text(value))


def parse_scores(answer: str) -> dict[str, Any]:
    """The fields of an answer to the assessment task, as they stand there.

    Raises:
        ValueError: why there are none.
    """
    return _fields(answer, ASPECTS)


def parse_transcripts(answer: str) -> dict[str, Any]:
    """The fields of an answer to the detection task, as they stand there.

    Raises:
        ValueError: why there are none.
    """
    return _fields(answer, TRANSCRIPTS)


def _fields(answer: str, names: Sequence[str]) -> dict[str, Any]:
    """The first object in the answer that has any of the names; whatever stands around it does not matter.

    An object is JSON; or the same with single quotes, as a model writes it whose prompt shows it so. Apostrophes in
    texts with single quotes are taken as such where no comma or brace follows.
    """
    for value in _objects(answer):
        if any(name in value for name in names):
            return {name: value.get(name) for name in names}
    if loose := _loose_texts(answer, names):
        return {name: loose.get(name) for name in names}
    if not answer.strip():
        raise ValueError("the answer is empty")
    raise ValueError(f"no object with {' or '.join(f'`{name}`' for name in names)}: {short(answer, SHOWN)}")


def _objects(answer: str) -> Iterator[dict[str, Any]]:
    """The outermost objects that can be read, from left to right."""
    decoder = json.JSONDecoder()
    start = answer.find("{")
    while start >= 0:
        end = start + 1
        try:
            value, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            value, end = _literal(answer, start)
        if isinstance(value, dict):
            yield value
        start = answer.find("{", end)


def _literal(answer: str, start: int) -> tuple[Any, int]:
    """A Python literal in braces without inner ones, and where it ends."""
    end = answer.find("}", start) + 1
    if not 0 < end - start <= LITERAL_LIMIT:
        return None, start + 1
    try:
        return ast.literal_eval(answer[start:end]), end
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None, start + 1


def _loose_texts(answer: str, names: Sequence[str]) -> dict[str, str]:
    """Texts in quotes after the names, within braces, where quotes within the texts are not escaped."""
    begin, end = answer.find("{"), answer.rfind("}")
    body = answer[begin : end + 1] if 0 <= begin < end else ""
    found = {}
    for name in names:
        match = re.search(rf"""(['"]){name}\1\s*:\s*(['"])(.*?)\2\s*(?:,\s*['"]\w+['"]\s*:|\}})""", body, re.DOTALL)
        if match:
            found[name] = match[3]
    return found


def _text(value: Any) -> str:
    if value is None:
        raise ValueError(MISSING)
    if not isinstance(value, str):
        raise ValueError(f"not a text: {short(value, SHOWN)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"not a text: {short(value, SHOWN)}") from None
    return value
