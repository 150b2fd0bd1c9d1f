"""Scoring of files as they come, for the command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.evaluate.edits import Edits, char_edits, rate, total_edits, word_edits
from utterflow.evaluate.nbest import ListScore, score_list
from utterflow.evaluate.normalize import normalizer
from utterflow.files import read_jsonl
from utterflow.records import TextRow, parse_record, short

LIST_FIELDS = (("input", "output"), ("input_beams", "ground_truth"), ("asr_hypotheses", "text"))


def score_texts(references: Path, hypotheses: Path, normalizer_name: str) -> dict[str, Any]:
    """WER and CER of hypotheses against references; rows `{id, text}`, matched by id.

    A reference without a hypothesis is scored against the empty text, so each of its words is a deletion;
    `missing` counts them. `wer` and `cer` are null where the references have no word or character.

    Raises:
        UserError: a bad row, an id that occurs twice, a hypothesis whose id no reference has, no references.
    """
    normalize = normalizer(normalizer_name)
    targets, outputs = read_texts(references), read_texts(hypotheses)
    if not targets:
        raise UserError("there is no reference", where=str(references))
    if unknown := [name for name in outputs if name not in targets]:
        raise UserError(
            f"{len(unknown)} of {len(outputs)} hypotheses have no reference, e.g. id {unknown[0]!r}",
            where=str(hypotheses),
            fix=f"use the ids of {references} (e.g. {next(iter(targets))!r}), or leave those rows out",
        )
    words, chars = [], []
    for name, text in targets.items():
        pair = normalize(text), normalize(outputs.get(name, ""))
        words.append(word_edits(*pair))
        chars.append(char_edits(*pair))
    return {
        **_rates(total_edits(words), total_edits(chars)),
        "n": len(targets),
        "sentence_error_rate": sum(item.edits > 0 for item in words) / len(targets),
        "empty_references": sum(item.reference_length == 0 for item in words),
        "missing": len(targets) - len(outputs),
        "normalizer": normalizer_name,
    }


def score_lists(lists: Path, normalizer_name: str, limit: int | None = None) -> dict[str, Any]:
    """WER of first-best, MBR choice, oracle and compositional oracle of n-best lists; see `evaluate.nbest`.

    Rows are `{input: [...], output}`, `{input_beams: [...], ground_truth}` or n-best rows
    `{asr_hypotheses: [{text}], text}`, best hypothesis first.

    Args:
        limit: only the first so many hypotheses of each list count.

    Raises:
        UserError: a bad row, or no row at all.
    """
    normalize = normalizer(normalizer_name)
    totals: Counter[str] = Counter()
    for texts, target in read_lists(lists):
        totals.update(_counts(score_list(target, texts[:limit], normalize)))
    count = totals["n"]
    if not count:
        raise UserError("there is no n-best list", where=str(lists))
    words, chars = (Edits(*(totals[f"{unit}.{name}"] for name in Edits._fields)) for unit in ("words", "chars"))
    kinds = ("first", "mbr", "oracle", "compositional_oracle")
    return {
        **{kind: rate(totals[f"{kind}_edits"], words.reference_length) for kind in kinds},
        **_rates(words, chars),
        "n": count,
        **{f"{kind}_edits": totals[f"{kind}_edits"] for kind in kinds},
        "empty_references": totals["empty"],
        "mean_hypotheses": totals["hypotheses"] / count,
        "mean_distinct_hypotheses": totals["distinct"] / count,
        "mbr_weights": "uniform",
        "normalizer": normalizer_name,
    }


def read_texts(path: Path) -> dict[str, str]:
    """Texts by id.

    Raises:
        UserError: a row that is no `{id, text}`, or an id that occurs twice.
    """
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, value in read_jsonl(path):
        row = parse_record(TextRow, value, f"{path}, line {number}")
        if row.id in texts:
            raise UserError(
                f"id {row.id!r} occurs twice, first in line {lines[row.id]}",
                where=f"{path}, line {number}",
                fix="give each row an id of its own",
            )
        texts[row.id], lines[row.id] = row.text, number
    return texts


def read_lists(path: Path) -> Iterator[tuple[list[str], str]]:
    """Yield (hypotheses, reference) of each row.

    Raises:
        UserError: file, line and field of the first row that does not fit.
    """
    for number, value in read_jsonl(path):
        where = f"{path}, line {number}"
        texts, reference = parse_list(value, where)
        if reference is None:
            target = next(target for source, target in LIST_FIELDS if source in value)
            raise UserError(f"field `{target}`: expected a text, found {short(None)}", where=where)
        yield texts, reference


def parse_list(value: Mapping[str, Any], where: str) -> tuple[list[str], str | None]:
    """(hypotheses, reference) of one row, in one of the forms of `LIST_FIELDS`; None without a reference.

    Raises:
        UserError: the field that does not fit.
    """
    for source, target in LIST_FIELDS:
        if source in value:
            reference = value.get(target)
            texts = _hypotheses(value[source], source, where)
            return texts, None if reference is None else _text(reference, target, where)
    names = " or ".join(f"`{source}` with `{target}`" for source, target in LIST_FIELDS)
    raise UserError("no n-best list in this row", where=where, fix=f"write {names}")


def _hypotheses(value: Any, name: str, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise UserError(
            f"field `{name}`: expected a list of at least one hypothesis, found {short(value)}", where=where
        )
    nested = name == "asr_hypotheses"
    return [
        _text(item.get("text") if nested and isinstance(item, dict) else item, f"{name}.{index}", where)
        for index, item in enumerate(value)
    ]


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"field `{name}`: expected a text, found {short(value)}", where=where)
    return value


def _counts(score: ListScore) -> dict[str, int]:
    return {
        "n": 1,
        **{f"words.{name}": count for name, count in score.first._asdict().items()},
        **{f"chars.{name}": count for name, count in score.first_characters._asdict().items()},
        "first_edits": score.first.edits,
        "mbr_edits": score.mbr_edits,
        "oracle_edits": score.oracle_edits[-1],
        "compositional_oracle_edits": score.compositional_edits,
        "empty": int(score.first.reference_length == 0),
        "hypotheses": len(score.edits),
        "distinct": score.distinct[-1],
    }


def _rates(words: Edits, chars: Edits) -> dict[str, Any]:
    return {
        "wer": rate(words.edits, words.reference_length),
        "cer": rate(chars.edits, chars.reference_length),
        "words": words.reference_length,
        "hits": words.hits,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "characters": chars.reference_length,
        "character_hits": chars.hits,
        "character_substitutions": chars.substitutions,
        "character_deletions": chars.deletions,
        "character_insertions": chars.insertions,
    }
