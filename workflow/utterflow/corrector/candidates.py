"""n-best lists from any source, in one shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from utterflow.config.datasets import CandidateSource
from utterflow.corpora.candidates import numbered_lines
from utterflow.errors import UserError
from utterflow.evaluate.files import parse_list
from utterflow.files import json_line, parse_object
from utterflow.records import BeamsRow, NbestRow, RejectedRow, read_records

STAGE = "build_corrector_data"
LARGEST_SCORE = 1e300


@dataclass(frozen=True)
class NbestList:
    """One n-best list, best first, each hypothesis on one line.

    `scores` are natural logarithms, one per text, None where the source has none. `logits` says whether the acoustic
    model has learnt the item, see `records.TrialRow`.
    """

    id: str
    trial_id: str | int
    source: str
    texts: tuple[str, ...]
    reference: str | None
    scores: tuple[float, ...] | None = None
    session: str | None = None
    speaker: str | None = None
    group: str | None = None
    logits: str = "unknown"


def source_names(sources: Sequence[CandidateSource]) -> list[str]:
    """A name for each source, unique in the list: `beams/partition`, `corpus/asr` or the file's name without ending."""
    plain = [_source_name(source) for source in sources]
    return [name if (count := plain[: i + 1].count(name)) == 1 else f"{name}#{count}" for i, name in enumerate(plain)]


def read_sources(sources: Sequence[CandidateSource], files: Sequence[Path]) -> Iterator[NbestList | RejectedRow]:
    """Yield the lists of all sources, joined; ids are `<source>:<id>`, and a repeated one gets `#2`, `#3`, ...

    A row of a foreign file that is no list is yielded as a rejected row.

    Raises:
        UserError: a file is missing, or a row of the workflow's own files does not fit its record.
    """
    seen: Counter[str] = Counter()
    for source, path, name in zip(sources, files, source_names(sources), strict=True):
        for item in islice(_read_source(source, path, name), source.limit):
            if isinstance(item, NbestList):
                seen[item.id] += 1
                if seen[item.id] > 1:
                    item = NbestList(**{**vars(item), "id": f"{item.id}#{seen[item.id]}"})
            yield item


def single_line(text: str) -> str:
    """The text with single spaces and no line breaks: a prompt has one candidate per line."""
    return " ".join(text.split())


def _source_name(source: CandidateSource) -> str:
    if source.beams:
        return f"{source.beams}/{source.partition}"
    if source.asr:
        return f"{source.corpus}/{source.asr}"
    return Path(str(source.lists)).stem


def _read_source(source: CandidateSource, path: Path, name: str) -> Iterator[NbestList | RejectedRow]:
    if source.beams:
        return (_from_beams(row, name) for row in read_records(path, BeamsRow))
    if source.asr:
        return (_from_nbest(row, name) for row in read_records(path, NbestRow))
    return _read_foreign(path, name)


def _from_beams(row: BeamsRow, name: str) -> NbestList:
    return NbestList(
        id=f"{name}:{row.id}",
        trial_id=row.index,
        source=name,
        texts=tuple(single_line(beam.text) for beam in row.beams),
        reference=row.text,
        scores=tuple(beam.score for beam in row.beams),
        session=row.session,
        group=row.group,
        logits=row.logits,
    )


def _from_nbest(row: NbestRow, name: str) -> NbestList:
    return NbestList(
        id=f"{name}:{row.id}",
        trial_id=row.id,
        source=name,
        texts=tuple(single_line(hypothesis.text) for hypothesis in row.asr_hypotheses),
        reference=row.text,
        scores=tuple(hypothesis.score for hypothesis in row.asr_hypotheses),
        speaker=row.speaker,
        group=row.group,
    )


def _read_foreign(path: Path, name: str) -> Iterator[NbestList | RejectedRow]:
    if not path.is_file():
        raise UserError("there is no such file of lists", where=str(path), fix="correct `lists` in the data set")
    index = 0
    for number, line in numbered_lines(path):
        if line is not None and not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield _from_foreign(_json_object(line, path, number), name, index, where)
        except UserError as error:
            yield RejectedRow(id=f"{name}:line {number}", stage=STAGE, reason=f"unreadable: {error.what}", where=where)
        index += 1


def _json_object(line: str | None, path: Path, number: int) -> dict[str, Any]:
    if line is None:
        raise UserError("not UTF-8 text")
    value = parse_object(line, path, number)
    try:
        json_line(value).encode()
    except UnicodeEncodeError:
        raise UserError("a text has half of a surrogate pair, which UTF-8 cannot hold") from None
    return value


def _from_foreign(value: Mapping[str, Any], name: str, index: int, where: str) -> NbestList:
    texts, reference = parse_list(value, where)
    own = next((value[key] for key in ("id", "trial_id") if _is_name(value.get(key))), index)
    trial = value["trial_id"] if _is_name(value.get("trial_id")) else own
    return NbestList(
        id=f"{name}:{own}",
        trial_id=trial,
        source=name,
        texts=tuple(single_line(text) for text in texts),
        reference=reference,
        scores=_foreign_scores(value, len(texts)),
        session=_label(value, "session"),
        speaker=_label(value, "speaker"),
        group=_label(value, "group"),
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _label(value: Mapping[str, Any], key: str) -> str | None:
    return str(value[key]) if _is_name(value.get(key)) else None


def _foreign_scores(value: Mapping[str, Any], count: int) -> tuple[float, ...] | None:
    """Scores beside the list, or in its hypotheses; None unless each hypothesis has a number."""
    nested = value.get("asr_hypotheses")
    scores = [item.get("score") for item in nested] if isinstance(nested, list) else value.get("scores")
    if not isinstance(scores, list) or len(scores) != count:
        return None
    numbers = [item for item in scores if isinstance(item, int | float) and not isinstance(item, bool)]
    if len(numbers) < count or any(abs(item) > LARGEST_SCORE for item in numbers):
        return None
    return tuple(map(float, numbers))
