"""Stage `score_corrections`: corrected transcripts beside first candidate, MBR choice and oracles."""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from utterflow.config.prediction import Correction
from utterflow.config.scoring import Scoring
from utterflow.corrector.metrics import (
    COMPOSITIONAL,
    DISTINCT_CANDIDATES,
    REFERENCE_WORDS,
    bins,
    scores,
    sentence,
    system_columns,
    write_table,
)
from utterflow.corrector.records import CorrectionMetrics, CorrectionRow
from utterflow.errors import UserError
from utterflow.evaluate.edits import Edits, char_edits, intern, word_edits
from utterflow.evaluate.nbest import oracle, score_list
from utterflow.evaluate.normalize import normalizer
from utterflow.evaluate.score import Counts, check_speakers, counts_by_group, percent, softmax
from utterflow.files import atomic_writer, json_line, read_json, write_json
from utterflow.jobs import check_rejected, log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import CandidatesRow, PredictionRow, RejectedRow, read_records

STAGE = "score_corrections"
NO_REFERENCE = "no reference"
NO_ANSWER = "no answer"
ROW_COUNTS = (
    "words", "characters", "candidates", "distinct", "cut_lists", "early_rejections", "cut_off", "in_list", "changed",
    "group", "speaker",
)  # fmt: skip
WORDS_CACHED = 20_000


class Answer(NamedTuple):
    """A model's first answer."""

    text: str
    cut_off: bool
    answers: int


class Scored(NamedTuple):
    """One utterance: its row, and the counts of each system in the order of `metrics.system_columns`."""

    row: CorrectionRow
    systems: list[int]
    compositional: int
    changed: bool


@dataclass
class Tally:
    """What is kept of the scored rows: some whole numbers of each."""

    names: tuple[str, ...]
    scored: int = 0
    answered: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)
    values: array[int] = field(default_factory=lambda: array("i"))
    groups: dict[str | None, int] = field(default_factory=dict)
    speakers: dict[str | None, int] = field(default_factory=dict)

    def counts(self) -> Counts:
        """[utterances] each: `ROW_COUNTS`, `<system>.<count>`, and `<system>.edits`."""
        table = np.array(self.values, dtype=np.int64).reshape(-1, len(self.names))
        counts = dict(zip(self.names, table.T, strict=True))
        systems = [name.removesuffix(".hits") for name in self.names if name.endswith(".hits")]
        sums = {
            f"{system}.edits": sum(
                (counts[f"{system}.{kind}"] for kind in ("substitutions", "deletions", "insertions")),
                start=np.zeros(len(table), dtype=np.int64),
            )
            for system in systems
        }
        return {**counts, **sums}


