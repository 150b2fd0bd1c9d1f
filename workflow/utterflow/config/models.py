"""The whole configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from utterflow.config.asr import AsrVariant
from utterflow.config.base import Name, Section, key, required
from utterflow.config.corpora import AnyCorpus, Download
from utterflow.config.scoring import Scoring

RUN_SECTIONS = ("corpora", "asr", "scoring")


class Run(Section):
    """Every corpus with every ASR variant and every scoring."""

    corpora: tuple[Name, ...] = required("names under `corpora`", "targets", min_length=1, examples=[["devel"]])
    asr: tuple[Name, ...] = required("names under `asr`", "targets", min_length=1, examples=[["turbo"]])
    scoring: tuple[Name, ...] = required("names under `scoring`", "targets", min_length=1, examples=[["whisper"]])


class Config(Section):
    """The effective configuration of a run."""

    name: Name = required(
        "names the experiment; marks a file that stands alone", "summarize_asr", examples=["my_experiment"]
    )
    title: str = key("", "one line for the report", "summarize_asr")
    downloads: dict[str, Download] = Field(
        default_factory=dict, description="public files, by the path they are stored under (below `data/`)"
    )
    corpora: dict[Name, AnyCorpus] = Field(description="corpora, by name")
    asr: dict[Name, AsrVariant] = Field(default_factory=dict, description="ASR variants, by name")
    scoring: dict[Name, Scoring] = Field(default_factory=dict, description="scorings, by name")
    runs: tuple[Run, ...] = Field(min_length=1, description="what the target `all` computes")

    @model_validator(mode="after")
    def _references(self) -> Config:
        faults = [f"{fault.path}: {fault.what}" for fault in reference_faults(self.model_dump(mode="json"))]
        if faults:
            raise ValueError("\n".join(faults))
        return self


@dataclass(frozen=True)
class ReferenceFault:
    """A name that stands for nothing: where, the name, what is wrong, and the names that exist."""

    path: str
    name: str
    what: str
    known: tuple[str, ...] = ()


def reference_faults(raw: Mapping[str, Any]) -> list[ReferenceFault]:
    """All broken references of a configuration, valid or not; parts of another shape are passed over."""
    faults = []
    runs = raw.get("runs")
    for index, run in enumerate(runs if isinstance(runs, list | tuple) else ()):
        for section in RUN_SECTIONS:
            names = run.get(section) if isinstance(run, Mapping) else None
            entries = raw.get(section)
            known = tuple(entries) if isinstance(entries, Mapping) else ()
            faults += [
                ReferenceFault(f"runs.{index}.{section}", name, f"no entry of `{section}` has this name", known)
                for name in (names if isinstance(names, list | tuple) else ())
                if isinstance(name, str) and name not in known
            ]
    downloads = raw.get("downloads")
    for path in downloads if isinstance(downloads, Mapping) else ():
        if not _is_below_data(str(path)):
            meant = re.sub(r"[{}\s]", "", str(path).rstrip("/.").rpartition("/")[2]) or "file"
            what = "downloads are stored below data/, under a path without empty parts, `..` or braces"
            faults.append(ReferenceFault("downloads", str(path), what, (f"data/{meant}",)))
    return faults


def _is_below_data(path: str) -> bool:
    first, *parts = path.split("/")
    return (
        first == "data"
        and bool(parts)
        and all(part not in ("", ".", "..") and not set(part) & {*"{}\n"} for part in parts)
    )
