"""What the rules of the signals read, as the configuration names it; used when the workflow is parsed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from utterflow.config.base import placement_keys
from utterflow.config.models import Config
from utterflow.config.signals import PARTITIONS, AudioLogits, EncoderLogits, StoredLogits, StoredPartition
from utterflow.models.folders import model_inputs_of


def simulated(config: Config) -> list[str]:
    """Names of the recordings that are simulated."""
    return [name for name, item in config.recordings.items() if item.source == "simulated"]


def simulation_settings(config: Config, recordings: str, partition: str) -> dict[str, Any]:
    """One partition's sentences, and what all partitions share; the files are inputs."""
    exclude = {*PARTITIONS, "tokens", "lexicon", "source"} - {partition}
    settings = config.recordings[recordings].model_dump(mode="json", exclude=exclude)
    settings[partition].pop("path")
    return settings


def recording_files(config: Config, encoder: str, partition: str) -> list[str]:
    """The hdf5 files of a partition of an encoder's recordings: the configured ones, or the simulated one."""
    name = config.encoders[encoder].recordings
    recordings = config.recordings[name]
    if recordings.source == "simulated":
        return [f"results/recordings/{name}/{partition}.hdf5"]
    return list(getattr(recordings, partition))


def encoder_settings(config: Config, encoder: str, fold: str) -> dict[str, Any]:
    """The encoder that is trained on all trials does not depend on the number of folds."""
    entry = config.encoders[encoder]
    exclude = placement_keys(type(entry)) | ({"folds"} if fold == "full" else set())
    return entry.model_dump(mode="json", exclude=exclude)


def logits_from(config: Config, *sources: str, gpus: Collection[int] = (0, 1)) -> list[str]:
    """Names of the logits that come from these sources."""
    return [name for name, item in config.logits.items() if item.source in sources and item.gpus in gpus]


def encoder_files(config: Config, logits: str, partition: str, name: str) -> list[str]:
    """A file of each encoder behind a partition's logits: of all folds where they are cross-fitted."""
    source = config.logits[logits]
    if not isinstance(source, EncoderLogits):
        return []
    folds = config.encoders[source.encoder].folds
    crossed = source.cross_fitted and folds and partition == "train"
    return [
        f"results/encoders/{source.encoder}/{fold}/{name}" for fold in (map(str, range(folds)) if crossed else ["full"])
    ]


def logits_recordings(config: Config, logits: str, partition: str) -> list[str]:
    """The recordings that an encoder's logits are computed from."""
    source = config.logits[logits]
    return recording_files(config, source.encoder, partition) if isinstance(source, EncoderLogits) else []


def logits_manifest(config: Config, logits: str, partition: str) -> list[str]:
    """The manifest of the audio that logits are computed from."""
    source = config.logits[logits]
    return [f"results/corpora/{getattr(source, partition)}/manifest.jsonl"] if isinstance(source, AudioLogits) else []


def logits_model(config: Config, logits: str) -> list[str]:
    """The files of the model that computes logits from audio."""
    source = config.logits[logits]
    return model_inputs_of(source) if isinstance(source, AudioLogits) else []


def logits_settings(config: Config, logits: str, partition: str) -> dict[str, Any]:
    """The other partitions and the number of shards are no part of a job's result."""
    entry = config.logits[logits]
    exclude = placement_keys(type(entry)) | {"shards", *PARTITIONS}
    if partition != "train":
        exclude |= {"cross_fitted"}
    return entry.model_dump(mode="json", exclude=exclude)


def stored_partition(config: Config, logits: str, partition: str) -> StoredPartition:
    """A partition of logits that are there already."""
    found: StoredPartition = getattr(config.logits[logits], partition)
    return found


def transcript_files(config: Config, logits: str, partition: str) -> list[str]:
    """The transcripts of such a partition, if there are any."""
    transcripts = stored_partition(config, logits, partition).transcripts
    return [transcripts] if transcripts else []


def index_settings(config: Config, logits: str, partition: str) -> dict[str, Any]:
    """What the index of such a partition depends on beside its files."""
    source = config.logits[logits]
    assert isinstance(source, StoredLogits)
    return {
        "field": stored_partition(config, logits, partition).field,
        "held_out": source.held_out or partition != "train",
        "max_rejected": source.max_rejected,
    }