def score_corrections(
    predictions: Path,
    candidates: Path,
    *,
    earlier: Mapping[str, Path],
    metrics: Path,
    table: Path,
    rows: Path,
    rejected: Path,
    meta: Path,
    correction: str,
    scoring: str,
    cfg: Correction,
    scoring_cfg: Scoring,
    code: str,
) -> CorrectionMetrics:
    """Score a model's corrections against the references, beside the lists that they were made from.

    All systems are scored on the same rows: those with a reference and an answer. The list of a row is that of its
    prompt. MBR votes count as often as the source's list has a candidate; with posterior weights each is weighted by
    the softmax of the scores, if all lists have scores.

    Args:
        predictions: `records.PredictionRow`, JSON Lines; of several answers the first is scored.
        candidates: `CandidatesRow` of the split that the predictions were made for, JSON Lines.
        earlier: stage -> the side file that counts the rows which it rejected: `build_corrector_data`, `generate`.
        metrics: written: `CorrectionMetrics`, JSON.
        table: written: the same numbers as a tidy table, tab-separated, columns `TABLE_COLUMNS`.
        rows: written: `CorrectionRow` per utterance, JSON Lines.
        rejected: written: `records.RejectedRow`, JSON Lines.
        meta: written: the side file.

    Raises:
        UserError: a row that does not fit its record, predictions for other rows than these, no row to score, or more
            rows without a reference than `scoring_cfg.max_rejected` allows.
    """
    watch = Stopwatch()
    rejected_before = {stage: int(read_json(side)["rows"]["rejected"]) for stage, side in earlier.items()}
    answers = read_answers(predictions)
    posterior = scoring_cfg.mbr_weights == "posterior" and _all_have_scores(candidates)
    tally = Tally((*ROW_COUNTS, *system_columns(scoring_cfg), f"{COMPOSITIONAL}.edits"))
    with atomic_writer(rows) as scored_file, atomic_writer(rejected) as rejected_file:
        for item in _score_rows(candidates, answers, cfg, scoring_cfg, posterior, tally):
            target = rejected_file if isinstance(item, RejectedRow) else scored_file
            target.write(json_line(item.row()))
        _check(tally, answers, predictions, candidates, rejected_before.get("generate", 0))
    counts = tally.counts()
    if scoring_cfg.bootstrap.unit == "speaker":
        check_speakers(tally.speakers, counts["speaker"], candidates)
    result = CorrectionMetrics(
        correction=correction,
        prediction=cfg.prediction,
        scoring=scoring,
        normalizer=scoring_cfg.normalizer,
        confidence=scoring_cfg.bootstrap.confidence,
        bootstrap_unit=scoring_cfg.bootstrap.unit,
        mbr_weights="posterior" if posterior else "uniform",
        reject_beyond=cfg.reject_beyond,
        answers_per_prompt=max(answer.answers for answer in answers.values()),
        rows={"in": tally.scored + len(tally.rejected), "out": tally.scored, "rejected": len(tally.rejected)},
        rejected_before=rejected_before,
        total=scores(counts, scoring_cfg),
        groups={name: scores(part, scoring_cfg) for name, part in counts_by_group(counts, tally.groups)},
        by_reference_words=bins(counts, "words", REFERENCE_WORDS),
        by_distinct_candidates=bins(counts, "distinct", DISTINCT_CANDIDATES),
    )
    write_json(metrics, result.row())
    write_table(table, result)
    write_meta(
        meta,
        rule=STAGE,
        cfg={"correction": cfg.model_dump(mode="json"), "scoring": scoring_cfg.model_dump(mode="json")},
        code=code,
        inputs=[predictions, candidates],
        outputs={
            CorrectionMetrics.RECORD: metrics,
            "correction_table/1": table,
            CorrectionRow.RECORD: rows,
            RejectedRow.RECORD: rejected,
        },
        seconds=watch.seconds(),
        rows=result.rows,
    )
    _log(result)
    without_reference = [row for row in tally.rejected if row.reason.startswith(NO_REFERENCE)]
    check_rejected(without_reference, result.rows["in"], scoring_cfg.max_rejected)
    return result


def read_answers(predictions: Path) -> dict[str, Answer]:
    """First answers by id.

    Raises:
        UserError: a row that does not fit its record, an id that occurs twice, or no row.
    """
    answers: dict[str, Answer] = {}
    for row in read_records(predictions, PredictionRow):
        if row.id in answers:
            raise UserError(f"id {row.id!r} occurs twice", where=str(predictions), fix="make the predictions anew")
        answers[row.id] = Answer(row.outputs[0], row.finish[:1] == ["length"], len(row.outputs))
    if not answers:
        raise UserError("there is no prediction", where=str(predictions))
    return answers


def score_row(
    item: CandidatesRow,
    reference: str,
    answer: Answer,
    cfg: Correction,
    scoring: Scoring,
    normalize: Callable[[str], str],
    posterior: bool,
) -> Scored:
    """Score one utterance: its list, the model's answer, and what is left of that after early rejection."""
    texts = item.input_beams
    score = score_list(reference, texts, normalize, mbr_weights(item, posterior))
    distance = distance_to_list(answer.text, texts, normalize)
    refused = cfg.reject_beyond is not None and distance > cfg.reject_beyond
    corrected = texts[0] if refused else answer.text
    best = oracle(score.edits, len(texts))
    at_n = [texts[oracle(score.edits, n)] for n in scoring.oracle_at]
    chosen = [texts[0], texts[score.mbr_rank], *at_n, texts[best]]
    counted = {text: _counted(normalize(reference), normalize(text)) for text in {*chosen, answer.text, corrected}}
    row = CorrectionRow(
        id=item.id,
        group=item.group,
        unit=item.session or item.speaker,
        reference=reference,
        first=texts[0],
        mbr=texts[score.mbr_rank],
        answer=answer.text,
        corrected=corrected,
        words=score.first.reference_length,
        characters=score.first_characters.reference_length,
        first_edits=score.first.edits,
        mbr_edits=score.mbr_edits,
        mbr_rank=score.mbr_rank,
        oracle_edits=score.edits[best],
        oracle_rank=best,
        compositional_edits=score.compositional_edits,
        answer_edits=counted[answer.text][0].edits,
        corrected_edits=counted[corrected][0].edits,
        distance=None if math.isinf(distance) else round(distance, 6),
        early_rejection=refused,
        in_list=distance == 0,
        cut_off=answer.cut_off,
        candidates=len(texts),
        distinct=score.distinct[-1],
    )
    systems = [number for text in (*chosen, answer.text, corrected) for number in _flat(*counted[text])]
    changed = normalize(corrected).split() != normalize(texts[0]).split()
    return Scored(row, systems, score.compositional_edits, changed)


