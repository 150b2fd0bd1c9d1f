"""Stage `score_asr`: metrics of one run's n-best lists."""

from __future__ import annotations

import csv
import logging
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.errors import UserError
from utterflow.evaluate.bootstrap import bootstrap_intervals
from utterflow.evaluate.edits import rate
from utterflow.evaluate.nbest import ListScore, oracle, score_list
from utterflow.evaluate.normalize import normalizer
from utterflow.files import atomic_writer, json_line, write_json
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import AsrMetrics, AsrScores, NbestRow, Rate, RejectedRow, ScoredRow, read_records

log = logging.getLogger("utterflow")

STAGE = "score_asr"
LOG_EVERY = 20_000
EXAMPLES = 5
ALL = "(all)"
NO_GROUP = "(none)"
TABLE_COLUMNS = ("corpus", "asr", "scoring", "group", "metric", "value", "low", "high", "n")
COUNTS = (
    "words", "characters", "hits", "substitutions", "deletions", "insertions", "clipped", "character_edits",
    "mbr", "compositional", "hypotheses", "distinct", "fallback",
)  # fmt: skip

Counts = dict[str, npt.NDArray[np.int64]]


@dataclass
class Columns:
    """What is kept of each scored row: a few 32-bit numbers, so that a million rows fit into memory."""

    names: tuple[str, ...]
    values: array[int] = field(default_factory=lambda: array("i"))
    groups: dict[str | None, int] = field(default_factory=dict)
    speakers: dict[str | None, int] = field(default_factory=dict)

    def counts(self) -> Counts:
        table = np.array(self.values, dtype=np.int64).reshape(-1, len(self.names))
        return dict(zip(self.names, table.T, strict=True))


def score_asr(
    nbest: Path,
    *,
    metrics: Path,
    table: Path,
    rows: Path,
    rejected: Path,
    meta: Path,
    corpus: str,
    asr: str,
    scoring: str,
    cfg: Scoring,
    code: str,
) -> AsrMetrics:
    """Score one run's n-best lists, read one at a time.

    Rows without a reference transcript (`text: null`) are rejected. A reference that is empty after
    normalisation is scored: it adds no reference words, and every hypothesis word is an insertion.

    Args:
        nbest: n-best rows, JSON Lines.
        metrics: written: `records.AsrMetrics`, JSON.
        table: written: the same numbers as a tidy table, tab-separated, columns `TABLE_COLUMNS`.
        rows: written: `records.ScoredRow` per utterance, JSON Lines.
        rejected: written: `records.RejectedRow`, JSON Lines.
        meta: written: the side file.

    Raises:
        UserError: a row that does not fit its record, no row with a reference, or more rejected rows than
            `cfg.max_rejected` allows.
    """
    watch = Stopwatch()
    normalize = normalizer(cfg.normalizer)
    longest = max(cfg.oracle_at)
    columns = Columns((*COUNTS, "group", "speaker", *(f"oracle@{n}" for n in cfg.oracle_at)))
    oracle_sums, distinct_sums = np.zeros(longest, dtype=np.int64), np.zeros(longest, dtype=np.int64)
    examples: list[str] = []
    done = refused = 0
    with ExitStack() as stack:
        scored_file, rejected_file = (
            stack.enter_context(atomic_writer(rows)),
            stack.enter_context(atomic_writer(rejected)),
        )
        for row in read_records(nbest, NbestRow):
            if row.text is None:
                reason = "no reference text"
                rejected_file.write(json_line(RejectedRow(id=row.id, stage=STAGE, reason=reason).row()))
                refused += 1
                examples += [row.id] if refused <= EXAMPLES else []
                continue
            score = score_list(row.text, [hypothesis.text for hypothesis in row.asr_hypotheses], normalize)
            scored_file.write(json_line(_scored_row(row, score, longest).row()))
            columns.values.extend(_values(row, score, cfg.oracle_at, columns))
            oracle_sums += _padded(score.oracle_edits, longest)
            distinct_sums += _padded(score.distinct, longest)
            done += 1
            if done % LOG_EVERY == 0:
                log.info("%d rows scored, %.0f/s", done, done / max(watch.seconds(), 1e-3))
        _check_rejected(refused, done, cfg.max_rejected, f"{nbest}: {', '.join(examples)}")
    counts = columns.counts()
    if cfg.bootstrap.unit == "speaker":
        _check_speakers(columns.speakers, counts["speaker"], nbest)
    words = int(counts["words"].sum())
    result = AsrMetrics(
        corpus=corpus,
        asr=asr,
        scoring=scoring,
        normalizer=cfg.normalizer,
        confidence=cfg.bootstrap.confidence,
        bootstrap_unit=cfg.bootstrap.unit,
        rows={"in": done + refused, "out": done, "rejected": refused},
        total=scores(counts, cfg),
        groups=dict(_groups(counts, columns.groups, cfg)),
        oracle_curve=[rate(int(edits), words) for edits in oracle_sums],
        distinct_curve=[int(count) / done for count in distinct_sums],
    )
    write_json(metrics, result.row())
    write_table(table, result)
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[nbest],
        outputs={
            AsrMetrics.RECORD: metrics,
            "asr_metrics_table/1": table,
            ScoredRow.RECORD: rows,
            RejectedRow.RECORD: rejected,
        },
        seconds=watch.seconds(),
        rows=result.rows,
    )
    log.info("%d rows scored, %d rejected", done, refused)
    log.info("WER %s, MBR %s, oracle %s", *(_percent(item) for item in _headline(result.total)))
    return result


