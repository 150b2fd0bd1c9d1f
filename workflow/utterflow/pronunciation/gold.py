"""What speechocean762 says about an utterance: its scores, its words, its phones as they should be and as they were."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.pronunciation.apa import HIGHEST, LOWEST
from utterflow.pronunciation.phones import plain_phone, pronounced_phones
from utterflow.records import ManifestRow, short

SHOWN = 5
PHONE_HIGHEST = 2.0

Score = Annotated[float, Field(ge=LOWEST, le=HIGHEST, strict=True, allow_inf_nan=False)]
PhoneScore = Annotated[float, Field(ge=0, le=PHONE_HIGHEST, strict=True, allow_inf_nan=False)]
Phone = Annotated[str, Field(pattern=r"\S")]


def _listed(value: Any) -> Any:
    """Phones of a word may be one text, as older editions of the corpus have them; none of a list may be null."""
    return value.split() if isinstance(value, str) else value


def _none_is_empty(value: Any) -> Any:
    return [] if value is None else value


class Gold(NamedTuple):
    """An utterance with its annotations.

    Attributes:
        scores: by aspect, 0 to 10.
        words: the text as its words have it, without the punctuation of the sentence.
        canonical: phones of the dictionary, without stress.
        pronounced: phones as the speaker said them.
    """

    id: str
    speaker: str | None
    scores: dict[str, float]
    words: str
    canonical: tuple[str, ...]
    pronounced: tuple[str, ...]


class Problem(NamedTuple):
    """What is wrong with a field of an utterance's annotations."""

    utterance: str
    field: str
    what: str

    def __str__(self) -> str:
        return f"utterance {self.utterance}, {self.field}: {self.what}"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Mispronunciation(_Entry):
    canonical_phone: Phone = Field(alias="canonical-phone")
    index: int = Field(strict=True)
    pronounced_phone: Phone = Field(alias="pronounced-phone")


class _Word(_Entry):
    text: str = Field(pattern=r"\S")
    phones: Annotated[list[Phone], BeforeValidator(_listed)] = Field(min_length=1)
    phones_accuracy: list[PhoneScore] = Field(alias="phones-accuracy")
    mispronunciations: Annotated[list[_Mispronunciation], BeforeValidator(_none_is_empty)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults = []
        count = len(self.phones)
        if len(self.phones_accuracy) != count:
            faults.append(f"phones-accuracy has {len(self.phones_accuracy)} scores, phones {count} phones")
        for entry in self.mispronunciations:
            if not 0 <= entry.index < count:
                faults.append(f"mispronunciations: index {entry.index} is out of range: there are {count} phones")
            elif plain_phone(entry.canonical_phone) != plain_phone(self.phones[entry.index]):
                faults.append(
                    f"mispronunciations: canonical-phone {entry.canonical_phone!r} is not the phone at index "
                    f"{entry.index}, {self.phones[entry.index]!r}"
                )
        places = [entry.index for entry in self.mispronunciations]
        if len(set(places)) < len(places):
            faults.append("mispronunciations: an index stands there twice")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class _Utterance(_Entry):
    accuracy: Score
    fluency: Score
    prosodic: Score
    total: Score
    words: list[_Word] = Field(min_length=1)


def gold_of(utterance: str, entry: Any, speaker: str | None = None) -> Gold | list[Problem]:
    """Read an utterance's entry of `scores.json`, or the same fields from elsewhere; or say all that is wrong with it.

    A phone with a mispronunciation at its index is replaced by what was pronounced; see `phones.pronounced_phones`.
    """
    try:
        found = _Utterance.model_validate(entry)
    except ValidationError as error:
        return [_problem(utterance, dict(fault)) for fault in error.errors(include_url=False)]
    canonical: list[str] = []
    pronounced: list[str] = []
    for word in found.words:
        said = {fault.index: pronounced_phones(fault.pronounced_phone) for fault in word.mispronunciations}
        for place, phone in enumerate(map(plain_phone, word.phones)):
            canonical.append(phone)
            pronounced += said.get(place, (phone,))
    return Gold(
        id=utterance,
        speaker=speaker,
        scores={
            "accuracy": found.accuracy,
            "fluency": found.fluency,
            "prosodic": found.prosodic,
            "total": found.total,
        },
        words=" ".join(word.text.strip() for word in found.words),
        canonical=tuple(canonical),
        pronounced=tuple(pronounced),
    )


def gold_of_row(row: ManifestRow) -> Gold | list[Problem]:
    """The annotations that a manifest row keeps of its source."""
    return gold_of(row.id, row.model_extra or {}, row.speaker)


def read_gold(path: Path, speakers: Mapping[str, str] | None = None) -> dict[str, Gold]:
    """Annotations of a `scores.json`, by utterance.

    Args:
        speakers: utterance -> speaker; only its utterances are read, in its order.

    Raises:
        UserError: the file has another shape or no utterance, an utterance of `speakers` is not in it, or entries are
            malformed: all are looked at, the first ones named.
    """
    entries = read_json(path)
    if not isinstance(entries, dict) or not entries:
        raise UserError(
            "there is no utterance" if entries == {} else "not speechocean762's scores",
            where=str(path),
            fix='its shape is {"<utterance>": {"accuracy": 8, "fluency": 9, ..., "words": [...]}}',
        )
    if speakers is not None:
        _require_all(speakers, entries, path)
    found: dict[str, Gold] = {}
    problems: list[Problem] = []
    for utterance in speakers or entries:
        gold = gold_of(utterance, entries[utterance], (speakers or {}).get(utterance))
        if isinstance(gold, Gold):
            found[utterance] = gold
        else:
            problems += gold
    raise_problems(problems, path)
    return found


def raise_problems(problems: Collection[Problem], path: Path) -> None:
    """Name the first of the problems, and how many there are.

    Raises:
        UserError: there are any.
    """
    if not problems:
        return
    utterances = len({problem.utterance for problem in problems})
    lines = [f"  {problem}" for problem in list(problems)[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    raise UserError(
        "\n".join([f"{utterances} utterances have malformed annotations ({len(problems)} problems)", *lines]),
        where=str(path),
        fix="correct these fields, or take the utterances out; scores are 0 to 10 (of phones 0 to 2), `index` counts "
        "the phones of the word from 0",
    )


def _require_all(wanted: Mapping[str, str], entries: Mapping[str, Any], path: Path) -> None:
    missing = [utterance for utterance in wanted if utterance not in entries]
    if missing or not wanted:
        raise UserError(
            f"{len(missing)} of {len(wanted)} utterances are not in the annotations, e.g. {', '.join(missing[:SHOWN])}"
            if missing
            else "there is no utterance to look for",
            where=str(path),
            fix="give the table and the scores of one corpus",
        )


def _problem(utterance: str, fault: Mapping[str, Any]) -> Problem:
    field = ".".join(map(str, fault["loc"])) or "(entry)"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "missing":
        return Problem(utterance, field, "is missing")
    if fault["type"] == "model_type":
        message = "is not an object"
    shown = "" if fault["type"] == "value_error" else f" (value: {short(fault['input'], 60)})"
    return Problem(utterance, field, message + shown)
