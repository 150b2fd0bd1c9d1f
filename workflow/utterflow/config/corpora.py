"""Section `corpora`: where utterances come from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from utterflow.config.base import MaxRejected, Section, key, required

PREPARE = "prepare_corpus"
SMOKE_ROWS = 100


class Sample(Section):
    """A part of the corpus, drawn once with a seed."""

    method: Literal["all", "random", "stratified"] = key(
        "all", "`random` draws rows; `stratified` draws the same share of each group", PREPARE
    )
    percent: float = key(100.0, "share of the rows to draw, in percent", PREPARE, gt=0, le=100)
    max_samples: int | None = key(None, "at most this many rows", PREPARE, ge=1)
    seed: int = key(42, "seed of the draw", PREPARE, ge=0)


class NoiseConfig(Section):
    """Noise that the audio loader adds; its level and colour are drawn per row, from the row's id."""

    snr_db: tuple[float, float] = required("lowest and highest signal-to-noise ratio, dB", PREPARE, examples=[[0, 10]])
    color: tuple[float, float] = key(
        (0.0, 0.0),
        "lowest and highest exponent b of the 1/f^b power spectrum; 0 is white, 1 is pink",
        PREPARE,
    )
    seed: int = key(42, "seed of the draws", PREPARE, ge=0)

    @model_validator(mode="after")
    def _ranges(self) -> NoiseConfig:
        for name, (low, high) in (("snr_db", self.snr_db), ("color", self.color)):
            if low > high:
                raise ValueError(f"{name}: the lower bound {low:g} is above the upper bound {high:g}")
        if self.color[0] < 0:
            raise ValueError("color: must not be negative")
        return self


class Corpus(Section):
    """Keys that every corpus has, whatever its adapter."""

    shards: int = key(1, "row-wise stages cut the corpus into this many jobs", "transcribe", ge=1, le=100_000)
    limit: int | None = key(None, "keep only the first rows", PREPARE, ge=1)
    smoke: bool = key(False, f"keep only the first {SMOKE_ROWS} rows, to see whether a set-up works", PREPARE)
    sample: Sample = Field(default_factory=Sample, description="draw a part of the rows")
    min_seconds: float = key(0.05, "shorter recordings are rejected", PREPARE, ge=0)
    max_seconds: float | None = key(None, "longer recordings are rejected", PREPARE, gt=0)
    noise: NoiseConfig | None = Field(default=None, description="add noise to clean recordings")
    max_rejected: MaxRejected = key(0.01, "the stage fails when a larger share of rows is rejected", PREPARE)
    threads: int = key(2, "processes that decode audio in `prepare_corpus`", "none", ge=1)

    @model_validator(mode="after")
    def _some_length_is_left(self) -> Self:
        if self.max_seconds is not None and self.max_seconds < self.min_seconds:
            raise ValueError(f"max_seconds {self.max_seconds:g} is below min_seconds {self.min_seconds:g}")
        return self


class SlurpCorpus(Corpus):
    """SLURP: one JSON object per sentence, with one or more recordings."""

    adapter: Literal["slurp"] = required("SLURP's jsonl with a folder of audio", PREPARE)
    annotations: str = required("a SLURP jsonl", PREPARE, examples=["data/slurp/devel.jsonl"])
    audio_dir: str = required("folder of the recordings", PREPARE, examples=["data/slurp/audio/slurp_real"])
    metadata: str | None = key(None, "SLURP's metadata.json: gives speaker (`usrid`) and groups", PREPARE)
    recordings: Literal["first", "all", "best"] = key(
        "first",
        "`first`: one row per sentence, recording `recording_index`; "
        "`all`: a row per recording, as published results do; "
        "`best`: the recording with the lowest `wer` field",
        PREPARE,
    )
    recording_index: int = key(0, "which recording `recordings: first` takes", PREPARE, ge=0)
    group: str | None = key(
        None,
        "split results by this key of the metadata's recording (`gender`, `native`, `usrid`) or by `headset`",
        PREPARE,
    )

    @model_validator(mode="after")
    def _group_has_a_source(self) -> SlurpCorpus:
        if self.group not in (None, "headset") and not self.metadata:
            raise ValueError(f"group {self.group!r} is read from `metadata`, which is not set")
        return self


class SpeechOceanCorpus(Corpus):
    """speechocean762 in its own Kaldi layout."""

    adapter: Literal["speechocean762"] = required("speechocean762, Kaldi layout", PREPARE)
    root: str = required("folder with WAVE/, resource/, train/ and test/", PREPARE, examples=["data/speechocean762"])
    split: Literal["train", "test"] = key("test", "which split", PREPARE)
    group: Literal["gender", "age"] | None = key(
        None, "split results by the speaker's gender, or by child (under 18) and adult", PREPARE
    )


class SpeakerTreeCorpus(Corpus):
    """`<root>/<split>/<speaker>/<speaker>.json` with `Etiology` and `Files`, audio beside it.

    Groups are etiologies.
    """

    adapter: Literal["speaker_tree"] = required("one folder and one JSON file per speaker", PREPARE)
    root: str = required("folder that holds the splits", PREPARE, examples=["data/sap"])
    split: str = required("folder of the split", PREPARE, examples=["Dev"])


class Columns(Section):
    """Names of a plain manifest's columns; null where there is none."""

    id: str | None = key("id", "unique row name; null: made from the audio path", PREPARE)
    audio: str = key("audio", "path of the recording", PREPARE)
    text: str | None = key("text", "reference transcript", PREPARE)
    speaker: str | None = key(None, "speaker", PREPARE)
    group: str | None = key(None, "group that results are split by", PREPARE)


class ManifestCorpus(Corpus):
    """A plain table of recordings: jsonl, csv or tsv."""

    adapter: Literal["manifest"] = required("a table with one row per recording", PREPARE)
    path: str = required("file ending in .jsonl, .csv or .tsv", PREPARE, examples=["data/mine/recordings.csv"])
    audio_dir: str | None = key(None, "folder that audio paths are relative to; default: the manifest's", PREPARE)
    columns: Columns = Field(default_factory=Columns, description="names of the columns")


AnyCorpus = Annotated[
    SlurpCorpus | SpeechOceanCorpus | SpeakerTreeCorpus | ManifestCorpus, Field(discriminator="adapter")
]


class Download(Section):
    """A public file that `fetch_file` gets."""

    url: str = required(
        "http(s) address",
        "fetch_file",
        pattern=r"^https?://\S+$",
        examples=["https://example.org/corpus.tar.gz"],
    )
    sha256: str | None = key(
        None,
        "checksum; null: not checked, and the log says what it was",
        "fetch_file",
        pattern=r"^[0-9a-f]{64}$",
    )
    md5: str | None = key(
        None, "checksum, where the publisher gives only this one", "fetch_file", pattern=r"^[0-9a-f]{32}$"
    )
    unpack_to: str | None = key(None, "folder for the contents of a tar or zip archive", "unpack_archive")