def scores(counts: Counts, cfg: Scoring) -> AsrScores:
    """Corpus-level scores of some rows, from their counts ([utterances] each, by name)."""
    lengths = counts["words"]
    first = counts["substitutions"] + counts["deletions"] + counts["insertions"]
    rated = {"wer": first, "mbr": counts["mbr"], "compositional": counts["compositional"]}
    rated |= {name: column for name, column in counts.items() if name.startswith("oracle@")}
    rates = _rates(rated, lengths, counts["speaker"], cfg.bootstrap)
    total = {name: int(column.sum()) for name, column in counts.items()}
    utterances = len(lengths)
    return AsrScores(
        utterances=utterances,
        empty_references=int((lengths == 0).sum()),
        words=total["words"],
        characters=total["characters"],
        hits=total["hits"],
        substitutions=total["substitutions"],
        deletions=total["deletions"],
        insertions=total["insertions"],
        character_edits=total["character_edits"],
        wer=rates["wer"],
        clipped_wer=rate(total["clipped"], total["words"]),
        cer=rate(total["character_edits"], total["characters"]),
        sentence_error_rate=int((first > 0).sum()) / utterances,
        mbr=rates["mbr"],
        oracle={n: rates[f"oracle@{n}"] for n in cfg.oracle_at},
        compositional_oracle=rates["compositional"],
        mean_hypotheses=total["hypotheses"] / utterances,
        mean_distinct_hypotheses=total["distinct"] / utterances,
        fallback_share=total["fallback"] / utterances,
    )


def write_table(path: Path, metrics: AsrMetrics) -> None:
    """Write the metrics as a tidy table; `n` is the number of utterances behind a value."""
    with atomic_writer(path) as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        for group, part in {ALL: metrics.total, **metrics.groups}.items():
            for metric, item in _flat(part):
                cells = [_cell(value) for value in (item.value, item.low, item.high)]
                writer.writerow(
                    [metrics.corpus, metrics.asr, metrics.scoring, group, metric, *cells, part.utterances]
                )