def mbr_weights(item: CandidatesRow, posterior: bool) -> list[float] | None:
    """Votes of a row's candidates: as often as the source has them, by their probability with `posterior`."""
    repeats = item.repeats or [1] * len(item.input_beams)
    if posterior and item.scores is not None:
        return [count * weight for count, weight in zip(repeats, softmax(item.scores), strict=True)]
    return [float(count) for count in repeats] if item.repeats else None


def distance_to_list(answer: str, texts: Sequence[str], normalize: Callable[[str], str]) -> float:
    """Word edits from the answer to the nearest candidate, by that candidate's words.

    Of equally near candidates the best rank counts. Infinite where the nearest has no word and the answer has.
    """
    given, *candidates = intern([normalize(text).split() for text in (answer, *texts)])
    edits, rank = min((Levenshtein.distance(given, candidate), rank) for rank, candidate in enumerate(candidates))
    words = len(candidates[rank])
    return edits / words if words else (math.inf if edits else 0.0)


def _counted(reference: str, text: str) -> tuple[Edits, int]:
    return word_edits(reference, text), char_edits(reference, text).edits


def _flat(words: Edits, character_edits: int) -> list[int]:
    return [*words, character_edits]


def _all_have_scores(candidates: Path) -> bool:
    return all(row.scores is not None for row in read_records(candidates, CandidatesRow))


def _score_rows(
    candidates: Path,
    answers: Mapping[str, Answer],
    cfg: Correction,
    scoring: Scoring,
    posterior: bool,
    tally: Tally,
) -> Iterator[CorrectionRow | RejectedRow]:
    normalize = functools.lru_cache(WORDS_CACHED)(normalizer(scoring.normalizer))
    for item in read_records(candidates, CandidatesRow):
        answer = answers.get(item.id)
        tally.answered += answer is not None
        if item.ground_truth is None or answer is None:
            why = NO_REFERENCE if item.ground_truth is None else f"{NO_ANSWER}: the row has no prediction"
            tally.rejected.append(RejectedRow(id=item.id, stage=STAGE, reason=why))
            yield tally.rejected[-1]
            continue
        scored = score_row(item, item.ground_truth, answer, cfg, scoring, normalize, posterior)
        _add(tally, item, scored)
        yield scored.row


def _add(tally: Tally, item: CandidatesRow, scored: Scored) -> None:
    row = scored.row
    tally.scored += 1
    tally.values.extend(
        [
            row.words,
            row.characters,
            row.candidates,
            row.distinct,
            int(item.cut > 0),
            int(row.early_rejection),
            int(row.cut_off),
            int(row.in_list),
            int(scored.changed),
            tally.groups.setdefault(row.group, len(tally.groups)),
            tally.speakers.setdefault(row.unit, len(tally.speakers)),
            *scored.systems,
            scored.compositional,
        ]
    )


def _check(
    tally: Tally, answers: Mapping[str, Answer], predictions: Path, candidates: Path, rejected_by_generate: int
) -> None:
    """Predictions and candidates must be of the same rows, and some must be left."""
    remake = "make both anew from the same data set: `snakemake --cores all --forcerun build_corrector_data`"
    if tally.answered < len(answers):
        raise UserError(
            f"{len(answers) - tally.answered} of {len(answers)} predictions are for rows that are not there",
            where=f"{predictions}, {candidates}",
            fix=remake,
        )
    unanswered = sum(row.reason.startswith(NO_ANSWER) for row in tally.rejected)
    if unanswered > rejected_by_generate:
        raise UserError(
            f"{unanswered} rows have no prediction, though `generate` rejected {rejected_by_generate}",
            where=f"{predictions}, {candidates}",
            fix=remake,
        )
    if not tally.scored:
        raise UserError("no row has a reference and a prediction", where=f"{predictions}, {candidates}", fix=remake)


def _log(result: CorrectionMetrics) -> None:
    total = result.total
    log.info("%d rows scored, %d rejected", result.rows["out"], result.rows["rejected"])
    for name, item in total.systems.items():
        log.info("WER of %s: %s", name, percent(item.wer))
    if result.reject_beyond is not None:
        log.info("%d answers given up for the first candidate: too far from the list", total.early_rejections)
    if result.answers_per_prompt > 1:
        log.info("up to %d answers per prompt; the first is scored", result.answers_per_prompt)
    if total.cut_off:
        log.warning("%d answers were cut off by max_new_tokens", total.cut_off)
    for name, beaten in (("the first candidates", total.beats_first), ("MBR", total.beats_mbr)):
        say = log.info if beaten == "true" else log.warning
        say("%s", sentence(name, beaten))
