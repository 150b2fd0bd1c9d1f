"""The whole configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from utterflow.config.asr import AsrVariant
from utterflow.config.base import Name, Section, key, required
from utterflow.config.beams import Beams, Ngram
from utterflow.config.corpora import AnyCorpus, Download
from utterflow.config.datasets import CorrectorDataset
from utterflow.config.language_models import LanguageModel
from utterflow.config.prediction import Correction, Prediction
from utterflow.config.scoring import Scoring
from utterflow.config.signals import AnyLogits, AnyRecordings, CtcEncoder
from utterflow.config.tools import Tools
from utterflow.config.training import Training

# Keys that name an entry of another section: (where they stand, `*` for any name or index; that section).
REFERENCES = (
    ("runs.*.corpora", "corpora"),
    ("runs.*.asr", "asr"),
    ("runs.*.scoring", "scoring"),
    ("runs.*.corrections", "corrections"),
    ("encoders.*.recordings", "recordings"),
    ("logits.*.encoder", "encoders"),
    ("logits.*.train", "corpora"),
    ("logits.*.val", "corpora"),
    ("logits.*.test", "corpora"),
    ("beams.*.logits", "logits"),
    ("beams.*.ngram", "ngrams"),
    *(
        (f"datasets.*.{split}.*.{name}", section)
        for split in ("train", "validation", "test")
        for name, section in (("beams", "beams"), ("corpus", "corpora"), ("asr", "asr"))
    ),
    ("datasets.*.tokenizer", "models"),
    ("trainings.*.model", "models"),
    ("trainings.*.train.*.dataset", "datasets"),
    ("trainings.*.validation.*.dataset", "datasets"),
    ("predictions.*.dataset", "datasets"),
    ("predictions.*.model", "models"),
    ("predictions.*.training", "trainings"),
    ("corrections.*.prediction", "predictions"),
)
RUN_SECTIONS = ("corpora", "asr", "scoring")


class Run(Section):
    """Every corpus with every ASR variant, or every correction; with every scoring."""

    corpora: tuple[Name, ...] = key((), "names under `corpora`", "targets", examples=[["devel"]])
    asr: tuple[Name, ...] = key((), "names under `asr`", "targets", examples=[["turbo"]])
    corrections: tuple[Name, ...] = key((), "names under `corrections`", "targets", examples=[["corrected"]])
    scoring: tuple[Name, ...] = required("names under `scoring`", "targets", min_length=1, examples=[["whisper"]])

    @model_validator(mode="after")
    def _asks_for_something(self) -> Run:
        if bool(self.corpora) != bool(self.asr):
            raise ValueError("`corpora` and `asr` go together")
        if not (self.corpora or self.corrections):
            raise ValueError("a run names `corpora` and `asr`, or `corrections`")
        return self


class Config(Section):
    """The effective configuration of a run."""

    name: Name = required(
        "names the experiment; marks a file that stands alone", "summarize_asr", examples=["my_experiment"]
    )
    title: str = key("", "one line for the report", "summarize_asr")
    downloads: dict[str, Download] = Field(
        default_factory=dict, description="public files, by the path they are stored under (below `data/`)"
    )
    tools: Tools = Field(default_factory=Tools, description="programs outside of the main environment")
    corpora: dict[Name, AnyCorpus] = Field(default_factory=dict, description="corpora, by name")
    asr: dict[Name, AsrVariant] = Field(default_factory=dict, description="ASR variants, by name")
    recordings: dict[Name, AnyRecordings] = Field(default_factory=dict, description="neural recordings, by name")
    encoders: dict[Name, CtcEncoder] = Field(default_factory=dict, description="CTC encoders to train, by name")
    logits: dict[Name, AnyLogits] = Field(default_factory=dict, description="sources of CTC logits, by name")
    ngrams: dict[Name, Ngram] = Field(default_factory=dict, description="word n-gram models, by name")
    beams: dict[Name, Beams] = Field(default_factory=dict, description="decodings of logits to n-best lists, by name")
    models: dict[Name, LanguageModel] = Field(default_factory=dict, description="language models, by name")
    datasets: dict[Name, CorrectorDataset] = Field(
        default_factory=dict, description="training and test records, by name"
    )
    trainings: dict[Name, Training] = Field(default_factory=dict, description="fine-tunings, by name")
    predictions: dict[Name, Prediction] = Field(default_factory=dict, description="models' answers, by name")
    corrections: dict[Name, Correction] = Field(default_factory=dict, description="scored corrections, by name")
    scoring: dict[Name, Scoring] = Field(default_factory=dict, description="scorings, by name")
    runs: tuple[Run, ...] = Field(min_length=1, description="what the target `all` computes")

    @model_validator(mode="after")
    def _references(self) -> Config:
        faults = [f"{fault.path}: {fault.what}" for fault in reference_faults(self.model_dump(mode="json"))]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if faults := list(_misfits(self)):
            raise ValueError("\n".join(faults))
        return self


def partitions_of(config: Config, logits: str) -> tuple[str, ...]:
    """The partitions that a source of logits has."""
    source = config.logits[logits]
    holder = config.recordings[config.encoders[source.encoder].recordings] if source.source == "encoder" else source
    return tuple(name for name in ("train", "val", "test") if getattr(holder, name))


def _misfits(config: Config) -> Iterator[str]:
    """Entries that name each other and do not go together; called when all names are known to exist."""
    if reference_faults(config.model_dump(mode="json")):
        return
    for name, dataset in config.datasets.items():
        for split in ("train", "validation", "test"):
            for source in getattr(dataset, split):
                if source.beams and source.partition not in partitions_of(config, config.beams[source.beams].logits):
                    yield f"datasets.{name}.{split}: {source.beams} has no partition {source.partition}"
    for name, training in config.trainings.items():
        for part in (*training.train, *training.validation):
            if not getattr(config.datasets[part.dataset], part.split):
                yield f"trainings.{name}: dataset {part.dataset} has no split {part.split}"
    for name, prediction in config.predictions.items():
        if not getattr(config.datasets[prediction.dataset], prediction.split):
            yield f"predictions.{name}: dataset {prediction.dataset} has no split {prediction.split}"
        if prediction.merged and config.trainings[str(prediction.training)].adapter.kind == "none":
            yield f"predictions.{name}: training {prediction.training} has no adapter to merge; leave `merged` out"


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
    for pattern, section in REFERENCES:
        entries = raw.get(section)
        known = tuple(entries) if isinstance(entries, Mapping) else ()
        for path, value in _values_at(raw, pattern.split(".")):
            names = value if isinstance(value, list | tuple) else [value]
            faults += [
                ReferenceFault(".".join(path), name, f"no entry of `{section}` has this name", known)
                for name in names
                if isinstance(name, str) and name not in known
            ]
    downloads = raw.get("downloads")
    for path in downloads if isinstance(downloads, Mapping) else ():
        if not _is_below_data(str(path)):
            meant = re.sub(r"[{}\s]", "", str(path).rstrip("/.").rpartition("/")[2]) or "file"
            what = "downloads are stored below data/, under a path without empty parts, `..` or braces"
            faults.append(ReferenceFault("downloads", str(path), what, (f"data/{meant}",)))
    return faults


def _values_at(value: Any, pattern: list[str]) -> Iterator[tuple[list[str], Any]]:
    """(path, value) of all that stands at a path with `*` for any name or index."""
    if not pattern:
        yield [], value
        return
    first, *rest = pattern
    items: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        items = [(str(name), item) for name, item in value.items() if first in ("*", name)]
    elif isinstance(value, list | tuple) and first == "*":
        items = [(str(index), item) for index, item in enumerate(value)]
    for name, item in items:
        for path, found in _values_at(item, rest):
            yield [name, *path], found


def _is_below_data(path: str) -> bool:
    first, *parts = path.split("/")
    return (
        first == "data"
        and bool(parts)
        and all(part not in ("", ".", "..") and not set(part) & {*"{}\n"} for part in parts)
    )
