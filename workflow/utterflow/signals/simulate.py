"""Simulated neural recordings: channels driven by the phones of sentences, in the layout of the benchmarks.

Nothing here is measured: it is a generative model to try a pipeline with. Each phone has a point in a space of
`LATENTS` dimensions and lasts some bins. The path through these points is smoothed over time (coarticulation) and
mixed into the channels. A session turns the channels a little into each other (rotation) and gives each a gain and an
offset; a trial adds a random walk (drift) and white noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from utterflow.beams.lexicon import Lexicon, read_lexicon
from utterflow.beams.tokens import Tokens, read_tokens
from utterflow.errors import UserError
from utterflow.files import atomic_writer, read_jsonl, seed_of, text_lines
from utterflow.jobs import Progress, log
from utterflow.provenance import Stopwatch, write_meta

RULE = "simulate_recordings"
RECORD = "recordings/1"
NOTICE = "SIMULATED: channels driven by phones, made by simulate_recordings; no recording of a person"
LATENTS = 16
SILENCE = 0.2  # how far the separator's point is from the origin, beside the phones' 1
COARTICULATION = 1.8  # standard deviation of the smoothing, bins
PRONUNCIATION = 0.35  # standard deviation of a phone's point from one time to the next
PHONE_BINS = (3, 9)  # a phone lasts from 3 up to 8 bins
LEAD_BINS, TAIL_BINS = (5, 12), (3, 8)
GAIN, OFFSET, ROTATION = 0.3, 0.8, 0.15
LABEL_LENGTH = 500  # labels are padded with zeros to this length, or to their own


@dataclass(frozen=True)
class Array:
    """The simulated electrode array and its days."""

    channels: int
    sessions: int
    noise: float
    drift: float
    seed: int


@dataclass(frozen=True)
class Session:
    """A day: what it does to the channels."""

    gain: NDArray[np.float64]  # [channels]
    offset: NDArray[np.float64]  # [channels]
    rotation: NDArray[np.float64]  # [channels, channels], orthogonal


@dataclass(frozen=True)
class Trial:
    """One sentence as it is written to the file."""

    features: NDArray[np.float32]  # [bins, channels]
    classes: Sequence[int]  # phones, with the separator after each word
    text: str
    session: str
    block: int
    number: int


def simulate_recordings(
    *,
    sentences: Path,
    tokens: Path,
    lexicon: Path,
    partition: str,
    block: int,
    limit: int | None,
    array: Array,
    cfg: Mapping[str, Any],
    code: str,
    recordings: Path,
    meta: Path,
) -> None:
    """Write a simulated recording of each sentence; trial i belongs to session i modulo their number.

    Args:
        limit: keep only so many sentences, the first.
        block: written to each trial; tells the partitions' trials apart.

    Raises:
        UserError: no sentences, or words that are not in the lexicon.
    """
    watch = Stopwatch()
    log.warning("%s", NOTICE)
    names = read_tokens(tokens)
    texts = read_sentences(sentences, limit)
    spoken = spell(texts, read_lexicon(lexicon, names), sentences, lexicon)
    progress = Progress(len(texts), "trials")
    bins = 0
    with atomic_writer(recordings, "w+b") as handle, h5py.File(handle, "w") as file:
        file.attrs.update({"simulated": True, "description": NOTICE, "seed": array.seed, "partition": partition})
        for index, trial in enumerate(_trials(texts, spoken, names, array, block)):
            write_trial(file, f"trial_{index:04d}", trial)
            bins += len(trial.features)
            progress.advance(1)
    log.info("%d simulated trials of %d sessions, %d bins", len(texts), array.sessions, bins)
    write_meta(
        meta,
        rule=RULE,
        cfg=cfg,
        code=code,
        inputs=[sentences, tokens, lexicon],
        outputs={RECORD: recordings},
        seconds=watch.seconds(),
        rows={"in": len(texts), "out": len(texts), "rejected": 0},
        extra={"simulated": True, "bins": bins},
    )


def read_sentences(path: Path, limit: int | None) -> list[str]:
    """The sentences of a text file, one per line, or of the key `sentence` of a .jsonl; lower case, single spaces.

    Raises:
        UserError: the file is missing or has no sentences, or a row of a .jsonl has no `sentence`.
    """
    found: list[str] = []
    lines = _jsonl_sentences(path) if path.suffix == ".jsonl" else (line for _, line in text_lines(path))
    for line in lines:
        if limit is not None and len(found) == limit:
            break
        if sentence := " ".join(line.lower().split()):
            found.append(sentence)
    if not found:
        raise UserError("no sentences in this file", where=str(path), fix="write one sentence per line")
    return found


def spell(texts: Sequence[str], lexicon: Lexicon, sentences: Path, file: Path) -> list[list[list[tuple[int, ...]]]]:
    """For each sentence, for each word, its spellings in token columns, the separator at the end of each.

    Raises:
        UserError: words without a spelling; names them and the first sentence that has one.
    """
    spellings: dict[str, list[tuple[int, ...]]] = {}
    for word, spelling in zip(lexicon.word_of, lexicon.spellings, strict=True):
        spellings.setdefault(lexicon.words[word].lower(), []).append(spelling)
    missing = dict.fromkeys(word for text in texts for word in text.split() if word not in spellings)
    if missing:
        first = next(text for text in texts if any(word in missing for word in text.split()))
        raise UserError(
            f"{len(missing)} words of these sentences are not in the lexicon {file}: {', '.join(list(missing)[:10])}",
            where=f"{sentences}: {first!r}",
            fix="add lines `word PH PH |` to the lexicon, or leave these sentences out",
        )
    return [[spellings[word] for word in text.split()] for text in texts]


def make_session(array: Array, number: int) -> Session:
    """What day `number` does to the channels: the same in all partitions."""
    rng = np.random.default_rng(seed_of(array.seed, "session", number))
    turned = np.eye(array.channels) + ROTATION * rng.standard_normal((array.channels,) * 2) / np.sqrt(array.channels)
    orthogonal, triangle = np.linalg.qr(turned)
    return Session(
        gain=np.exp(GAIN * rng.standard_normal(array.channels)),
        offset=OFFSET * rng.standard_normal(array.channels),
        rotation=orthogonal * np.sign(np.diag(triangle)),
    )


def simulate_trial(
    classes: Sequence[int],
    points: NDArray[np.float64],
    mixing: NDArray[np.float64],
    session: Session,
    array: Array,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The features of a sentence.

    Args:
        classes: phones and separators.
        points: [tokens, latents].
        mixing: [latents, channels].

    Returns:
        Shape [bins, channels].
    """
    silent = np.zeros(points.shape[1])
    path = [np.tile(silent, (int(rng.integers(*LEAD_BINS)), 1))]
    for column in classes:
        point = points[column] + PRONUNCIATION * rng.standard_normal(points.shape[1])
        path.append(np.tile(point, (int(rng.integers(*PHONE_BINS)), 1)))
    path.append(np.tile(silent, (int(rng.integers(*TAIL_BINS)), 1)))
    latent = gaussian_filter1d(np.concatenate(path), COARTICULATION, axis=0, mode="nearest")
    channels = (latent @ mixing @ session.rotation) * session.gain + session.offset
    drift = np.cumsum(array.drift * rng.standard_normal(channels.shape), axis=0)
    noise = array.noise * rng.standard_normal(channels.shape)
    return np.asarray(channels + drift + noise, dtype=np.float32)


