"""Stage `score_slu`: what a model understood, under SLURP's metrics."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from utterflow.config.prediction import Understanding
from utterflow.errors import UserError
from utterflow.evaluate.bootstrap import bootstrap_intervals
from utterflow.evaluate.score import cell, percent
from utterflow.files import atomic_writer, json_line, read_json, write_json, write_jsonl
from utterflow.jobs import log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import PredictionRow, Rate, RejectedRow, read_records
from utterflow.slu.items import SluDataItem
from utterflow.slu.labels import majority
from utterflow.slu.metrics import (
    NOTHING,
    ZERO,
    Counts,
    Labelled,
    Meaning,
    Tally,
    gold_meaning,
    quality,
    row_counts,
    scores,
    tally,
    tally_pairs,
    total,
)
from utterflow.slu.parse import parse_labels
from utterflow.slu.records import (
    AveragedScores,
    Baseline,
    EntityScores,
    Intervals,
    Labels,
    ScenarioScores,
    SlotScores,
    SluMetrics,
    SluScoredRow,
    SluScores,
    UnderstoodRow,
)

STAGE = "score_slu"
TASK = "slu"
TABLE_COLUMNS = ("understanding", "part", "name", "metric", "value", "low", "high", "n")
NO_GOLD, NO_PREDICTION, NO_KEY, REPEATED = "no gold labels", "no prediction", "no key", "repeated"
# Counts with distances are fractions; the bootstrap takes whole numbers.
PARTS = 1_000_000


class Answer(NamedTuple):
    """A model's first answer."""

    text: str
    cut_off: bool
    answers: int


class Entry(NamedTuple):
    """A command of the data set with what its answer says."""

    item: SluDataItem
    key: str | None
    gold: Meaning | None
    answer: Answer | None
    predicted: Meaning | None
    problem: str | None


class Scored(NamedTuple):
    """An answer that is scored, with its counts by metric."""

    entry: Entry
    gold: Meaning
    counts: dict[str, Labelled]

    def sums(self, name: str) -> Counts:
        """Counts of one metric over all labels."""
        return total(counts for _, counts in self.counts[name])


class Paired(NamedTuple):
    """The rows of a data set by what becomes of them; gold meanings by key."""

    gold: dict[str, Meaning]
    scored: list[Scored]
    rejected: list[RejectedRow]


def score_slu(
    predictions: Path,
    items: Path,
    labels: Sequence[Path],
    *,
    earlier: Mapping[str, Path],
    metrics: Path,
    understood: Path,
    labels_only: Path,
    rows: Path,
    rejected: Path,
    table: Path,
    meta: Path,
    understanding: str,
    cfg: Understanding,
    code: str,
) -> SluMetrics:
    """Score a model's answers with SLURP's metrics, as the official script does, and more strictly.

    Gold and predictions are paired by recording or sentence (`cfg.by`); of several answers for one the last counts,
    as in the official script. The official numbers are over what has gold labels and a prediction; the strict ones
    take a missing prediction as wrong. An answer that holds no labels is a prediction, wrong in everything.

    Args:
        predictions: `records.PredictionRow`, JSON Lines; rows of other tasks than `slu` are left out, and of several
            answers the first is scored.
        items: `slu.items.SluDataItem` of the split that the predictions were made for, JSON Lines.
        labels: SLURP annotations whose most frequent intent is the baseline; without any there is none.
        earlier: stage -> the side file that counts the rows which it rejected: `build_slu_data`, `generate`.
        metrics: written: `SluMetrics`, JSON.
        understood: written: `UnderstoodRow` of each answer, JSON Lines.
        labels_only: written: the answers' labels in SLURP's prediction format, JSON Lines, with empty ones where the
            answer holds none.
        rows: written: `SluScoredRow` of each scored answer, JSON Lines.
        rejected: written: `records.RejectedRow` of the rows that are not scored, JSON Lines.
        table: written: the metrics as a tidy table, tab-separated, columns `TABLE_COLUMNS`.
        meta: written: the side file.

    Raises:
        UserError: a row that does not fit its record, predictions for other rows than these, prompts that show
            rationales made with the gold labels in sight, or no row to score.
    """
    watch = Stopwatch()
    rejected_before = {stage: int(read_json(side)["rows"]["rejected"]) for stage, side in earlier.items()}
    answers = read_answers(predictions)
    entries = list(read_entries(items, answers, cfg))
    _check_same_rows(entries, answers, predictions, items)
    paired = pair(entries)
    if not paired.scored:
        raise UserError(
            f"none of {len(entries)} rows can be scored; the first: {paired.rejected[0].reason}",
            where=f"{predictions}, {items}",
            fix="a row needs gold labels, a prediction, and the recording's or sentence's name (key `by`)",
        )
    result = slu_metrics(paired, answers, understanding, cfg, labels, items).model_copy(
        update={"rejected_before": rejected_before}
    )
    answered = [entry for entry in entries if entry.answer is not None]
    write_jsonl(understood, (_understood_row(entry).row() for entry in answered))
    write_jsonl(labels_only, (slurp_row(entry, cfg.by) for entry in answered if entry.key is not None))
    write_jsonl(rows, (_scored_row(scored).row() for scored in paired.scored))
    with atomic_writer(rejected) as handle:
        handle.writelines(json_line(row.row()) for row in paired.rejected)
    write_json(metrics, result.row())
    write_table(table, result)
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[predictions, items, *labels],
        outputs={
            SluMetrics.RECORD: metrics,
            UnderstoodRow.RECORD: understood,
            "slurp_prediction/1": labels_only,
            SluScoredRow.RECORD: rows,
            RejectedRow.RECORD: rejected,
            "slu_table/1": table,
        },
        seconds=watch.seconds(),
        rows=result.rows,
    )
    _log(result)
    return result


