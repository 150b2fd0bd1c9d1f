"""A plain table of recordings: JSON Lines, or CSV or TSV with a header.

Where `columns.id` is null a row's id is its audio path, as the table has it, without the suffix. All columns
are kept.
"""

from __future__ import annotations

import csv
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
    if path.suffix not in DELIMITERS and path.suffix != ".jsonl":
        raise UserError(
            f"unknown kind of table: {path.suffix or 'no suffix'}",
            where=cfg.path,
            fix="name it .jsonl, .csv or .tsv, as what it holds",
        )
    rows: Rows = json_objects(path) if path.suffix == ".jsonl" else table_rows(path, cfg.columns)
    for where, row in rows:
        yield row if isinstance(row, RejectedRow) else _candidate(row, where, folder, cfg.columns)


def table_rows(path: Path, columns: Columns) -> Rows:
    """Yield (where, row) of a table with a header; empty cells are None.

    Raises:
        UserError: no header, or one without a column that the configuration names.
    """
    broken: set[int] = set()
    reader = csv.reader(_text_lines(path, broken), delimiter=DELIMITERS[path.suffix])
    header = next(reader, None)
    if header is None:
        raise UserError("the table is empty", where=str(path), fix="write a header line and a line per recording")
    named = {key: name for key, name in columns.model_dump().items() if name is not None}
    for key, name in named.items():
        if name not in header:
            raise UserError(
                f"no column {name!r} (config key `columns.{key}`)",
                where=f"{path}, line 1",
                fix=f"set `columns.{key}` to one of: {', '.join(header)}"
                + (f"; or to null, where there is none: `columns: {{{key}: null}}`" if key != "audio" else ""),
            )
    last = reader.line_num
    while True:
        where = f"{path}, line {last + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield where, reject(f"line {last + 1}", f"unreadable: {error}", where)
            last = reader.line_num
            continue
        if cells is None:
            return
        first, last = last + 1, reader.line_num
        if not broken.isdisjoint(range(first, last + 1)):
            yield where, reject(f"line {first}", "unreadable: not UTF-8 text", where)
        elif len(cells) != len(header) and cells:
            reason = f"unreadable: {len(cells)} cells under a header of {len(header)}"
            yield where, reject(f"line {first}", reason, where)
        elif cells:
            yield where, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _text_lines(path: Path, broken: set[int]) -> Iterator[str]:
    for number, line in numbered_lines(path):
        if line is None:
            broken.add(number)
        yield f"{line or ''}\n"


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
