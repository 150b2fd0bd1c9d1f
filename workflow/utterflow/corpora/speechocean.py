"""speechocean762 (Zhang et al., Interspeech 2021) in its own Kaldi layout, with its scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utterflow.config.corpora import SpeechOceanCorpus
from utterflow.corpora.candidates import (
    Candidate,
    Entry,
    extra_fields,
    numbered_lines,
    reject,
    require_file,
    require_folder,
)
from utterflow.errors import UserError
from utterflow.files import read_json

TABLES = ("wav.scp", "text", "utt2spk", "spk2gender", "spk2age")
SCORES = "resource/scores.json"
ADULT = 18


def speechocean_files(cfg: SpeechOceanCorpus) -> list[str]:
    return [*(f"{cfg.root}/{cfg.split}/{name}" for name in TABLES), f"{cfg.root}/{SCORES}"]


def read_speechocean(cfg: SpeechOceanCorpus) -> Iterator[Entry]:
    """Yield a candidate per line of `wav.scp`; an utterance that only `text` knows is a rejected row.

    Rows keep the fields of the utterance's entry in `scores.json` (accuracy, fluency, words, ...) but for its
    `text`, which has other case and punctuation than Kaldi's.

    Raises:
        UserError: a file or folder is missing.
    """
    root = require_folder(cfg.root, "root")
    paths = {name: require_file(f"{root}/{cfg.split}/{name}", "root") for name in TABLES}
    texts, speakers, genders, ages = (dict(kaldi_pairs(paths[name])) for name in TABLES[1:])
    scores = read_scores(require_file(f"{root}/{SCORES}", "root"))
    seen = set()
    for number, line in numbered_lines(paths["wav.scp"]):
        where = f"{paths['wav.scp']}, line {number}"
        if line is not None and not line.strip():
            continue
        parts = (line or "").split(maxsplit=1)
        if len(parts) < 2:
            yield reject(f"line {number}", "unreadable: expected an utterance and a path", where)
            continue
        utterance, audio = parts[0], parts[1].strip()
        seen.add(utterance)
        if audio.endswith("|"):
            yield reject(utterance, "unreadable: a command instead of a file", where)
            continue
        speaker = speakers.get(utterance)
        yield Candidate(
            id=utterance,
            audio=str(root / audio),
            text=texts.get(utterance),
            where=where,
            speaker=speaker,
            group=group_of(genders.get(speaker or ""), ages.get(speaker or ""), cfg.group),
            extra=extra_fields(scores.get(utterance, {})),
        )
    for utterance in (name for name in texts if name not in seen):
        yield reject(utterance, "no audio: the utterance is not in wav.scp", str(paths["text"]))


def kaldi_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (key, rest of the line) of a Kaldi table; lines without a value are left out."""
    for _, line in numbered_lines(path):
        parts = (line or "").split(maxsplit=1)
        if len(parts) == 2:
            yield parts[0], parts[1].strip()


def read_scores(path: Path) -> dict[str, dict[str, Any]]:
    """Utterance -> its scores.

    Raises:
        UserError: the file has another shape.
    """
    scores = read_json(path)
    if not isinstance(scores, dict) or not all(isinstance(entry, dict) for entry in scores.values()):
        raise UserError(
            "not speechocean762's scores",
            where=str(path),
            fix='its shape is {"<utterance>": {"accuracy": 8, ...}}',
        )
    return scores


def group_of(gender: str | None, age: str | None, group: str | None) -> str | None:
    if group == "gender":
        return gender
    if group == "age" and age is not None and age.isdigit():
        return "child" if int(age) < ADULT else "adult"
    return None