def _flat(part: AsrScores) -> Iterator[tuple[str, Rate]]:
    for name, value in part:
        if isinstance(value, Rate):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}@{n}", item) for n, item in value.items())
        elif name != "utterances":
            yield name, Rate(value=value)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def _rates(
    edits: Mapping[str, npt.NDArray[np.int64]],
    lengths: npt.NDArray[np.int64],
    speakers: npt.NDArray[np.int64],
    bootstrap: Bootstrap,
) -> dict[str, Rate]:
    intervals = bootstrap_intervals(
        np.column_stack(list(edits.values())),
        lengths,
        samples=bootstrap.samples,
        confidence=bootstrap.confidence,
        seed=bootstrap.seed,
        clusters=speakers if bootstrap.unit == "speaker" else None,
    )
    words = int(lengths.sum())
    rates = {}
    for (name, column), (low, high) in zip(edits.items(), intervals, strict=True):
        known = not np.isnan(low)
        rates[name] = Rate(
            value=rate(int(column.sum()), words),
            low=float(low) if known else None,
            high=float(high) if known else None,
        )
    return rates


def _groups(
    counts: Counts, groups: Mapping[str | None, int], cfg: Scoring
) -> Iterator[tuple[str, AsrScores]]:
    if set(groups) == {None}:
        return
    for name in sorted(groups, key=lambda group: (group is None, group or "")):
        members = counts["group"] == groups[name]
        yield name or NO_GROUP, scores({key: column[members] for key, column in counts.items()}, cfg)


def _scored_row(row: NbestRow, score: ListScore, longest: int) -> ScoredRow:
    rank = oracle(score.edits, longest)
    return ScoredRow(
        id=row.id,
        group=row.group,
        speaker=row.speaker,
        words=score.first.reference_length,
        characters=score.first_characters.reference_length,
        first_edits=score.first.edits,
        first_substitutions=score.first.substitutions,
        first_deletions=score.first.deletions,
        first_insertions=score.first.insertions,
        character_edits=score.first_characters.edits,
        mbr_edits=score.mbr_edits,
        mbr_rank=score.mbr_rank,
        oracle_edits=score.edits[rank],
        oracle_rank=rank,
        compositional_edits=score.compositional_edits,
        hypotheses=len(score.edits),
        distinct=score.distinct[-1],
    )


def _values(row: NbestRow, score: ListScore, oracle_at: tuple[int, ...], columns: Columns) -> list[int]:
    words = score.first.reference_length
    return [
        words,
        score.first_characters.reference_length,
        *score.first,
        min(score.first.edits, words),
        score.first_characters.edits,
        score.mbr_edits,
        score.compositional_edits,
        len(score.edits),
        score.distinct[-1],
        int(row.asr_fallback is not None),
        columns.groups.setdefault(row.group, len(columns.groups)),
        columns.speakers.setdefault(row.speaker, len(columns.speakers)),
        *(score.oracle_edits[min(n, len(score.edits)) - 1] for n in oracle_at),
    ]


def _padded(values: tuple[int, ...], size: int) -> npt.NDArray[np.int64]:
    """The first `size` values; a shorter list goes on with its last one."""
    return np.array([values[min(index, len(values) - 1)] for index in range(size)], dtype=np.int64)


def _check_rejected(refused: int, done: int, allowed: float, where: str) -> None:
    total = done + refused
    if not total:
        raise UserError("there is no row to score", where=where)
    share = refused / total
    if not done or share > allowed:
        raise UserError(
            f"{refused} of {total} rows ({share:.1%}) have no reference; max_rejected allows {allowed:.1%}",
            where=where,
            fix="give the corpus a reference column, or set `scoring.<name>.max_rejected` higher",
        )


def _check_speakers(speakers: Mapping[str | None, int], column: npt.NDArray[np.int64], source: Path) -> None:
    if set(speakers) == {None}:
        raise UserError(
            "bootstrap by speaker, but no row has a speaker",
            where=str(source),
            fix="set `scoring.<name>.bootstrap.unit: utterance`, or give the corpus a speaker column",
        )
    if None in speakers:
        log.warning(
            "%d rows have no speaker; the bootstrap takes them as one", int((column == speakers[None]).sum())
        )


def _headline(part: AsrScores) -> list[Rate]:
    return [part.wer, part.mbr, part.oracle[max(part.oracle)]]


def _percent(item: Rate) -> str:
    return "undefined" if item.value is None else f"{100 * item.value:.2f}%"