def read_answers(predictions: Path) -> dict[str, Answer]:
    """First answers of `slu` rows, by id.

    Raises:
        UserError: a row that does not fit its record, an id that occurs twice, or no `slu` row.
    """
    answers: dict[str, Answer] = {}
    others = 0
    for row in read_records(predictions, PredictionRow):
        if row.task != TASK:
            others += 1
            continue
        if row.id in answers:
            raise UserError(f"id {row.id!r} occurs twice", where=str(predictions), fix="make the predictions anew")
        answers[row.id] = Answer(row.outputs[0], row.finish[:1] == ["length"], len(row.outputs))
    if not answers:
        raise UserError(f"there is no prediction of task {TASK}, but {others} of others", where=str(predictions))
    if others:
        log.info("%d predictions are of other tasks than %s: left out", others, TASK)
    return answers


def read_entries(items: Path, answers: Mapping[str, Answer], cfg: Understanding) -> Iterator[Entry]:
    """Yield each command with its answer and what that says.

    Raises:
        UserError: a row that does not fit its record, or whose prompt shows a rationale made with the gold labels.
    """
    for item in read_records(items, SluDataItem):
        if item.rationale_shown and item.sees_gold:
            raise UserError(
                f"the prompt of {item.id!r} shows a rationale that was made with the gold labels in sight",
                where=str(items),
                fix="score predictions whose prompts show none, or rationales with `gold: false`",
            )
        answer = answers.get(item.id)
        predicted, problem = (None, None) if answer is None else _parsed(answer)
        key = item.file if cfg.by == "file" else item.slurp_id
        yield Entry(item, None if key is None else str(key), gold_of(item), answer, predicted, problem)


def gold_of(item: SluDataItem) -> Meaning | None:
    """The gold meaning of a command; None where a label is missing."""
    if item.scenario is None or item.action is None or item.entities is None:
        return None
    return gold_meaning(item.scenario, item.action, ((entity.type, entity.filler) for entity in item.entities))


def pair(entries: Sequence[Entry]) -> Paired:
    """Pair gold and predictions by key; later rows of a key take the place of earlier ones, on either side."""
    gold = {entry.key: entry.gold for entry in entries if entry.key is not None and entry.gold is not None}
    last = {entry.key: entry for entry in entries if entry.key is not None and entry.answer is not None}
    scored, rejected = [], []
    for entry in entries:
        why = _why_not(entry, gold, last)
        if why:
            rejected.append(RejectedRow(id=entry.item.id, stage=STAGE, reason=why))
            continue
        target = gold[str(entry.key)]
        scored.append(Scored(entry, target, row_counts(target, entry.predicted or NOTHING)))
    return Paired(gold, scored, rejected)


