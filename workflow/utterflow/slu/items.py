"""Spoken commands from any source, in one shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from utterflow.corpora.candidates import numbered_lines
from utterflow.errors import UserError
from utterflow.evaluate.files import parse_list
from utterflow.files import json_line, parse_object, read_jsonl
from utterflow.records import NbestRow, RationaleRow, RejectedRow, SluItem, parse_record, read_records, short

STAGE = "build_slu_data"

WhereFrom = Literal["nbest", "lists", "annotations", "rationale"]
Parse = Callable[[dict[str, Any], int, str], SluItem]


class SluDataItem(SluItem):
    """A `<slu>` row of a data set as its scorer wants it; it has the row's id."""

    RECORD: ClassVar[str] = "slu_data_item/1"
    source: str = Field(description="where it comes from: `rationale/k5`, `corpus/asr`, or a file's name")
    candidates: list[str] = Field(description="hypotheses as the prompt shows them, best first")
    rationale_text: str | None = Field(default=None, description="null without one")
    rationale_shown: bool = Field(default=False, description="the rationale is in the prompt")
    sees_gold: bool | None = Field(default=None, description="the rationale was made with the gold labels in sight")
    nbest_k: int | None = Field(default=None, description="list length that the rationale was made for")
    final_prediction: str | None = Field(default=None, description="the intent that the rationale ends with")


def read_items(path: Path, where_from: WhereFrom, *, stage: str = STAGE) -> Iterator[SluItem | RejectedRow]:
    """Yield the commands of a file; a row that is none is yielded as a rejected row with its line.

    - `nbest`: the workflow's n-best lists, `records.NbestRow`, beside the fields of the SLURP record;
    - `lists`: SLURP records with `asr_hypotheses: [{text, score}]` (or of texts), or `input: [text]`;
    - `annotations`: SLURP records as published; the ids are `slurp-<slurp_id>`, there are no hypotheses;
    - `rationale`: `records.RationaleRow`, and so are the items.

    A record's labels are its `scenario`, `action` and `entities`; SLURP's `intent` is not used. An entity is
    `{type, span}`, with the places of its `tokens`, or `{type, filler}`. Fillers are in lower case, as SLURP's metrics
    take the gold ones. Labels that a record does not have are None. In foreign files (`lists`, `annotations`) an id
    that was there before gets `#2`, `#3`, ...

    Args:
        stage: of the rejected rows.

    Raises:
        UserError: the file is missing, or a row of the workflow's own files does not fit its record.
    """
    if where_from == "rationale":
        yield from read_records(path, RationaleRow)
    elif where_from == "nbest":
        yield from _read_nbest(path, stage)
    else:
        yield from _read_foreign(path, _from_list if where_from == "lists" else _from_annotation, stage)


def single_line(text: str) -> str:
    """The text with single spaces and no line breaks: a prompt has one hypothesis per line."""
    return " ".join(text.split())


def filler_of(entity: Mapping[str, Any], tokens: Any) -> str:
    """The words of an entity, in lower case, joined by a space.

    Raises:
        ValueError: the entity has neither `filler` nor a `span` of places in `tokens`.
    """
    if isinstance(entity.get("filler"), str):
        return single_line(str(entity["filler"])).lower()
    span = entity.get("span")
    if not isinstance(span, list) or not span:
        raise ValueError(f"an entity has no `span` and no `filler`: {short(dict(entity), 80)}")
    if not isinstance(tokens, list):
        raise ValueError("an entity has a `span`, but the record has no list of `tokens`")
    if not all(type(place) is int and 0 <= place < len(tokens) for place in span):
        raise ValueError(f"span {short(span, 60)} is out of range: there are {len(tokens)} tokens, counted from 0")
    return single_line(" ".join(_surface(tokens[place], place) for place in span)).lower()


