"""The whole configuration."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from utterflow.config.asr import AsrVariant
from utterflow.config.base import Name, Section, key, required
from utterflow.config.beams import Beams, Ngram
from utterflow.config.corpora import AnyCorpus, Download
from utterflow.config.datasets import AnyDataset, SluDataset, SluSource
from utterflow.config.language_models import LanguageModel
from utterflow.config.prediction import Correction, Prediction, Understanding
from utterflow.config.rationale import Rationale
from utterflow.config.scoring import Scoring
from utterflow.config.servers import Server
from utterflow.config.signals import AnyLogits, AnyRecordings, CtcEncoder
from utterflow.config.tools import Tools
from utterflow.config.training import MixPart, Training

# Keys that name an entry of another section: (where they stand, `*` for any name or index; that section).
REFERENCES = (
    ("runs.*.corpora", "corpora"),
    ("runs.*.asr", "asr"),
    ("runs.*.scoring", "scoring"),
    ("runs.*.corrections", "corrections"),
    ("runs.*.rationales", "rationales"),
    ("runs.*.understandings", "understandings"),
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
        for name, section in (("beams", "beams"), ("corpus", "corpora"), ("asr", "asr"), ("rationale", "rationales"))
    ),
    ("datasets.*.tokenizer", "models"),
    ("rationales.*.corpus", "corpora"),
    ("rationales.*.asr", "asr"),
    ("rationales.*.server", "servers"),
    ("rationales.*.model", "models"),
    ("trainings.*.model", "models"),
    ("trainings.*.train.*.dataset", "datasets"),
    ("trainings.*.validation.*.dataset", "datasets"),
    ("predictions.*.dataset", "datasets"),
    ("predictions.*.model", "models"),
    ("predictions.*.training", "trainings"),
    ("corrections.*.prediction", "predictions"),
    ("understandings.*.prediction", "predictions"),
)
RUN_SECTIONS = ("corpora", "asr", "scoring")


class Run(Section):
    """Every corpus with every ASR variant, and every correction, with every scoring; rationales; understandings."""

    corpora: tuple[Name, ...] = key((), "names under `corpora`", "targets", examples=[["devel"]])
    asr: tuple[Name, ...] = key((), "names under `asr`", "targets", examples=[["turbo"]])
    corrections: tuple[Name, ...] = key((), "names under `corrections`", "targets", examples=[["corrected"]])
    rationales: tuple[Name, ...] = key((), "names under `rationales`", "targets", examples=[["deepseek"]])
    understandings: tuple[Name, ...] = key((), "names under `understandings`", "targets", examples=[["slu"]])
    scoring: tuple[Name, ...] = key((), "names under `scoring`", "targets", examples=[["whisper"]])

    @model_validator(mode="after")
    def _asks_for_something(self) -> Run:
        if bool(self.corpora) != bool(self.asr):
            raise ValueError("`corpora` and `asr` go together")
        if not (self.corpora or self.corrections or self.rationales or self.understandings):
            raise ValueError("a run names `corpora` and `asr`, `corrections`, `rationales` or `understandings`")
        if bool(self.scoring) != bool(self.corpora or self.corrections):
            raise ValueError("`scoring` goes with `corpora` and `asr`, or with `corrections`")
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
    servers: dict[Name, Server] = Field(
        default_factory=dict, description="servers that answer questions, by name; their keys come from the environment"
    )
    rationales: dict[Name, Rationale] = Field(
        default_factory=dict, description="why labels fit what was heard, in a language model's words, by name"
    )
    datasets: dict[Name, AnyDataset] = Field(default_factory=dict, description="training and test records, by name")
    trainings: dict[Name, Training] = Field(default_factory=dict, description="fine-tunings, by name")
    predictions: dict[Name, Prediction] = Field(default_factory=dict, description="models' answers, by name")
    corrections: dict[Name, Correction] = Field(default_factory=dict, description="scored corrections, by name")
    understandings: dict[Name, Understanding] = Field(
        default_factory=dict, description="scored answers to slu datasets, by name"
    )
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
        if dataset.builder == "slu":
            yield from _slu_misfits(config, name, dataset)
            continue
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
    yield from _kind_misfits(config)
    yield from _contaminated(config)


def _slu_misfits(config: Config, name: str, dataset: SluDataset) -> Iterator[str]:
    for split in ("train", "validation", "test"):
        for number, source in enumerate(getattr(dataset, split)):
            where = f"datasets.{name}.{split}.{number}"
            if source.rationale and source.k not in config.rationales[source.rationale].nbest_values:
                yield f"{where}: rationales.{source.rationale} has no list length {source.k} (`nbest_values`)"
    if gold_made := _gold_made(config, dataset.test):
        yield (
            f"datasets.{name}.test: rationales.{gold_made} were made with the gold labels in sight: they must not be "
            "in test-time prompts, nor choose the test set by the rows that they reject. Name `corpus` and `asr` "
            "instead, or rationales with `gold: false`"
        )
    yield from _inventory_misfits(config, name, dataset)


def _inventory_misfits(config: Config, name: str, dataset: SluDataset) -> Iterator[str]:
    """Inventories of labels, of the data set or its rationales, that the test set's own annotations would fill."""
    tested = {posixpath.normpath(path) for source in dataset.test for path in _annotations(config, source)}
    sources = (*dataset.train, *dataset.validation, *dataset.test)
    reasons = dict.fromkeys(source.rationale for source in sources if source.rationale)
    named = [(f"datasets.{name}", dataset.labels)]
    named += [(f"rationales.{reason}", config.rationales[reason].labels) for reason in reasons]
    for where, labels in named:
        for path in labels:
            if posixpath.normpath(path) in tested:
                yield f"{where}.labels: {path} annotates the test set of datasets.{name}: leave it out"