def slu_metrics(
    paired: Paired,
    answers: Mapping[str, Answer],
    understanding: str,
    cfg: Understanding,
    labels: Sequence[Path],
    items: Path,
) -> SluMetrics:
    """The metrics of paired rows.

    Raises:
        UserError: bootstrap by speaker, and no row has one; or `labels` cannot be read.
    """
    scored, gold = paired.scored, paired.gold
    sums = tally(item.counts for item in scored)
    predicted = {str(item.entry.key): item.entry.predicted or NOTHING for item in scored}
    strict = tally_pairs((meaning, predicted.get(key, NOTHING)) for key, meaning in gold.items())
    official = both_averages(sums)
    return SluMetrics(
        understanding=understanding,
        prediction=cfg.prediction,
        by=cfg.by,
        average=cfg.average,
        confidence=cfg.confidence,
        bootstrap_unit=cfg.bootstrap_unit,
        answers_per_prompt=max(answer.answers for answer in answers.values()),
        rows={"in": len(scored) + len(paired.rejected), "out": len(scored), "rejected": len(paired.rejected)},
        rejected_before={},
        gold=len(gold),
        scored=len(scored),
        coverage=len(scored) / len(gold),
        without_gold=_count(paired.rejected, NO_GOLD),
        without_prediction=_count(paired.rejected, NO_PREDICTION),
        without_key=_count(paired.rejected, NO_KEY),
        repeated=_count(paired.rejected, REPEATED),
        unparsable=sum(item.entry.predicted is None for item in scored),
        cut_off=sum(item.entry.answer is not None and item.entry.answer.cut_off for item in scored),
        micro=official.micro,
        macro=official.macro,
        strict=both_averages(strict),
        entities=_entity_scores(total(sums["entity"].values())),
        intervals=intervals(scored, cfg, items),
        majority=baseline([item.gold for item in scored], labels) if labels else None,
        scenarios=scenario_scores(scored),
        slots=slot_scores(sums),
    )


def both_averages(sums: Tally) -> AveragedScores:
    """The scores of some counts under both averages."""
    return AveragedScores(micro=scores(sums, "micro"), macro=scores(sums, "macro"))


def baseline(gold: Iterable[Meaning], labels: Sequence[Path]) -> Baseline:
    """What the most frequent intent of `labels` and no entities score on the given gold meanings.

    Raises:
        UserError: `labels` cannot be read, or have no intent.
    """
    scenario, action = majority(labels)
    reached = both_averages(tally_pairs((meaning, Meaning(scenario, action, ())) for meaning in gold))
    return Baseline(scenario=scenario, action=action, micro=reached.micro, macro=reached.macro)


def intervals(scored: Sequence[Scored], cfg: Understanding, items: Path) -> Intervals:
    """Intent accuracy, entity F1 and SLU-F1 with bootstrap intervals.

    Utterances or speakers are drawn with replacement. Each value is a ratio of sums over rows, F1 = 2 TP / (2 TP + FP
    + FN), so it is drawn as an error rate is.

    Raises:
        UserError: bootstrap by speaker, and no row has one.
    """
    clusters = _speakers(scored, items) if cfg.bootstrap_unit == "speaker" else None
    entity, slu = ([item.sums(name) for item in scored] for name in ("entity", "slu"))
    right = np.array([[item.sums("intent").true] for item in scored])
    return Intervals(
        intent_accuracy=_rate(right, np.ones(len(scored)), cfg, clusters),
        entity_f1=_f1_rate(entity, cfg, clusters),
        slu_f1=_f1_rate(slu, cfg, clusters),
    )


def scenario_scores(scored: Sequence[Scored]) -> dict[str, ScenarioScores]:
    """Scores of the rows of each gold scenario, by name."""
    groups: dict[str, list[Scored]] = {}
    for item in scored:
        groups.setdefault(item.gold.scenario, []).append(item)
    return {name: _scenario(groups[name]) for name in sorted(groups)}


def slot_scores(sums: Tally) -> dict[str, SlotScores]:
    """Scores of each type of entity, by name."""
    return {
        name: SlotScores(
            **_entity_scores(sums["entity"].get(name, ZERO)).row(),
            slu_f1=quality(sums["slu"].get(name, ZERO)).f1,
        )
        for name in sorted({*sums["entity"], *sums["slu"]})
    }


def slurp_row(entry: Entry, by: str) -> dict[str, object]:
    """An answer's labels in SLURP's prediction format; empty ones where it holds none.

    The official script knows a sentence by its `slurp_id` as text.
    """
    meaning = entry.predicted or NOTHING
    return {by: entry.key, **_labels(meaning).row()}


def write_table(path: Path, metrics: SluMetrics) -> None:
    """Write the metrics as a tidy table; `n` is the number of rows, or of gold entities, behind a value."""
    with atomic_writer(path) as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        for part, name, metric, item, n in _table_rows(metrics):
            cells = [cell(value) for value in (item.value, item.low, item.high)]
            writer.writerow([metrics.understanding, part, name, metric, *cells, n])