def entities_of(record: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """`{type, filler}` of each entity of a SLURP record, in the order of the sentence; None where it has no labels.

    Entities without spans keep their order and follow those with spans.

    Raises:
        ValueError: what does not fit.
    """
    entities = record.get("entities")
    if entities is None:
        return None
    if not isinstance(entities, list):
        raise ValueError(f"`entities` is no list, found {short(entities, 60)}")
    found = []
    for entity in entities:
        if not isinstance(entity, dict) or not isinstance(entity.get("type"), str) or not entity["type"]:
            raise ValueError(f"an entity without `type`: {short(entity, 80)}")
        found.append({"type": entity["type"], "filler": filler_of(entity, record.get("tokens"))})
    order = sorted(range(len(found)), key=lambda index: _place(entities[index]))
    return [found[index] for index in order]


def unique(name: str, used: set[str]) -> str:
    """The name, with `#2`, `#3`, ... where it is used already; it is added to `used`."""
    found, number = name, 1
    while found in used:
        number += 1
        found = f"{name}#{number}"
    used.add(found)
    return found


def _surface(token: Any, place: int) -> str:
    surface = token.get("surface") if isinstance(token, dict) else None
    if not isinstance(surface, str):
        raise ValueError(f"token {place} has no `surface`: {short(token, 60)}")
    return surface


def _place(entity: Mapping[str, Any]) -> float:
    """Where an entity begins in its sentence, in tokens; infinite without a span."""
    span = entity.get("span")
    numbers = [place for place in span if isinstance(place, int)] if isinstance(span, list) else []
    return min(numbers, default=math.inf)


def _labels(record: Mapping[str, Any]) -> dict[str, Any]:
    """
    Raises:
        ValueError: an entity does not fit.
    """
    return {
        "scenario": record.get("scenario") or None,
        "action": record.get("action") or None,
        "entities": entities_of(record),
    }


def _read_nbest(path: Path, stage: str) -> Iterator[SluItem | RejectedRow]:
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        row = parse_record(NbestRow, value, where)
        try:
            yield _from_nbest(row, where)
        except (UserError, ValueError) as error:
            yield _refused(row.id, error, where, stage)


def _from_nbest(row: NbestRow, where: str) -> SluItem:
    extra = row.model_extra or {}
    item = {
        "id": row.id,
        "slurp_id": extra.get("slurp_id"),
        "file": extra.get("file"),
        "audio": row.audio,
        "noise": row.noise and row.noise.row(),
        "text": row.text,
        "hypotheses": [single_line(hypothesis.text) for hypothesis in row.asr_hypotheses],
        "speaker": row.speaker,
        "group": row.group,
        **_labels(extra),
    }
    return parse_record(SluItem, item, where)


def _read_foreign(path: Path, parse: Parse, stage: str) -> Iterator[SluItem | RejectedRow]:
    if not path.is_file():
        raise UserError("there is no such file of SLURP records", where=str(path), fix="correct its path")
    used: set[str] = set()
    for number, line in numbered_lines(path):
        if line is not None and not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = parse(_json_object(line, path, number), number, where)
        except (UserError, ValueError) as error:
            yield _refused(f"line {number}", error, where, stage)
            continue
        yield item.model_copy(update={"id": unique(item.id, used)})


def _from_list(record: dict[str, Any], number: int, where: str) -> SluItem:
    """
    Raises:
        UserError, ValueError: what does not fit.
    """
    texts, reference = parse_list(record, where)
    return _from_record(record, number, where, hypotheses=[single_line(text) for text in texts], reference=reference)


def _from_annotation(record: dict[str, Any], number: int, where: str) -> SluItem:
    """
    Raises:
        UserError, ValueError: what does not fit.
    """
    if not isinstance(record.get("sentence"), str) or not record["sentence"].strip():
        raise ValueError("no `sentence`: expected a SLURP record")
    sentence = {name: record.get(name) for name in ("slurp_id", "sentence", "scenario", "action", "entities", "tokens")}
    return _from_record({**sentence, "id": None}, number, where, hypotheses=[], reference=None)


def _from_record(
    record: Mapping[str, Any], number: int, where: str, *, hypotheses: list[str], reference: str | None
) -> SluItem:
    sentence = record.get("sentence")
    item = {
        "id": _id_of(record, number),
        "slurp_id": record.get("slurp_id"),
        "file": _recording_of(record),
        "audio": record.get("audio"),
        "noise": record.get("noise"),
        "text": reference if sentence is None else sentence,
        "hypotheses": hypotheses,
        "speaker": _name_of(record.get("speaker")),
        "group": _name_of(record.get("group")),
        **_labels(record),
    }
    return parse_record(SluItem, item, where)


def _id_of(record: Mapping[str, Any], number: int) -> str:
    """The record's own id, its recording's name, `slurp-<slurp_id>`, or its line."""
    if own := _name_of(record.get("id")):
        return own
    if file := _recording_of(record):
        return Path(file).stem
    sentence = _name_of(record.get("slurp_id"))
    return f"slurp-{sentence}" if sentence else f"line-{number}"


def _recording_of(record: Mapping[str, Any]) -> str | None:
    """The name of the recording that was heard: `file`, that of `audio`, or the only one of `recordings`."""
    file, audio, recordings = record.get("file"), record.get("audio"), record.get("recordings")
    if isinstance(file, str) and file:
        return file
    if isinstance(audio, str) and audio:
        return Path(audio).name
    if isinstance(recordings, list) and len(recordings) == 1 and isinstance(recordings[0], dict):
        return _name_of(recordings[0].get("file"))
    return None


def _name_of(value: Any) -> str | None:
    named = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    return str(value) if named else None


def _json_object(line: str | None, path: Path, number: int) -> dict[str, Any]:
    """
    Raises:
        UserError: the line is no JSON object that UTF-8 can hold.
    """
    if line is None:
        raise UserError("not UTF-8 text")
    value = parse_object(line, path, number)
    try:
        json_line(value).encode()
    except UnicodeEncodeError:
        raise UserError("a text has half of a surrogate pair, which UTF-8 cannot hold") from None
    return value


def _refused(id: str, error: Exception, where: str, stage: str) -> RejectedRow:
    what = error.what if isinstance(error, UserError) else str(error)
    return RejectedRow(id=id, stage=stage, reason=f"unreadable: {what}", where=where)
