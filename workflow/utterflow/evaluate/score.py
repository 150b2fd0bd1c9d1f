"""Stage `score_asr`: metrics of one run's n-best lists."""

from __future__ import annotations

import csv
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
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
from utterflow.files import atomic_writer, json_line, read_json, write_json
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import AsrMetrics, AsrScores, Hypothesis, NbestRow, Rate, RejectedRow, ScoredRow, read_records

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
class Tally:
    """What is kept of the scored rows: a few 32-bit numbers of each, so that a million fit into memory."""

    oracle_at: tuple[int, ...]
    scored: int = 0
    rejected: int = 0
    rejected_examples: list[str] = field(default_factory=list)
    values: array[int] = field(default_factory=lambda: array("i"))
    groups: dict[str | None, int] = field(default_factory=dict)
    speakers: dict[str | None, int] = field(default_factory=dict)
    oracle_sums: list[int] = field(default_factory=list)
    distinct_sums: list[int] = field(default_factory=list)

    def counts(self) -> Counts:
        names = (*COUNTS, "group", "speaker", *(f"oracle@{n}" for n in self.oracle_at))
        table = np.array(self.values, dtype=np.int64).reshape(-1, len(names))
        return dict(zip(names, table.T, strict=True))


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
    earlier: Mapping[str, Path] | None = None,
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
        earlier: stage -> the side file that counts the rows which it rejected.

    Raises:
        UserError: a row that does not fit its record, no row with a reference, or more rejected rows than
            `cfg.max_rejected` allows.
    """
    watch = Stopwatch()
    tally = score_rows(nbest, rows, rejected, cfg)
    if cfg.bootstrap.unit == "speaker":
        check_speakers(tally.speakers, tally.counts()["speaker"], nbest)
    rejected_before = {stage: int(read_json(side)["rows"]["rejected"]) for stage, side in (earlier or {}).items()}
    result = asr_metrics(tally, cfg, corpus, asr, scoring).model_copy(update={"rejected_before": rejected_before})
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
    log.info("%d rows scored, %d rejected", tally.scored, tally.rejected)
    log.info("WER %s, MBR %s, oracle %s", *(percent(item) for item in _headline(result.total)))
    return result


def score_rows(nbest: Path, rows: Path, rejected: Path, cfg: Scoring) -> Tally:
    """Score the lists one at a time; the files of scored and of rejected rows are written on the way.

    Raises:
        UserError: see `score_asr`; neither file is then written.
    """
    normalize = normalizer(cfg.normalizer)
    longest = max(cfg.oracle_at)
    tally = Tally(cfg.oracle_at, oracle_sums=[0] * longest, distinct_sums=[0] * longest)
    watch = Stopwatch()
    with atomic_writer(rows) as scored_file, atomic_writer(rejected) as rejected_file:
        for row in read_records(nbest, NbestRow):
            if row.text is None:
                refusal = RejectedRow(id=row.id, stage=STAGE, reason="no reference text")
                rejected_file.write(json_line(refusal.row()))
                tally.rejected += 1
                tally.rejected_examples += [row.id] if tally.rejected <= EXAMPLES else []
                continue
            weights = posterior(row.asr_hypotheses) if cfg.mbr_weights == "posterior" else None
            texts = [hypothesis.text for hypothesis in row.asr_hypotheses]
            score = score_list(row.text, texts, normalize, weights)
            scored_file.write(json_line(_scored_row(row, score, longest).row()))
            _add(tally, row, score)
            if tally.scored % LOG_EVERY == 0:
                log.info("%d rows scored, %.0f/s", tally.scored, tally.scored / max(watch.seconds(), 1e-3))
        _check_rejected(tally, cfg.max_rejected, nbest)
    return tally


def asr_metrics(tally: Tally, cfg: Scoring, corpus: str, asr: str, scoring: str) -> AsrMetrics:
    """Corpus-level metrics, in total and by group."""
    counts = tally.counts()
    words = int(counts["words"].sum())
    return AsrMetrics(
        corpus=corpus,
        asr=asr,
        scoring=scoring,
        normalizer=cfg.normalizer,
        confidence=cfg.bootstrap.confidence,
        bootstrap_unit=cfg.bootstrap.unit,
        rows={"in": tally.scored + tally.rejected, "out": tally.scored, "rejected": tally.rejected},
        total=scores(counts, cfg),
        groups={name: scores(part, cfg) for name, part in counts_by_group(counts, tally.groups)},
        oracle_curve=[rate(edits, words) for edits in tally.oracle_sums],
        distinct_curve=[count / tally.scored for count in tally.distinct_sums],
    )


def scores(counts: Counts, cfg: Scoring) -> AsrScores:
    """Corpus-level scores of some rows, from their counts ([utterances] each, by name)."""
    lengths = counts["words"]
    first = counts["substitutions"] + counts["deletions"] + counts["insertions"]
    rated = {"wer": first, "mbr": counts["mbr"], "compositional": counts["compositional"]}
    rated |= {name: column for name, column in counts.items() if name.startswith("oracle@")}
    rates = rates_with_intervals(rated, lengths, counts["speaker"], cfg.bootstrap)
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
        for group, part in [(ALL, metrics.total), *metrics.groups.items()]:
            for metric, item in _flat(part):
                cells = [cell(value) for value in (item.value, item.low, item.high)]
                writer.writerow([metrics.corpus, metrics.asr, metrics.scoring, group, metric, *cells, part.utterances])


def _flat(part: AsrScores) -> Iterator[tuple[str, Rate]]:
    for name, value in part:
        if isinstance(value, Rate):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}@{n}", item) for n, item in value.items())
        elif name != "utterances":
            yield name, Rate(value=value)


def cell(value: float | None) -> str:
    """A number in a table: six decimals, empty where undefined."""
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def rates_with_intervals(
    edits: Mapping[str, npt.NDArray[np.int64]],
    lengths: npt.NDArray[np.int64],
    speakers: npt.NDArray[np.int64],
    bootstrap: Bootstrap,
) -> dict[str, Rate]:
    """Corpus-level rates by name, with intervals that share their draws; all arrays [utterances]."""
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


def counts_by_group(counts: Counts, groups: Mapping[str | None, int]) -> Iterator[tuple[str, Counts]]:
    """Yield (name, counts of its rows) of each group, the rows without one last; nothing where no row has one."""
    if set(groups) == {None}:
        return
    for name in sorted(groups, key=lambda group: (group is None, group or "")):
        members = counts["group"] == groups[name]
        yield shown_group(name), {key: column[members] for key, column in counts.items()}


def shown_group(name: str | None) -> str:
    """A group's name in files; one that is called like a row of our own is put in quotes."""
    if name is None:
        return NO_GROUP
    return f'"{name}"' if name in (ALL, NO_GROUP) else name


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


