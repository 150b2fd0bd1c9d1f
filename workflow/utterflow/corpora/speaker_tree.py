"""A folder per speaker with one JSON file: `<root>/<split>/<speaker>/<speaker>.json`, audio beside it.

A row's id is `<speaker>/<file name without suffix>`: file names need not differ between speakers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utterflow.config.corpora import SpeakerTreeCorpus
from utterflow.corpora.candidates import (
    Candidate,
    Entry,
    extra_fields,
    reject,
    require_folder,
    scalar,
    transcript,
)
from utterflow.errors import UserError
from utterflow.files import read_json

SHAPE = 'its shape is {"Etiology": "...", "Files": [{"Filename": "a.wav", "Prompt": {"Transcript": "..."}}]}'


def speaker_tree_files(cfg: SpeakerTreeCorpus) -> list[str]:
    split = Path(cfg.root, cfg.split)
    folders = sorted(split.iterdir()) if split.is_dir() else []
    return [str(path / f"{path.name}.json") for path in folders if path.is_dir() and not path.name.startswith(".")]


def read_speaker_tree(cfg: SpeakerTreeCorpus) -> Iterator[Entry]:
    """Yield a candidate per entry of `Files`, speaker by speaker; a folder without its JSON file is a
    rejected row.

    Raises:
        UserError: the folder of the split is missing.
    """
    require_folder(cfg.root, "root")
    require_folder(Path(cfg.root, cfg.split), "split")
    for name in speaker_tree_files(cfg):
        path = Path(name)
        try:
            speaker = read_json(path)
            entries = speaker["Files"]
            etiology = scalar(speaker.get("Etiology"))
        except UserError as error:
            yield reject(path.stem, f"unreadable: {error.what}", str(path))
            continue
        except (AttributeError, KeyError, TypeError, ValueError):
            yield reject(path.stem, f"unreadable: {SHAPE}", str(path))
            continue
        if not isinstance(entries, list):
            yield reject(path.stem, f"unreadable: {SHAPE}", str(path))
            continue
        for index, entry in enumerate(entries):
            yield _entry(path, index, entry, etiology)


def _entry(path: Path, index: int, entry: Any, etiology: str | None) -> Entry:
    where = f"{path}, Files[{index}]"
    fallback = f"{path.stem}/{index}"
    try:
        file = scalar(entry["Filename"])
        text = transcript((entry.get("Prompt") or {}).get("Transcript"))
    except (AttributeError, KeyError, TypeError):
        return reject(fallback, "unreadable: no `Filename`, or `Prompt` is not an object", where)
    except ValueError as error:
        return reject(fallback, f"unreadable: {error}", where)
    if file is None:
        return reject(fallback, "unreadable: empty `Filename`", where)
    return Candidate(
        id=f"{path.stem}/{Path(file).stem}",
        audio=str(path.parent / file),
        text=text,
        where=where,
        speaker=path.stem,
        group=etiology,
        extra=extra_fields({**entry, "Etiology": etiology}),
    )
