"""What the rule `prepare_corpus` waits for.

Known at parse time, on a fresh clone too, and the same before and after the downloads: a file that comes out
of an archive is stood for by the archive's listing.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from utterflow.config.corpora import AnyCorpus, Download
from utterflow.corpora.adapters import source_files


def listing_of(archive: str) -> str:
    """The listing that `unpack_archive` writes for an archive."""
    return f"{archive}.contents.tsv"


def rule_inputs(cfg: AnyCorpus, downloads: Mapping[str, Download]) -> list[str]:
    """The input files of a corpus's rule: annotations that are there or are downloads, and listings of
    archives.

    An annotation file that is neither is left out: the rule's script then says that it is missing.
    """
    archives = {listing_of(path): item.unpack_to for path, item in downloads.items() if item.unpack_to}
    places = [*source_files(cfg), audio_folder(cfg)]
    listings = [listing for listing, folder in archives.items() if any(_inside(place, folder) for place in places)]
    unpacked = [folder for folder in archives.values() if folder]
    files = [
        os.path.normpath(file)
        for file in source_files(cfg)
        if os.path.normpath(file) in downloads
        or (Path(file).is_file() and not any(_inside(file, folder) for folder in unpacked))
    ]
    return [*files, *listings]


def audio_folder(cfg: AnyCorpus) -> str:
    """The folder that holds a corpus's audio."""
    if cfg.adapter == "slurp":
        return cfg.audio_dir
    if cfg.adapter == "manifest":
        return cfg.audio_dir if cfg.audio_dir is not None else str(PurePosixPath(cfg.path).parent)
    return cfg.root


def _inside(path: str, folder: str) -> bool:
    return PurePosixPath(os.path.normpath(path)).is_relative_to(os.path.normpath(folder))
