"""Make the demo's corpora: the two that ship, and the larger one that trains the recogniser.

What ships is written in the layout of the corpora it stands for (SLURP; a per-speaker tree of atypical
speech). The training audio stays in the work folder as plain arrays.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from acoustics import (
    MAX_SECONDS,
    SAMPLE_RATE,
    add_margins,
    distort,
    peak_normalise,
    trim_and_resample,
    write_opus,
)
from grammar import Sentence, unique_sentences, word_salad
from voices import ALL_VOICES, HELD_OUT_VOICES, TRAINING_VOICES, Synthesiser, Voice

SEED = 20
SHARDS = 8  # each shard is spoken by a fresh process, so the result does not depend on how many run at once
VOICES_PER_TRAINING_SENTENCE = 2
SALAD_LINES = 2600
SECOND_RECORDINGS = 20
HELD_OUT_EVERY = 3

# How many sentences each part gets; all parts are disjoint. "spare" replaces what turns out too long.
PARTS = {
    "slurp_test": 260,
    "slurp_devel": 60,
    "slurp_train": 1500,
    "atypical_dev": 120,
    "atypical_train": 160,
    "asr_dev": 100,
    "spare": 100,
    "asr_train": 4800,
}

# (rate range in words per minute, word gap in units of 10 ms): impaired speakers are slower
TYPICAL_TEMPO = ((140, 190), 0)
TEMPO = {
    "wobble": ((105, 125), 2),
    "slurred": ((125, 150), 0),
    "breathy": ((115, 140), 1),
    "typical": TYPICAL_TEMPO,
}

# (speaker, etiology, voice). No speaker is in both splits; the typical ones use voices of the ASR training.
SPEAKERS = {
    "Dev": [
        ("D01", "wobble", "us-m4"),
        ("D02", "wobble", "gb-f1"),
        ("D03", "slurred", "us-f4"),
        ("D04", "slurred", "gb-m5"),
        ("D05", "breathy", "us-m2"),
        ("D06", "breathy", "rp-f3"),
        ("D07", "typical", "us-m7"),
        ("D08", "typical", "gb-f2"),
    ],
    "Train": [
        ("T01", "wobble", "us-m3"),
        ("T02", "wobble", "gb-f2"),
        ("T03", "wobble", "rp-m1"),
        ("T04", "slurred", "us-m5"),
        ("T05", "slurred", "gb-f4"),
        ("T06", "slurred", "us-f1"),
        ("T07", "breathy", "us-m1"),
        ("T08", "breathy", "gb-f3"),
        ("T09", "breathy", "us-f2"),
        ("T10", "typical", "us-f3"),
        ("T11", "typical", "gb-m1"),
        ("T12", "typical", "rp-m3"),
    ],
}


@dataclass(frozen=True)
class Utterance:
    """A line of the recogniser's training data."""

    text: str
    voice: str
    part: str
    samples: int = 0


def split_sentences(seed: int = SEED) -> dict[str, list[Sentence]]:
    """Draw the sentences of the demo and deal them out to its parts."""
    sentences = unique_sentences(sum(PARTS.values()), seed)
    random.Random(seed + 1).shuffle(sentences)
    parts = {}
    start = 0
    for name, size in PARTS.items():
        parts[name] = sentences[start : start + size]
        start += size
    return parts


def generator_for(*names: str | int) -> np.random.Generator:
    """A random generator of its own for each utterance, from its name."""
    return np.random.default_rng([SEED, zlib.crc32("/".join(map(str, names)).encode())])