def _table_rows(metrics: SluMetrics) -> Iterator[tuple[str, str, str, Rate, int]]:
    known = {
        "intent_f1": metrics.intervals.intent_accuracy,
        "entity_f1": metrics.intervals.entity_f1,
        "slu_f1": metrics.intervals.slu_f1,
    }
    for name, value in metrics.micro:
        yield "all", "micro", name, known.get(name, Rate(value=value)), metrics.scored
    others: list[tuple[str, SluScores, int]] = [
        ("macro", metrics.macro, metrics.scored),
        ("strict micro", metrics.strict.micro, metrics.gold),
        ("strict macro", metrics.strict.macro, metrics.gold),
    ]
    if metrics.majority:
        others.append(("majority micro", metrics.majority.micro, metrics.scored))
        others.append(("majority macro", metrics.majority.macro, metrics.scored))
    for name, part, n in others:
        yield from (("all", name, metric, Rate(value=value), n) for metric, value in part)
    for name in ("coverage", "gold", "scored", "unparsable", "cut_off"):
        yield "all", "rows", name, Rate(value=getattr(metrics, name)), metrics.gold
    for metric, value in metrics.entities:
        yield "all", "entities", metric, Rate(value=value), _gold_entities(metrics.entities)
    for name, scenario in metrics.scenarios.items():
        for metric, value in scenario:
            if metric != "rows":
                yield "scenario", name, metric, Rate(value=value), scenario.rows
    for name, slot in metrics.slots.items():
        yield from (("slot", name, metric, Rate(value=value), _gold_entities(slot)) for metric, value in slot)


def _gold_entities(part: EntityScores) -> int:
    return part.true_positives + part.false_negatives


def _parsed(answer: Answer) -> tuple[Meaning | None, str | None]:
    try:
        return parse_labels(answer.text), None
    except ValueError as error:
        return None, str(error)


def _why_not(entry: Entry, gold: Mapping[str, Meaning], last: Mapping[str, Entry]) -> str | None:
    """Why a row is not scored; None if it is."""
    if entry.key is None:
        return f"{NO_KEY}: the row names no recording (or sentence) to pair by" if entry.gold else NO_GOLD
    if entry.key not in gold:
        return NO_GOLD
    if entry.answer is None:
        return f"{NO_PREDICTION}: counts as wrong in the strict numbers"
    return None if last[entry.key] is entry else f"{REPEATED}: a later row of {entry.key} is scored"


def _check_same_rows(entries: Sequence[Entry], answers: Mapping[str, Answer], predictions: Path, items: Path) -> None:
    """
    Raises:
        UserError: there are predictions for other rows.
    """
    unknown = len(answers) - sum(entry.answer is not None for entry in entries)
    if unknown:
        raise UserError(
            f"{unknown} of {len(answers)} predictions are for rows that are not there",
            where=f"{predictions}, {items}",
            fix="make both anew from the same data set: `snakemake --cores all --forcerun build_slu_data`",
        )


def _count(rejected: Iterable[RejectedRow], kind: str) -> int:
    return sum(row.reason.split(":")[0] == kind for row in rejected)


def _entity_scores(counts: Counts) -> EntityScores:
    found = quality(counts)
    return EntityScores(
        precision=found.precision,
        recall=found.recall,
        f1=found.f1,
        true_positives=int(counts.true),
        false_positives=int(counts.false),
        false_negatives=int(counts.missed),
    )


def _scenario(scored: Sequence[Scored]) -> ScenarioScores:
    def accuracy(name: str) -> float:
        return sum(item.sums(name).true for item in scored) / len(scored)

    def f1(name: str) -> float:
        return quality(total(item.sums(name) for item in scored)).f1

    return ScenarioScores(
        rows=len(scored),
        scenario_accuracy=accuracy("scenario"),
        intent_accuracy=accuracy("intent"),
        entity_f1=f1("entity"),
        slu_f1=f1("slu"),
    )


def _f1_rate(sums: Sequence[Counts], cfg: Understanding, clusters: npt.NDArray[np.int64] | None) -> Rate:
    counts = np.array(sums, dtype=np.float64)
    return _rate(2 * counts[:, :1], 2 * counts[:, 0] + counts[:, 1] + counts[:, 2], cfg, clusters)