def _add(tally: Tally, row: NbestRow, score: ListScore) -> None:
    words = score.first.reference_length
    tally.scored += 1
    tally.values.extend(
        [
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
            tally.groups.setdefault(row.group, len(tally.groups)),
            tally.speakers.setdefault(row.speaker, len(tally.speakers)),
            *(score.oracle_edits[min(n, len(score.edits)) - 1] for n in tally.oracle_at),
        ]
    )
    for index in range(len(tally.oracle_sums)):
        rank = min(index, len(score.edits) - 1)  # a shorter list goes on with its last value
        tally.oracle_sums[index] += score.oracle_edits[rank]
        tally.distinct_sums[index] += score.distinct[rank]


def posterior(hypotheses: Sequence[Hypothesis]) -> list[float]:
    """Probability of each hypothesis within its list: softmax of the total log-probabilities."""
    return softmax([hypothesis.score for hypothesis in hypotheses])


def softmax(log_probabilities: Sequence[float]) -> list[float]:
    """Probabilities that sum to one, from natural logarithms that lack a constant."""
    values = np.array(log_probabilities)
    weights = np.exp(values - values.max())
    return [float(weight) for weight in weights / weights.sum()]


def _check_rejected(tally: Tally, allowed: float, source: Path) -> None:
    total = tally.scored + tally.rejected
    if not total:
        raise UserError("there is no row to score", where=str(source))
    share = tally.rejected / total
    if not tally.scored or share > allowed:
        raise UserError(
            f"{tally.rejected} of {total} rows ({share:.1%}) have no reference; max_rejected allows {allowed:.1%}",
            where=f"{source}: {', '.join(tally.rejected_examples)}",
            fix="give the corpus a reference column, or set `scoring.<name>.max_rejected` higher",
        )


def check_speakers(speakers: Mapping[str | None, int], column: npt.NDArray[np.int64], source: Path) -> None:
    """Warn of speakers that give no sound bootstrap.

    Args:
        speakers: number of each speaker; None stands for a row that names none
        column: [utterances], number of each one's speaker

    Raises:
        UserError: no row names a speaker.
    """
    if set(speakers) == {None}:
        raise UserError(
            "bootstrap by speaker, but no row has a speaker",
            where=str(source),
            fix="set `scoring.<name>.bootstrap.unit: utterance`, or give the corpus a speaker column",
        )
    if len(speakers) == 1:
        log.warning("there is only one speaker: a bootstrap by speaker gives no intervals")
    if None in speakers:
        nameless = int((column == speakers[None]).sum())
        log.warning("%d rows have no speaker; the bootstrap takes them as one", nameless)


def _headline(part: AsrScores) -> list[Rate]:
    return [part.wer, part.mbr, part.oracle[max(part.oracle)]]


def percent(item: Rate) -> str:
    """A rate for people."""
    return "undefined" if item.value is None else f"{100 * item.value:.2f}%"