def write_trial(file: h5py.File, name: str, trial: Trial) -> None:
    """Add a group with the datasets and attributes of the brain-to-text benchmarks."""
    group = file.create_group(name)
    letters = [ord(letter) for letter in trial.text]
    group.create_dataset("input_features", data=trial.features)
    for key, values in (("seq_class_ids", trial.classes), ("transcription", letters)):
        padded = np.zeros(max(LABEL_LENGTH, len(values) + 1), dtype=np.int32)
        padded[: len(values)] = values
        group.create_dataset(key, data=padded, compression="gzip", compression_opts=1)
    group.attrs.update(
        {
            "n_time_steps": len(trial.features),
            "seq_len": len(trial.classes),
            "sentence_label": trial.text,
            "session": trial.session,
            "block_num": trial.block,
            "trial_num": trial.number,
        }
    )


def _trials(
    texts: Sequence[str], spoken: Sequence[list[list[tuple[int, ...]]]], tokens: Tokens, array: Array, block: int
) -> Iterator[Trial]:
    rng = np.random.default_rng(seed_of(array.seed, "phones"))
    points = rng.standard_normal((len(tokens.names), LATENTS))
    points[tokens.separator] *= SILENCE
    mixing = rng.standard_normal((LATENTS, array.channels)) / np.sqrt(LATENTS)
    sessions = [make_session(array, number) for number in range(min(array.sessions, len(texts)))]
    for index, (text, words) in enumerate(zip(texts, spoken, strict=True)):
        number = index % array.sessions
        rng = np.random.default_rng(seed_of(array.seed, "trial", block, index))
        classes = [column for spellings in words for column in spellings[int(rng.integers(len(spellings)))]]
        features = simulate_trial(classes, points, mixing, sessions[number], array, rng)
        yield Trial(features, classes, text, f"simulated.day_{number:02d}", block, index)


def _jsonl_sentences(path: Path) -> Iterator[str]:
    for number, row in read_jsonl(path):
        if not isinstance(row.get("sentence"), str):
            raise UserError("no `sentence` in this row", where=f"{path}, line {number}")
        yield row["sentence"]
