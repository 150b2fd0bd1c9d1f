"""Scoring of files in SLURP's own formats, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from utterflow.errors import UserError
from utterflow.files import read_jsonl
from utterflow.records import parse_record
from utterflow.slu.metrics import NOTHING, Average, Meaning, gold_meaning, scores, tally_pairs
from utterflow.slu.records import GoldRow, PredictedRow


class Predictions(NamedTuple):
    """Predicted meanings by recording or sentence."""

    meanings: dict[str, Meaning]
    repeated: int
    odd_entities: int


def score_files(gold: Path, predictions: Path, *, text: bool, average: Average) -> dict[str, Any]:
    """SLURP's metrics of a file of predictions against annotations, both as SLURP has them.

    The numbers are over gold rows with a prediction, as the official script prints them. `strict` has them over all
    gold rows, with the others taken as wrong: what the script prints when each has a row of empty labels.

    Args:
        gold: SLURP annotations, JSON Lines.
        predictions: `{file, scenario, action, entities: [{type, filler}]}`, with `slurp_id` for `file` if `text`. Of
            several rows for one recording the last one counts; rows for recordings that gold does not have do not.
        text: pair by `slurp_id` instead of `recordings[].file`.

    Raises:
        UserError: a row that does not fit, or no gold row.
    """
    target, predicted = read_gold(gold, text), read_predictions(predictions, text)
    covered = [(meaning, predicted.meanings[key]) for key, meaning in target.items() if key in predicted.meanings]
    strict = ((meaning, predicted.meanings.get(key, NOTHING)) for key, meaning in target.items())
    return {
        **scores(tally_pairs(covered), average).row(),
        "coverage": len(covered) / len(target),
        "strict": scores(tally_pairs(strict), average).row(),
        "average": average,
        "by": "slurp_id" if text else "file",
        "gold": len(target),
        "scored": len(covered),
        "missing": len(target) - len(covered),
        "unknown": len(predicted.meanings) - len(covered),
        "repeated": predicted.repeated,
        "odd_entities": predicted.odd_entities,
    }


def read_gold(path: Path, text: bool) -> dict[str, Meaning]:
    """Gold meanings of SLURP annotations, by recording, or by `slurp_id` if `text`.

    Raises:
        UserError: a row that does not fit, or no row with a recording.
    """
    found: dict[str, Meaning] = {}
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        row = parse_record(GoldRow, value, where)
        fillers = [(slot.type, _filler(row, slot.span, where)) for slot in row.entities]
        meaning = gold_meaning(row.scenario, row.action, fillers)
        if not text:
            found.update((recording.file, meaning) for recording in row.recordings)
        elif row.slurp_id is None:
            raise UserError("this row has no `slurp_id`", where=where, fix="--text needs one in each gold row")
        else:
            found[str(row.slurp_id)] = meaning
    if not found:
        raise UserError(
            "there is no gold row" if text else "no gold row has a recording",
            where=str(path),
            fix="give SLURP annotations, or --text to pair by `slurp_id`",
        )
    return found


def read_predictions(path: Path, text: bool) -> Predictions:
    """Predicted meanings, by recording, or by `slurp_id` if `text`.

    Raises:
        UserError: a row that does not fit.
    """
    name = "slurp_id" if text else "file"
    found: dict[str, Meaning] = {}
    repeated = odd = 0
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        row = parse_record(PredictedRow, value, where)
        given = row.slurp_id if text else row.file
        if given is None:
            raise UserError(
                f"this prediction has no `{name}`",
                where=where,
                fix="write it, or leave --text out to pair by `file`"
                if text
                else "write it, or pair by `slurp_id`: --text",
            )
        repeated += str(given) in found
        odd += sum(bool(entity.model_extra) for entity in row.entities)
        entities = tuple((entity.type, entity.filler) for entity in row.entities)
        found[str(given)] = Meaning(row.scenario, row.action, entities)
    return Predictions(found, repeated, odd)


def _filler(row: GoldRow, span: list[int], where: str) -> str:
    if not all(0 <= place < len(row.tokens) for place in span):
        raise UserError(
            f"field `entities`: span {span} is out of range: there are {len(row.tokens)} tokens",
            where=where,
            fix="spans are places in `tokens`, counted from 0",
        )
    return " ".join(row.tokens[place].surface for place in span)
