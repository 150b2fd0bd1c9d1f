"""Sections `recordings`, `encoders` and `logits`: from neural recordings or audio to CTC logits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from utterflow.config.base import MaxRejected, Name, Section, key, required
from utterflow.config.hub import is_hub_name, revision_problem

SIMULATE = "simulate_recordings"
TRAIN_CTC = "train_ctc"
SAVE_LOGITS = "save_logits"
PARTITIONS = ("train", "val", "test")

Partition = Literal["train", "val", "test"]


class Hdf5Recordings(Section):
    """Neural recordings: one group per trial, `input_features [T, C]`, as the brain-to-text benchmarks ship them."""

    source: Literal["hdf5"] = required("files of the brain-to-text benchmarks' layout", f"{TRAIN_CTC}, {SAVE_LOGITS}")
    train: tuple[str, ...] = key((), "hdf5 files of the partition", f"{TRAIN_CTC}, {SAVE_LOGITS}")
    val: tuple[str, ...] = key((), "hdf5 files of the partition", f"{TRAIN_CTC}, {SAVE_LOGITS}")
    test: tuple[str, ...] = key((), "hdf5 files of the partition; transcripts may be missing", SAVE_LOGITS)


class SimulatedText(Section):
    """The sentences of a partition."""

    path: str = required("a SLURP jsonl, or one sentence per line", SIMULATE, examples=["sentences.txt"])
    limit: int | None = key(None, "keep only the first sentences", SIMULATE, ge=1)


class SimulatedRecordings(Section):
    """Simulated neural recordings in the same hdf5 layout: to try the pipeline before the data are there."""

    source: Literal["simulated"] = required("a simulator of phone-driven channels; nothing real", SIMULATE)
    train: SimulatedText = Field(description="sentences of the partition")
    val: SimulatedText = Field(description="sentences of the partition")
    test: SimulatedText = Field(description="sentences of the partition")
    tokens: str = required("tokens file, one per line: blank `-`, phones, `|`", SIMULATE, examples=["tokens.txt"])
    lexicon: str = required("pronunciations, `word PH PH |`", SIMULATE, examples=["lexicon.txt"])
    channels: int = key(96, "channels of the array", SIMULATE, ge=1)
    sessions: int = key(10, "days; each has its own gains, offsets and rotation", SIMULATE, ge=1)
    noise: float = key(0.6, "standard deviation of the white noise; the signal's is about 1", SIMULATE, ge=0)
    drift: float = key(0.02, "standard deviation of each step of the random walk within a trial", SIMULATE, ge=0)
    seed: int = key(42, "seed; each trial has its own, made from this and its id", SIMULATE, ge=0)


AnyRecordings = Annotated[Hdf5Recordings | SimulatedRecordings, Field(discriminator="source")]


class CtcEncoder(Section):
    """A chunked transformer with a CTC head over neural features."""

    recordings: Name = required("a name under `recordings`", TRAIN_CTC, examples=["b2t_25"])
    tokens: str = required("tokens file, one per line: blank `-`, phones, `|`", TRAIN_CTC, examples=["tokens.txt"])
    folds: int = key(
        0, "cross-fitting: train this many more encoders, each without one part of the train partition; 0: none",
        f"{TRAIN_CTC}, {SAVE_LOGITS}", ge=0, le=20,
    )  # fmt: skip
    smoothing: float = key(2.0, "standard deviation, in bins, of the Gaussian over time; 0: off", TRAIN_CTC, ge=0)
    patch_size: int = key(4, "bins of one input patch", TRAIN_CTC, ge=1)
    patch_stride: int = key(4, "bins between patches: the frames' step", TRAIN_CTC, ge=1)
    chunk_size: int | None = key(None, "frames of an attention chunk; null: no chunks", TRAIN_CTC, ge=1)
    left_chunks: int | None = key(None, "chunks before its own that a frame sees; null: all", TRAIN_CTC, ge=0)
    right_chunks: int = key(0, "chunks after its own that a frame sees", TRAIN_CTC, ge=0)
    dim: int = key(384, "width", TRAIN_CTC, ge=8)
    layers: int = key(6, "transformer layers", TRAIN_CTC, ge=1)
    heads: int = key(6, "attention heads; must divide `dim`", TRAIN_CTC, ge=1)
    feedforward: int = key(1536, "width of the feed-forward layers", TRAIN_CTC, ge=8)
    dropout: float = key(0.2, "of layers and attention", TRAIN_CTC, ge=0, lt=1)
    session_layer: bool = key(True, "an affine layer per session before all others", TRAIN_CTC)
    white_noise: float = key(0.3, "training: standard deviation of noise added to each value", TRAIN_CTC, ge=0)
    offset_noise: float = key(0.1, "training: standard deviation of an offset per trial and channel", TRAIN_CTC, ge=0)
    time_masks: int = key(4, "training: stretches of time set to zero", TRAIN_CTC, ge=0)
    time_mask_share: float = key(0.05, "training: longest of them, as a share of the trial", TRAIN_CTC, ge=0, le=1)
    steps: int = key(20_000, "optimizer steps", TRAIN_CTC, ge=1)
    batch_size: int = key(64, "trials per step", TRAIN_CTC, ge=1)
    learning_rate: float = key(1e-3, "peak of the cosine schedule", TRAIN_CTC, gt=0)
    warmup_steps: int = key(1000, "linear warm-up", TRAIN_CTC, ge=0)
    weight_decay: float = key(0.01, "of AdamW", TRAIN_CTC, ge=0)
    max_grad_norm: float = key(1.0, "gradients are clipped to this norm", TRAIN_CTC, gt=0)
    evaluate_every: int = key(1000, "steps between checkpoints, with phone error rate on `val`", TRAIN_CTC, ge=1)
    seed: int = key(42, "seed of weights, order, folds and augmentation", f"{TRAIN_CTC}, {SAVE_LOGITS}", ge=0)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU where there is one", TRAIN_CTC)
    precision: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "of training; `auto`: float32 on the CPU, bfloat16 autocast on a GPU", TRAIN_CTC
    )
    max_rejected: MaxRejected = key(0.01, "training fails when a larger share of trials is unusable", TRAIN_CTC)
    gpus: Literal[0, 1] = key(0, "GPUs per job", "none")
    threads: int = key(1, "CPU threads per job", "none", ge=1)
    mem_mb: int = key(8000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(240, "minutes per job; grows with each retry", "none", ge=1)

    @model_validator(mode="after")
    def _shapes(self) -> CtcEncoder:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.folds == 1:
            raise ValueError("folds 1 leaves nothing to train on: write 0 (off) or 2 and more")
        return self


class Logits(Section):
    """Keys that all sources of logits have."""

    shards: int = key(1, "jobs for logits and beams of each partition", SAVE_LOGITS, ge=1, le=100_000)
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", SAVE_LOGITS)
    gpus: Literal[0, 1] = key(0, "GPUs per job; several are used through several shards", "none")
    threads: int = key(1, "CPU threads per job", "none", ge=1)
    mem_mb: int = key(8000, "memory per job in MB; grows with each retry", "none", ge=500)
    runtime: int = key(60, "minutes per job; grows with each retry", "none", ge=1)


class EncoderLogits(Logits):
    """Logits of a CTC encoder of this workflow, over its recordings."""

    source: Literal["encoder"] = required("an encoder of `encoders`, over its recordings", SAVE_LOGITS)
    encoder: Name = required("a name under `encoders`", SAVE_LOGITS, examples=["chunked"])
    cross_fitted: bool = key(
        True,
        "train partition: each trial's logits come from the fold that was trained without it, where the encoder has "
        "folds; otherwise from the encoder that has learnt it, which makes train beams look better than test ones",
        SAVE_LOGITS,
    )
    batch_size: int = key(32, "trials computed together", SAVE_LOGITS, ge=1)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU where there is one", SAVE_LOGITS)


class AudioLogits(Logits):
    """Logits of a Hugging Face CTC model over audio."""

    source: Literal["audio"] = required("a Hugging Face CTC model over corpora", SAVE_LOGITS)
    train: Name | None = key(None, "a name under `corpora`", SAVE_LOGITS)
    val: Name | None = key(None, "a name under `corpora`", SAVE_LOGITS)
    test: Name | None = key(None, "a name under `corpora`", SAVE_LOGITS)
    model: str = required(
        "a folder with a CTC checkpoint, or a hub name `org/model`",
        SAVE_LOGITS,
        min_length=1,
        examples=["facebook/wav2vec2-base-960h"],
    )
    revision: str | None = key(None, "commit of the hub model; required for a hub name", SAVE_LOGITS)
    batch_size: int = key(8, "recordings computed together", SAVE_LOGITS, ge=1)
    device: Literal["auto", "cpu", "cuda"] = key("auto", "`auto`: a GPU where there is one", SAVE_LOGITS)

    @property
    def is_hub_model(self) -> bool:
        return is_hub_name(self.model)

    @model_validator(mode="after")
    def _pinned(self) -> AudioLogits:
        if problem := revision_problem(self.model, self.revision):
            raise ValueError(problem)
        return self


class StoredPartition(Section):
    """Logits that are there already."""

    logits: str = required("an npz with arr_0 .. arr_n of [frames, classes]", SAVE_LOGITS, examples=["logits.npz"])
    transcripts: str | None = key(
        None, "their texts in the same order: .pkl (read without executing it), .jsonl or .txt", SAVE_LOGITS
    )
    field: str = key("text", "the key that holds the text in a .jsonl", SAVE_LOGITS)


class StoredLogits(Logits):
    """Logits from npz files, as they come."""

    source: Literal["npz"] = required("npz files with transcripts, as they come", SAVE_LOGITS)
    train: StoredPartition | None = Field(default=None, description="logits of the partition")
    val: StoredPartition | None = Field(default=None, description="logits of the partition")
    test: StoredPartition | None = Field(default=None, description="logits of the partition")
    held_out: bool = key(
        False,
        "the train partition's logits come from encoders that have not learnt these trials; only said in reports",
        SAVE_LOGITS,
    )


AnyLogits = Annotated[EncoderLogits | AudioLogits | StoredLogits, Field(discriminator="source")]
