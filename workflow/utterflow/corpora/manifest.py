"""A plain table of recordings: JSON Lines, or CSV or TSV with a header.

Where `columns.id` is null a row's id is its audio path, as the table has it, without the suffix. All columns
are kept.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from utterflow.config.corpora import Columns, ManifestCorpus
from utterflow.corpora.candidates import (
    Candidate,
    Entry,
    extra_fields,
    json_objects,
    numbered_lines,
    reject,
    require_file,
    require_folder,
    scalar,
    transcript,
)
from utterflow.errors import UserError
from utterflow.records import RejectedRow

DELIMITERS = {".csv": ",", ".tsv": "\t"}

Rows = Iterator[tuple[str, Mapping[str, Any] | RejectedRow]]


def manifest_files(cfg: ManifestCorpus) -> list[str]:
    return [cfg.path]


def read_manifest(cfg: ManifestCorpus) -> Iterator[Entry]:
    """Yield a candidate per row.

    Raises:
        UserError: file or folder missing, another suffix, or a named column that a CSV header lacks.
    """
    path = require_file(cfg.path, "path")
    folder = require_folder(cfg.audio_dir, "audio_dir") if cfg.audio_dir is not None else path.parent
    suffix = path.suffix.lower()
    if suffix not in DELIMITERS and suffix != ".jsonl":
        raise UserError(
            f"unknown kind of table: {path.suffix or 'no suffix'}",
            where=cfg.path,
            fix="name it .jsonl, .csv or .tsv, as what it holds",
        )
    rows: Rows = json_objects(path) if suffix == ".jsonl" else table_rows(path, cfg.columns)
    for where, row in rows:
        yield row if isinstance(row, RejectedRow) else _candidate(row, where, folder, cfg.columns)


def table_rows(path: Path, columns: Columns) -> Rows:
    """Yield (where, row) of a table with a header; empty cells are None.

    Raises:
        UserError: no readable header, or one that lacks or repeats a column that the configuration names.
    """
    records = table_records(path, DELIMITERS[path.suffix.lower()])
    _, header = next(records, (1, []))
    if isinstance(header, str):
        raise UserError(
            f"the table's header is {header}",
            where=f"{path}, line 1",
            fix="save it as UTF-8 text, lines ending in LF or CRLF",
        )
    if not header:
        raise UserError("the table has no header", where=str(path), fix="write a header line and a line per recording")
    _check_header(header, path, columns)
    for number, cells in records:
        where = f"{path}, line {number}"
        if isinstance(cells, str):
            yield where, reject(f"line {number}", cells, where)
        elif len(cells) != len(header) and cells:
            reason = f"unreadable: {len(cells)} cells under a header of {len(header)}"
            yield where, reject(f"line {number}", reason, where)
        elif cells:
            yield where, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def table_records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield (number of its first line, from 1; cells, or what is wrong with them) of each record.

    A record whose quotes do not close is given up after its first line, so that it swallows no good ones.
    In a tab-separated table such quotes are taken as text: there many programs do not quote at all.
    """
    source = numbered_lines(path)
    waiting: deque[tuple[int, str | None]] = deque()
    taken: list[tuple[int, str | None]] = []

    def lines() -> Iterator[str]:
        while item := waiting.popleft() if waiting else next(source, None):
            taken.append(item)
            yield f"{item[1] or ''}\n"

    while True:
        taken.clear()
        try:
            cells = next(csv.reader(lines(), delimiter=delimiter, strict=True), None)
        except csv.Error as error:
            waiting.extendleft(reversed(taken[1:]))
            number, first = taken[0]
            problem = f"unreadable: {error}"
            if '"' in (first or ""):
                problem += "; a cell that begins with a quote ends with one, and has its other quotes doubled"
            yield number, first.split(delimiter) if first and delimiter == "\t" else problem
            continue
        if cells is None:
            return
        readable = all(line is not None for _, line in taken)
        yield taken[0][0], cells if readable else "unreadable: not UTF-8 text"


def _check_header(header: list[str], path: Path, columns: Columns) -> None:
    for key, name in columns.model_dump().items():
        if name is None or header.count(name) == 1:
            continue
        found = "no column" if name not in header else "several columns are called"
        known = ", ".join(repr(column) for column in header)
        raise UserError(
            f"{found} {name!r} (config key `columns.{key}`)",
            where=f"{path}, line 1",
            fix=f"set `columns.{key}` to one of: {known}"
            + (f"; or to null, where there is none: `columns: {{{key}: null}}`" if key != "audio" else ""),
        )


def _candidate(row: Mapping[str, Any], where: str, folder: Path, columns: Columns) -> Entry:
    fallback = where.rsplit(", ", 1)[-1]
    try:
        audio = scalar(row.get(columns.audio))
        if audio is None:
            return reject(fallback, f"no audio: column `{columns.audio}` is empty or missing", where)
        name = scalar(row.get(columns.id)) if columns.id else str(PurePosixPath(audio).with_suffix(""))
        if name is None:
            return reject(fallback, f"no id: column `{columns.id}` is empty or missing", where)
        return Candidate(
            id=name,
            audio=str(folder / audio),
            text=transcript(row.get(columns.text)) if columns.text else None,
            where=where,
            speaker=scalar(row.get(columns.speaker)) if columns.speaker else None,
            group=scalar(row.get(columns.group)) if columns.group else None,
            extra=extra_fields(row),
        )
    except ValueError as error:
        return reject(fallback, f"unreadable: {error}", where)