def _rate(
    upper: npt.NDArray[np.float64],
    lower: npt.NDArray[np.float64],
    cfg: Understanding,
    clusters: npt.NDArray[np.int64] | None,
) -> Rate:
    """`upper.sum() / lower.sum()` with its interval; `upper` [rows, 1], `lower` [rows]; 0 where undefined."""
    ((low, high),) = bootstrap_intervals(
        np.rint(upper * PARTS).astype(np.int64),
        np.rint(lower * PARTS).astype(np.int64),
        samples=cfg.bootstrap_samples,
        confidence=cfg.confidence,
        seed=cfg.bootstrap_seed,
        clusters=clusters,
    )
    known = not np.isnan(low)
    value = float(upper.sum() / lower.sum()) if lower.sum() else 0.0
    return Rate(value=value, low=float(low) if known else None, high=float(high) if known else None)


def _speakers(scored: Sequence[Scored], items: Path) -> npt.NDArray[np.int64]:
    """[rows], number of each one's speaker; rows without one share a number."""
    numbers: dict[str | None, int] = {}
    column = np.array([numbers.setdefault(item.entry.item.speaker, len(numbers)) for item in scored], dtype=np.int64)
    if set(numbers) == {None}:
        raise UserError(
            "bootstrap by speaker, but no row has a speaker",
            where=str(items),
            fix="set `understandings.<name>.bootstrap_unit: utterance`, or give the corpus a speaker column",
        )
    if len(numbers) == 1:
        log.warning("there is only one speaker: a bootstrap by speaker gives no intervals")
    if None in numbers:
        nameless = int((column == numbers[None]).sum())
        log.warning("%d rows have no speaker; the bootstrap takes them as one", nameless)
    return column


def _labels(meaning: Meaning) -> Labels:
    entities = [{"type": kind, "filler": filler} for kind, filler in meaning.entities]
    return Labels(scenario=meaning.scenario, action=meaning.action, entities=entities)


def _understood_row(entry: Entry) -> UnderstoodRow:
    assert entry.answer is not None
    return UnderstoodRow(
        id=entry.item.id,
        slurp_id=entry.item.slurp_id,
        file=entry.item.file,
        hypotheses=entry.item.hypotheses,
        rationale=entry.item.rationale_text,
        raw_output=entry.answer.text,
        labels=None if entry.predicted is None else _labels(entry.predicted),
        problem=entry.problem,
        cut_off=entry.answer.cut_off,
    )


def _scored_row(scored: Scored) -> SluScoredRow:
    entry, entity, slu = scored.entry, scored.sums("entity"), scored.sums("slu")
    return SluScoredRow(
        id=entry.item.id,
        key=str(entry.key),
        speaker=entry.item.speaker,
        group=entry.item.group,
        gold_intent=scored.gold.intent,
        predicted_intent=entry.predicted.intent if entry.predicted else None,
        scenario_correct=scored.sums("scenario").true > 0,
        action_correct=scored.sums("action").true > 0,
        intent_correct=scored.sums("intent").true > 0,
        entity_true_positives=int(entity.true),
        entity_false_positives=int(entity.false),
        entity_false_negatives=int(entity.missed),
        slu_true_positives=slu.true,
        slu_false_positives=slu.false,
        slu_false_negatives=slu.missed,
    )


def _log(result: SluMetrics) -> None:
    shown = result.intervals
    log.info(
        "%d of %d %ss scored: intent accuracy %s, entity F1 %s, SLU-F1 %s",
        result.scored, result.gold, "recording" if result.by == "file" else "sentence",
        percent(shown.intent_accuracy), percent(shown.entity_f1), percent(shown.slu_f1),
    )  # fmt: skip
    if result.answers_per_prompt > 1:
        log.info("up to %d answers per prompt; the first is scored", result.answers_per_prompt)
    if result.unparsable:
        log.warning("%d answers hold no labels: wrong in everything", result.unparsable)
    if result.cut_off:
        log.warning("%d answers were cut off by max_new_tokens", result.cut_off)
    if result.majority:
        log.info(
            "the most frequent intent, %s_%s, is right in %.2f%%",
            result.majority.scenario, result.majority.action, 100 * result.majority.micro.intent_f1,
        )  # fmt: skip
    for count, what in (
        (result.without_gold, "rows have no gold labels: left out"),
        (result.without_key, f"rows have no {result.by} to pair by: left out"),
        (result.without_prediction, "rows have no prediction: wrong in the strict numbers"),
        (result.repeated, f"rows have a {result.by} that a later row has too: that one is scored"),
    ):
        if count:
            log.warning("%d %s", count, what)
