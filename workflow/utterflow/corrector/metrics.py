"""From the counts of scored rows to the metrics of a correction: rates, verdicts, bins, and the tidy table."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.corrector.records import (
    BinScores,
    CorrectionMetrics,
    CorrectionScores,
    Difference,
    SystemScores,
    Verdict,
)
from utterflow.evaluate.edits import rate
from utterflow.evaluate.score import ALL, Counts, cell, rates_with_intervals
from utterflow.evaluate.significance import paired_difference
from utterflow.files import atomic_writer
from utterflow.records import Rate

TABLE_COLUMNS = ("correction", "scoring", "group", "system", "metric", "value", "low", "high", "n")
SYSTEM_COUNTS = ("hits", "substitutions", "deletions", "insertions", "character_edits")
COMPOSITIONAL = "compositional_oracle"
BINNED = ("first", "mbr", "corrected", "oracle")
# The largest value of each bin; what is larger has a bin of its own.
REFERENCE_WORDS = (0, 5, 10, 20, 40)
DISTINCT_CANDIDATES = (1, 2, 3, 4, 5, 10, 20, 50, 100)


def system_names(cfg: Scoring) -> tuple[str, ...]:
    """The systems that are compared, in the order of tables."""
    return (*transcript_systems(cfg), COMPOSITIONAL)


def transcript_systems(cfg: Scoring) -> tuple[str, ...]:
    """The systems that put out one transcript, whose errors can be told apart."""
    return ("first", "mbr", *(f"oracle@{n}" for n in cfg.oracle_at), "oracle", "answer", "corrected")


def system_columns(cfg: Scoring) -> Iterator[str]:
    """Names of the counts of these systems, `<system>.<count>`."""
    return (f"{system}.{kind}" for system in transcript_systems(cfg) for kind in SYSTEM_COUNTS)


def scores(counts: Counts, cfg: Scoring) -> CorrectionScores:
    """Corpus-level scores of some rows, from their counts ([utterances] each, by name)."""
    utterances = len(counts["words"])
    words, characters = int(counts["words"].sum()), int(counts["characters"].sum())
    edits = {name: counts[f"{name}.edits"] for name in system_names(cfg)}
    rates = rates_with_intervals(edits, counts["words"], counts["speaker"], cfg.bootstrap)
    first, mbr = (_difference(counts, baseline, cfg.bootstrap) for baseline in ("first", "mbr"))
    gained = edits["first"] - edits["corrected"]

    def share(column: npt.NDArray[Any]) -> float:
        return float(column.sum()) / utterances

    return CorrectionScores(
        utterances=utterances,
        empty_references=int((counts["words"] == 0).sum()),
        words=words,
        characters=characters,
        systems={name: _system_scores(counts, name, rates[name], characters) for name in edits},
        corrected_less_first=first,
        corrected_less_mbr=mbr,
        beats_first=verdict(first, cfg.bootstrap.confidence),
        beats_mbr=verdict(mbr, cfg.bootstrap.confidence),
        early_rejections=int(counts["early_rejections"].sum()),
        cut_off=int(counts["cut_off"].sum()),
        in_list=share(counts["in_list"]),
        changed=share(counts["changed"]),
        improved=share(gained > 0),
        worsened=share(gained < 0),
        mean_candidates=share(counts["candidates"]),
        mean_distinct_candidates=share(counts["distinct"]),
        cut_lists=int(counts["cut_lists"].sum()),
    )


def verdict(difference: Difference, confidence: float) -> Verdict:
    """Whether the corrected transcripts have fewer errors than the baseline, at level 1 - confidence."""
    if difference.value is None:
        return "not tested"
    if difference.value >= 0:
        return "false"
    if difference.p_value is None:
        return "not tested"
    return "true" if difference.p_value < 1 - confidence else "not significant"


def sentence(baseline: str, beaten: Verdict) -> str:
    """The verdict in words."""
    match beaten:
        case "true":
            return f"the corrector beats {baseline}"
        case "false":
            return f"the corrector does not beat {baseline}"
        case "not significant":
            return f"the corrector has fewer errors than {baseline}, but the difference is not significant"
    return f"whether the corrector beats {baseline} was not tested"


def bins(counts: Counts, column: str, limits: Sequence[int]) -> list[BinScores]:
    """WER over the rows whose count lies in each bin; bins without rows are left out.

    The first bin is `limits[0]` alone, the least value there can be; the others end with the further limits."""
    lows = [limits[0], *(limit + 1 for limit in limits)]
    made = []
    for low, high in zip(lows, [*limits, None], strict=True):
        inside = (counts[column] >= low) & (counts[column] <= (high if high is not None else np.inf))
        if inside.any():
            words = int(counts["words"][inside].sum())
            wer = {name: rate(int(counts[f"{name}.edits"][inside].sum()), words) for name in BINNED}
            made.append(BinScores(low=low, high=high, utterances=int(inside.sum()), words=words, wer=wer))
    return made


def bin_name(item: BinScores) -> str:
    """`3`, `6-10` or `41+`."""
    if item.high is None:
        return f"{item.low}+"
    return str(item.low) if item.low == item.high else f"{item.low}-{item.high}"


def write_table(path: Path, metrics: CorrectionMetrics) -> None:
    """Write the metrics as a tidy table; `n` is the number of utterances behind a value."""
    with atomic_writer(path) as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        for group, part in [(ALL, metrics.total), *metrics.groups.items()]:
            for system, metric, item in _table_rows(part):
                cells = [cell(value) for value in (item.value, item.low, item.high)]
                writer.writerow([metrics.correction, metrics.scoring, group, system, metric, *cells, part.utterances])
        for kind in ("by_reference_words", "by_distinct_candidates"):
            for item in getattr(metrics, kind):
                group = f"{kind.removeprefix('by_')} {bin_name(item)}"
                for system, value in item.wer.items():
                    cells = ["wer", cell(value), "", "", item.utterances]
                    writer.writerow([metrics.correction, metrics.scoring, group, system, *cells])


def _system_scores(counts: Counts, name: str, wer: Rate, characters: int) -> SystemScores:
    edits = counts[f"{name}.edits"]
    totals = {kind: int(counts[f"{name}.{kind}"].sum()) for kind in SYSTEM_COUNTS if f"{name}.{kind}" in counts}
    known = totals.get("character_edits")
    return SystemScores(
        wer=wer,
        edits=int(edits.sum()),
        hits=totals.get("hits"),
        substitutions=totals.get("substitutions"),
        deletions=totals.get("deletions"),
        insertions=totals.get("insertions"),
        character_edits=known,
        cer=None if known is None else rate(known, characters),
        sentence_error_rate=float((edits > 0).sum()) / len(edits),
    )


def _difference(counts: Counts, baseline: str, bootstrap: Bootstrap) -> Difference:
    made = paired_difference(
        counts["corrected.edits"],
        counts[f"{baseline}.edits"],
        counts["words"],
        samples=bootstrap.samples,
        confidence=bootstrap.confidence,
        seed=bootstrap.seed,
        clusters=counts["speaker"] if bootstrap.unit == "speaker" else None,
    )
    return Difference(**made._asdict())


def _table_rows(part: CorrectionScores) -> Iterator[tuple[str, str, Rate]]:
    for system, item in part.systems.items():
        for metric, value in item:
            yield system, metric, value if isinstance(value, Rate) else Rate(value=value)
    for baseline in ("first", "mbr"):
        difference: Difference = getattr(part, f"corrected_less_{baseline}")
        interval = Rate(value=difference.value, low=difference.low, high=difference.high)
        yield "corrected", f"less_{baseline}", interval
        yield "corrected", f"less_{baseline}_p_value", Rate(value=difference.p_value)
    for metric in ("in_list", "changed", "improved", "worsened", "early_rejections", "cut_off"):
        yield "corrected", metric, Rate(value=getattr(part, metric))
    for metric in ("words", "characters", "mean_candidates", "mean_distinct_candidates", "cut_lists"):
        yield "list", metric, Rate(value=getattr(part, metric))
