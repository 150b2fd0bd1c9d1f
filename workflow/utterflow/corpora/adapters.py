"""The corpora that Utterflow reads: a new adapter is entered here, its config in `config/corpora.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from utterflow.config.corpora import AnyCorpus
from utterflow.corpora.candidates import Entry
from utterflow.corpora.manifest import manifest_files, read_manifest
from utterflow.corpora.slurp import read_slurp, slurp_files
from utterflow.corpora.speaker_tree import read_speaker_tree, speaker_tree_files
from utterflow.corpora.speechocean import read_speechocean, speechocean_files


class Adapter(NamedTuple):
    """How to read one kind of corpus."""

    read: Callable[[Any], Iterator[Entry]]
    files: Callable[[Any], list[str]]


ADAPTERS: dict[str, Adapter] = {
    "slurp": Adapter(read_slurp, slurp_files),
    "speechocean762": Adapter(read_speechocean, speechocean_files),
    "speaker_tree": Adapter(read_speaker_tree, speaker_tree_files),
    "manifest": Adapter(read_manifest, manifest_files),
}


def source_files(cfg: AnyCorpus) -> list[str]:
    """The annotation files that a corpus is read from, whether they are there or not; not the audio."""
    return ADAPTERS[cfg.adapter].files(cfg)