def _contaminated(config: Config) -> Iterator[str]:
    """Trainings that learn, or choose a checkpoint, by the annotations that their own predictions are scored on."""
    for name, understanding in config.understandings.items():
        prediction = config.predictions[understanding.prediction]
        if prediction.training is None:
            continue
        scored = {posixpath.normpath(path) for path in _annotated(config, prediction.dataset, prediction.split)}
        training = config.trainings[prediction.training]
        for part in (*training.train, *training.validation):
            for path in _annotated(config, part.dataset, part.split):
                if posixpath.normpath(path) in scored:
                    yield (
                        f"trainings.{prediction.training}: {part.dataset}/{part.split} holds rows of {path}, on which "
                        f"understandings.{name} is scored"
                    )


def _annotated(config: Config, name: str, split: str) -> Iterator[str]:
    dataset = config.datasets[name]
    if isinstance(dataset, SluDataset):
        for source in getattr(dataset, split):
            yield from _annotations(config, source)


def _annotations(config: Config, source: SluSource) -> Iterator[str]:
    """The SLURP annotations that a source's gold labels come from, where they are known."""
    corpus = config.rationales[source.rationale].corpus if source.rationale else source.corpus
    if source.gold_text:
        yield source.gold_text
    elif corpus and (entry := config.corpora[corpus]).adapter == "slurp":
        yield entry.annotations


def _gold_made(config: Config, sources: Iterable[SluSource]) -> str | None:
    """The first source's rationales that were made with the gold labels in sight."""
    names = (source.rationale for source in sources if source.rationale)
    return next((name for name in names if config.rationales[name].gold), None)


def _kind_misfits(config: Config) -> Iterator[str]:
    """Scorers that do not fit a prediction's data set, questions that a model or server cannot be asked."""
    builders = {name: config.datasets[item.dataset].builder for name, item in config.predictions.items()}
    for section, builder in (("corrections", "corrector"), ("understandings", "slu")):
        for name, item in getattr(config, section).items():
            if builders[item.prediction] != builder:
                yield (
                    f"{section}.{name}: prediction {item.prediction} answers a dataset of builder "
                    f"{builders[item.prediction]}, not {builder}"
                )
    for name, understanding in config.understandings.items():
        yield from _understanding_misfits(config, name, understanding)
    for name, rationale in config.rationales.items():
        if (
            rationale.evidence == "audio"
            and rationale.server
            and "audio" not in config.servers[rationale.server].accepts
        ):
            yield (
                f"rationales.{name}: servers.{rationale.server} takes no audio: it would answer from text alone. Use "
                "evidence nbest, or a server (`accepts: [audio]`) or model that listens"
            )
        if rationale.evidence == "audio" and rationale.model and config.models[rationale.model].kind != "audio":
            yield f"rationales.{name}: evidence audio needs a model of kind audio, models.{rationale.model} is not"
        if rationale.backend == "vllm" and rationale.model and config.models[rationale.model].kind != "text":
            yield f"rationales.{name}: backend vllm answers text only, with a model of kind text; take transformers"
    for name, training in config.trainings.items():
        yield from _audio_misfits(config, f"trainings.{name}", training.model, training.train + training.validation)
        if (training.adapter.audio_encoder or training.adapter.projector) and (
            config.models[training.model].kind != "audio"
        ):
            yield f"trainings.{name}.adapter: models.{training.model} has no audio encoder or projector to train"
        if training.packing and config.models[training.model].kind != "text":
            yield f"trainings.{name}: only text is packed; leave `packing` out"
    for name, prediction in config.predictions.items():
        model = prediction.model or config.trainings[str(prediction.training)].model
        yield from _audio_misfits(config, f"predictions.{name}", model, (prediction,))
        if prediction.backend == "vllm" and config.models[model].kind != "text":
            yield f"predictions.{name}: backend vllm answers text only; take transformers"


def _understanding_misfits(config: Config, name: str, understanding: Understanding) -> Iterator[str]:
    """Scored prompts that show or were chosen by gold labels; scores that the split's rows have no names for."""
    prediction = config.predictions[understanding.prediction]
    dataset, where = config.datasets[prediction.dataset], f"{prediction.dataset}/{prediction.split}"
    if dataset.builder != "slu":
        return
    sources: tuple[SluSource, ...] = getattr(dataset, prediction.split)
    gold_made = _gold_made(config, sources)
    if dataset.rationale_in_prompt and gold_made:
        yield (
            f"understandings.{name}: the prompts of {where} hold rationales.{gold_made}, which were made with the gold "
            "labels in sight"
        )
    if any(source.agreeing for source in sources):
        yield f"understandings.{name}: `agreeing` chooses the rows of {where} by their gold labels: score another split"
    if sources and all(source.gold_text for source in sources):
        if understanding.by == "file":
            yield f"understandings.{name}: {where} has sentences as written and no recording; write `by: slurp_id`"
        if understanding.bootstrap_unit == "speaker":
            yield f"understandings.{name}: {where} has no speakers; write `bootstrap_unit: utterance`"


def _audio_misfits(config: Config, where: str, model: str, parts: Iterable[MixPart | Prediction]) -> Iterator[str]:
    for part in parts:
        dataset = config.datasets[part.dataset]
        if dataset.builder == "slu" and dataset.audio and config.models[model].kind != "audio":
            yield f"{where}: dataset {part.dataset} has recordings in its prompts; models.{model} is not of kind audio"


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