def speak_clean(synthesiser: Synthesiser, text: str, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """Speak a line at an everyday tempo: clean, with silence margins, the peak normalised."""
    rate, pitch = int(rng.integers(*TYPICAL_TEMPO[0])), int(rng.integers(30, 70))
    spoken = synthesiser.speak(text, voice, rate, pitch)
    return peak_normalise(add_margins(trim_and_resample(spoken, synthesiser.sample_rate), rng))


def speak_atypical(
    synthesiser: Synthesiser, text: str, voice: Voice, etiology: str, rng: np.random.Generator
) -> np.ndarray:
    """Speak a line with an etiology's tempo, then distort it."""
    (slowest, fastest), word_gap = TEMPO[etiology]
    rate, pitch = int(rng.integers(slowest, fastest)), int(rng.integers(20, 60))
    spoken = synthesiser.speak(text, voice, rate, pitch, word_gap)
    return distort(trim_and_resample(spoken, synthesiser.sample_rate), etiology, rng)


def fits(samples: np.ndarray) -> bool:
    """Whether a clip is short enough for the recogniser's window."""
    return len(samples) <= MAX_SECONDS * SAMPLE_RATE


def write_json_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def slurp_row(slurp_id: int, sentence: Sentence, recordings: list[dict]) -> dict:
    """A sentence in the record shape of SLURP."""
    return {
        "slurp_id": slurp_id,
        "sentence": sentence.text,
        "sentence_annotation": sentence.annotation,
        "intent": f"{sentence.scenario}_{sentence.action}",
        "action": sentence.action,
        "scenario": sentence.scenario,
        "tokens": [
            {"surface": word, "id": index, "lemma": word, "pos": ""}  # untagged
            for index, word in enumerate(sentence.words)
        ],
        "recordings": recordings,
        "entities": [{"span": list(entity.span), "type": entity.kind} for entity in sentence.entities],
    }


def pick_voices(count: int, rng: random.Random, held_out: bool) -> list[Voice]:
    """A voice per utterance; with `held_out`, every third is one the recogniser never heard."""
    voices = []
    for index in range(count):
        use_held_out = held_out and index % HELD_OUT_EVERY == 0
        voices.append(rng.choice(HELD_OUT_VOICES if use_held_out else TRAINING_VOICES))
    return voices


def make_slurp(folder: Path, parts: dict[str, list[Sentence]], spare: Iterator[Sentence]) -> None:
    """Write the SLURP-shaped corpus: train (text only), devel and test with clean Opus clips."""
    synthesiser = Synthesiser(SEED)
    rng = random.Random(SEED + 2)
    audio = folder / "audio"
    audio.mkdir(parents=True)
    metadata: dict[str, dict] = {}
    train = [slurp_row(10_000 + i, sentence, []) for i, sentence in enumerate(parts["slurp_train"])]
    write_json_lines(folder / "train.jsonl", train)
    for split, first_id in (("devel", 20_000), ("test", 30_000)):
        sentences = parts[f"slurp_{split}"]
        first_voices = pick_voices(len(sentences), rng, held_out=split == "test")
        twice = set(rng.sample(range(len(sentences)), SECOND_RECORDINGS if split == "test" else 0))
        rows = []
        for index, (sentence, first_voice) in enumerate(zip(sentences, first_voices, strict=True)):
            slurp_id = first_id + index
            voices = [first_voice]
            if index in twice:
                voices.append(rng.choice([voice for voice in TRAINING_VOICES if voice != first_voice]))
            clips = []
            while not clips:
                for voice in voices:
                    clip_rng = generator_for("slurp", slurp_id, voice.name)
                    clips.append(speak_clean(synthesiser, sentence.text, voice, clip_rng))
                if not all(map(fits, clips)):
                    sentence, clips = next(spare), []
            recordings, people = [], {}
            for voice, clip in zip(voices, clips, strict=True):
                name = f"audio-{slurp_id}-{voice.name}.opus"
                write_opus(audio / name, clip)
                recordings.append({"file": name, "wer": 0.0, "ent_wer": 0.0, "status": "correct"})
                people[name] = {"usrid": voice.name, "gender": voice.gender, "native": "unknown"}
            rows.append(slurp_row(slurp_id, sentence, recordings))
            metadata[str(slurp_id)] = {"recordings": people}
        write_json_lines(folder / f"{split}.jsonl", rows)
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")


def make_atypical(folder: Path, parts: dict[str, list[Sentence]], spare: Iterator[Sentence]) -> None:
    """Write the atypical corpus: a folder per speaker with its Opus clips and its JSON file."""
    synthesiser = Synthesiser(SEED + 3)
    for split, speakers in SPEAKERS.items():
        sentences = parts[f"atypical_{split.lower()}"]
        for position, (speaker, etiology, voice_name) in enumerate(speakers):
            home = folder / split / speaker
            home.mkdir(parents=True)
            files = []
            for index, sentence in enumerate(sentences[position :: len(speakers)]):
                name = f"{speaker}_{index:03d}.opus"
                while True:
                    clip_rng = generator_for("atypical", name)
                    voice = ALL_VOICES[voice_name]
                    clip = speak_atypical(synthesiser, sentence.text, voice, etiology, clip_rng)
                    if fits(clip):
                        break
                    sentence = next(spare)
                write_opus(home / name, clip)
                files.append({"Filename": name, "Prompt": {"Transcript": sentence.text}})
            record = {"Etiology": etiology, "Files": files}
            (home / f"{speaker}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def plan_training(parts: dict[str, list[Sentence]]) -> list[Utterance]:
    """List what the recogniser is trained on: grammar sentences in two voices each, and word salad."""
    rng = random.Random(SEED + 4)
    train = [
        Utterance(sentence.text, voice.name, "train")
        for sentence in parts["asr_train"]
        for voice in rng.sample(TRAINING_VOICES, VOICES_PER_TRAINING_SENTENCE)
    ]
    dev = [Utterance(s.text, rng.choice(TRAINING_VOICES).name, "dev") for s in parts["asr_dev"]]
    lines = word_salad(parts["asr_train"], SALAD_LINES, SEED + 5)
    salad = [Utterance(line, rng.choice(TRAINING_VOICES).name, "salad") for line in lines]
    return train + dev + salad


def speak_shard(task: tuple[int, list[Utterance]]) -> tuple[list[Utterance], np.ndarray]:
    """Speak one shard of the training plan; what is too long is left out."""
    shard, plan = task
    synthesiser = Synthesiser(SEED + 100 + shard)
    kept, clips = [], []
    for index, utterance in enumerate(plan):
        clip_rng = generator_for("asr", shard, index)
        clip = speak_clean(synthesiser, utterance.text, ALL_VOICES[utterance.voice], clip_rng)
        if fits(clip):
            kept.append(Utterance(utterance.text, utterance.voice, utterance.part, len(clip)))
            clips.append((clip * 32767).astype(np.int16))
    return kept, np.concatenate(clips)


def make_training_data(folder: Path, parts: dict[str, list[Sentence]], processes: int) -> None:
    """Speak the training plan into `folder`: audio.npy (all clips end to end) and utterances.json."""
    plan = plan_training(parts)
    tasks = [(shard, plan[shard::SHARDS]) for shard in range(SHARDS)]
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        results = pool.map(speak_shard, tasks, chunksize=1)
    utterances = [utterance for kept, _ in results for utterance in kept]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "audio.npy", np.concatenate([clips for _, clips in results]))
    listing = json.dumps([asdict(utterance) for utterance in utterances])
    (folder / "utterances.json").write_text(listing, encoding="utf-8")
    hours = sum(utterance.samples for utterance in utterances) / SAMPLE_RATE / 3600
    print(f"training data: {len(utterances)} of {len(plan)} utterances kept, {hours:.1f} h", flush=True)


def make_shipped(demo: Path, parts: dict[str, list[Sentence]]) -> None:
    """Write the two corpora that ship, in place of whatever is there."""
    spare = iter(parts["spare"])
    for name, make in (("slurp", make_slurp), ("atypical", make_atypical)):
        shutil.rmtree(demo / name, ignore_errors=True)
        make(demo / name, parts, spare)
        size = sum(path.stat().st_size for path in (demo / name).rglob("*") if path.is_file())
        print(f"{name}: {size / 1e6:.2f} MB", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--work", type=Path, required=True, help="folder for the training data")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--what", choices=["shipped", "training", "both"], default="both")
    options = parser.parse_args()
    parts = split_sentences()
    if options.what != "training":
        make_shipped(options.demo, parts)
    if options.what != "shipped":
        make_training_data(options.work / "asr", parts, options.processes)


if __name__ == "__main__":
    main()
