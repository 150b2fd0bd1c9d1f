"""SLURP (Bastianelli et al., EMNLP 2020): one JSON object per sentence, with one or more recordings.

A row's id is its recording's file name without the suffix, whatever `recordings` says: no two recordings of
SLURP share one, and a recording keeps its id, and so its noise and its journal entries, in every selection.
Beside the fields of the SLURP record a row has `file`, the recording's name, by which SLURP's own metrics
pair gold and prediction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utterflow.config.corpora import SlurpCorpus
from utterflow.corpora.candidates import (
    Candidate,
    Entry,
    extra_fields,
    json_objects,
    reject,
    require_file,
    require_folder,
    scalar,
    transcript,
)
from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.records import RejectedRow

USER_ID = re.compile(r"^(?P<gender>[FM]|UNK)(?P<native>[EO])?-\d+$")
GENDERS = {"F": "female", "M": "male"}
NATIVE = {"E": "native", "O": "non-native"}

Recordings = Mapping[str, Mapping[str, Any]]


def slurp_files(cfg: SlurpCorpus) -> list[str]:
    return [cfg.annotations, *([cfg.metadata] if cfg.metadata else [])]


def read_slurp(cfg: SlurpCorpus) -> Iterator[Entry]:
    """Yield a candidate per sentence or, with `recordings: all`, per recording.

    Raises:
        UserError: a file or folder is missing, or `group` is no key of the metadata.
    """
    annotations = require_file(cfg.annotations, "annotations")
    folder = require_folder(cfg.audio_dir, "audio_dir")
    about = read_recordings(cfg.metadata) if cfg.metadata else {}
    check_group(cfg, about)
    for where, record in json_objects(annotations):
        if isinstance(record, RejectedRow):
            yield record
            continue
        name = str(record.get("slurp_id", where))
        try:
            chosen = choose_recordings(record.get("recordings"), cfg)
            text = transcript(record.get("sentence"))
        except ValueError as error:
            yield reject(name, str(error), where)
            continue
        for file in chosen:
            info = about.get(file, {})
            yield Candidate(
                id=Path(file).stem,
                audio=str(folder / file),
                text=text,
                where=where,
                speaker=scalar(info.get("usrid")),
                group=group_of(file, info, cfg.group),
                extra={**extra_fields(record), "file": file},
            )


def read_recordings(metadata: str) -> Recordings:
    """Recording's file name -> its entry, with `gender` and `native` read from `usrid` where it lacks them.

    SLURP codes them there: `FO-488` is a woman whose first language is not English, `UNK-323` is unknown.

    Raises:
        UserError: the file is missing or has another shape.
    """
    path = require_file(metadata, "metadata")
    sentences = read_json(path)
    found: dict[str, Mapping[str, Any]] = {}
    try:
        for sentence in sentences.values():
            for file, info in sentence["recordings"].items():
                found[file] = {**_coded(scalar(info.get("usrid")) or ""), **info}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            "not SLURP's metadata",
            where=str(path),
            fix='its shape is {"<slurp_id>": {"recordings": {"<file>": {"usrid": "FO-488", ...}}}}',
        ) from None
    return found


def check_group(cfg: SlurpCorpus, about: Recordings) -> None:
    """
    Raises:
        UserError: `group` asks for something that the metadata do not say.
    """
    if cfg.group in (None, "headset"):
        return
    known = sorted({name for info in about.values() for name in info})
    if cfg.group not in known:
        raise UserError(
            f"group: {cfg.group!r} is not in SLURP's metadata",
            where=cfg.metadata or "no `metadata` is configured",
            fix=f"write one of: headset{''.join(f', {name}' for name in known)}"
            + ("" if about else "; or set `metadata`"),
        )


def choose_recordings(recordings: Any, cfg: SlurpCorpus) -> list[str]:
    """File names of the recordings that the configuration asks for.

    Raises:
        ValueError: there is none such, or an entry has no file name.
    """
    if not isinstance(recordings, list) or not recordings:
        raise ValueError("no recordings")
    if not all(isinstance(entry, dict) and isinstance(entry.get("file"), str) for entry in recordings):
        raise ValueError("unreadable: a recording without `file`")
    files: list[str] = [entry["file"] for entry in recordings]
    if cfg.recordings == "all":
        return files
    if cfg.recordings == "best":
        rates = [entry.get("wer") for entry in recordings]
        rates = [rate if isinstance(rate, int | float) else math.inf for rate in rates]
        return [files[rates.index(min(rates))]]
    if cfg.recording_index >= len(files):
        raise ValueError(f"no recording {cfg.recording_index}: the sentence has {len(files)}, counted from 0")
    return [files[cfg.recording_index]]


def group_of(file: str, info: Mapping[str, Any], group: str | None) -> str | None:
    if group is None:
        return None
    if group == "headset":
        return "headset" if Path(file).stem.endswith("-headset") else "distant"
    value = info.get(group)
    return None if value is None else str(value)


def _coded(user: str) -> dict[str, str]:
    match = USER_ID.match(user)
    if not match:
        return {}
    return {
        "gender": GENDERS.get(match["gender"], "unknown"),
        "native": NATIVE.get(match["native"] or "", "unknown"),
    }
