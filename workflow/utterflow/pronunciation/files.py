"""Scoring of files, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utterflow.config.scoring import Bootstrap
from utterflow.corpora.speechocean import kaldi_pairs
from utterflow.errors import UserError
from utterflow.files import read_jsonl
from utterflow.pronunciation.gold import SHOWN, read_gold
from utterflow.pronunciation.parse import Prediction, prediction_of
from utterflow.pronunciation.records import PronunciationRow, PronunciationScores
from utterflow.pronunciation.score import score
from utterflow.records import parse_record


def score_files(
    gold: Path,
    predictions: Path,
    *,
    speakers: Path | None,
    normalizer_name: str,
    bootstrap: Bootstrap,
    with_phones: bool,
) -> PronunciationScores:
    """Metrics of a file of predictions against speechocean762's `scores.json`.

    Args:
        predictions: `records.PronunciationRow`, JSON Lines.
        speakers: Kaldi's `utt2spk` of a split: only its utterances count; `bootstrap.unit` speaker needs it.

    Raises:
        UserError: annotations or rows that do not fit, an id that occurs twice or that gold does not have, speakers to
            resample without a table of them.
    """
    if bootstrap.unit == "speaker" and not speakers:
        raise UserError("resampling speakers needs to know them", fix="give the split's table: --utt2spk FILE")
    table = read_speakers(speakers) if speakers else None
    target = read_gold(gold, table)
    predicted = read_predictions(predictions, target, speakers or gold)
    return score(
        target,
        predicted,
        normalizer_name=normalizer_name,
        samples=bootstrap.samples,
        confidence=bootstrap.confidence,
        seed=bootstrap.seed,
        unit=bootstrap.unit,
        with_phones=with_phones,
    )


def read_speakers(path: Path) -> dict[str, str]:
    """Utterance -> speaker of a Kaldi table.

    Raises:
        UserError: there is no such file, or no line with an utterance and a speaker.
    """
    if not path.is_file():
        raise UserError("file not found", where=str(path))
    found = dict(kaldi_pairs(path))
    if not found:
        raise UserError("no utterance has a speaker", where=str(path), fix="write lines as `000010011 0001`")
    return found


def read_predictions(path: Path, gold: Mapping[str, object], source: Path) -> dict[str, Prediction]:
    """Predictions by utterance; unusable fields are kept as such, with the reason.

    Args:
        source: where the ids of `gold` come from, for messages.

    Raises:
        UserError: a row without an id, an id that occurs twice, or ids that `gold` does not have: the first are named.
    """
    found: dict[str, Prediction] = {}
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        row = parse_record(PronunciationRow, value, where)
        if row.id in found:
            raise UserError(f"id {row.id!r} occurs twice", where=where, fix="keep one prediction per utterance")
        found[row.id] = prediction_of(row.row())
    unknown = [name for name in found if name not in gold]
    if unknown:
        named = ", ".join(map(repr, unknown[:SHOWN])) + (", ..." if len(unknown) > SHOWN else "")
        raise UserError(
            f"{len(unknown)} of {len(found)} predictions are for unknown utterances: {named}",
            where=str(path),
            fix=f"use the ids of {source} (e.g. {next(iter(gold))!r}), or leave those rows out",
        )
    return found
