"""Stage `summarize_corrections`: corrections beside what they were made from, as a table and a figure."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.corrector.metrics import bin_name, sentence
from utterflow.corrector.records import BinScores, CorrectionMetrics, Difference
from utterflow.errors import UserError
from utterflow.files import atomic_writer, read_json
from utterflow.jobs import log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import Rate, parse_record
from utterflow.report.figures import figure
from utterflow.report.summary import STYLE, aligned_text
from utterflow.report.tables import Cells, html_line, number_cell, write_tsv

STAGE = "summarize_corrections"
COLORS = {"first": "#4c72b0", "mbr": "#dd8452", "corrected": "#c44e52", "oracle": "#55a868"}
LABELS = {"first": "first candidate", "mbr": "MBR choice", "corrected": "corrected", "oracle": "oracle"}


def summarize_corrections(
    metrics: Sequence[Path],
    *,
    table: Path,
    page: Path,
    wer: Path,
    meta: Path,
    cfg: Mapping[str, Any],
    code: str,
) -> None:
    """Write the summary of all scored corrections.

    Args:
        metrics: metrics files (`corrector.records.CorrectionMetrics`).
        table: written: tab-separated, one row per file, rates as fractions, empty where undefined.
        page: written: the same for people, a self-contained HTML page.
        wer: written: the figure of `plot_corrections`, SVG.
        meta: written: the side file.
        cfg: `name` and `title` of the experiment.

    Raises:
        UserError: no file, or one of another kind.
    """
    watch = Stopwatch()
    runs = [read_correction(path) for path in metrics]
    if not runs:
        raise UserError("there is no correction to report", fix="name one under `corrections` in an entry of `runs`")
    rows = corrections_table(runs)
    write_tsv(table, rows)
    with atomic_writer(page) as handle:
        handle.write(html_page(cfg["title"] or cfg["name"], rows))
    plot_corrections(runs, wer)
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg,
        code=code,
        inputs=metrics,
        outputs={"corrections/1": table, "corrections_page/1": page, "corrections_figure/1": wer},
        seconds=watch.seconds(),
        rows={"in": len(runs), "out": len(rows), "rejected": 0},
    )
    for run in runs:
        log.info("%s / %s: %s", run.correction, run.scoring, sentence("MBR", run.total.beats_mbr))


def read_correction(path: Path) -> CorrectionMetrics:
    """Read the metrics file of one correction.

    Raises:
        UserError: the file is missing, or is no such file.
    """
    return parse_record(CorrectionMetrics, read_json(path), str(path))


def corrections_table(runs: Sequence[CorrectionMetrics]) -> list[dict[str, str]]:
    """One row per run; rates as fractions."""
    return [_row(run) for run in runs]


# Heading and cell of each column that people see.
SHOWN: tuple[tuple[str, Callable[[Cells], str]], ...] = (
    ("correction", lambda row: row["correction"]),
    ("prediction", lambda row: row["prediction"]),
    ("scoring", lambda row: row["scoring"]),
    ("utterances", lambda row: row["n"]),
    ("rejected", lambda row: row["rejected"]),
    ("first WER %", lambda row: _shown_rate(row, "first")),
    ("MBR WER %", lambda row: _shown_rate(row, "mbr")),
    ("corrected WER %", lambda row: _shown_rate(row, "corrected")),
    ("less MBR, points", lambda row: _shown_rate(row, "less_mbr")),
    ("p", lambda row: f"{float(row['less_mbr_p_value']):.3f}" if row["less_mbr_p_value"] else "not tested"),
    ("beats MBR", lambda row: row["beats_mbr"]),
    ("beats first", lambda row: row["beats_first"]),
    ("oracle WER %", lambda row: _shown_rate(row, "oracle")),
    ("comp. oracle WER %", lambda row: _shown_percent(row["compositional_oracle"])),
    ("in list %", lambda row: _shown_percent(row["in_list"])),
    ("improved %", lambda row: _shown_percent(row["improved"])),
    ("worsened %", lambda row: _shown_percent(row["worsened"])),
    ("kept first", lambda row: row["early_rejections"]),
    ("cut off", lambda row: row["cut_off"]),
)
NAME_COLUMNS = 3
ON_TERMINAL = 12  # the first so many columns


def corrections_text(rows: Sequence[Cells]) -> str:
    """The first columns of the table, aligned."""
    shown = SHOWN[:ON_TERMINAL]
    return aligned_text(
        [[heading for heading, _ in shown], *([cell(row) for _, cell in shown] for row in rows)], NAME_COLUMNS
    )


def html_page(title: str, rows: Sequence[Cells]) -> str:
    """The summary as a self-contained HTML page."""
    name = html.escape(title)
    levels = " or ".join(sorted({f"{100 * float(row['confidence']):g}%" for row in rows}))
    lines = [html_line("th", [heading for heading, _ in SHOWN], NAME_COLUMNS)]
    lines += [html_line("td", [cell(row) for _, cell in SHOWN], NAME_COLUMNS) for row in rows]
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"/><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
        f"<small>[low, high]: {levels} bootstrap interval; less MBR: WER of the corrected transcripts less that of the "
        "MBR choice, with a two-sided p-value from a matched-pairs bootstrap</small>\n"
        "<table>\n" + "\n".join(lines) + "\n</table>\n</body>\n</html>\n"
    )


def plot_corrections(runs: Sequence[CorrectionMetrics], path: Path) -> None:
    """Left: WER of first candidate, MBR choice, corrected and oracle per run, with intervals. Then one panel per run:
    the same by the number of different candidates."""
    width = max(6.5, 1.2 + 1.1 * len(runs))
    with figure((width, 0.8 + 3.0 + 2.8 * len(runs)), path) as canvas:
        axes = canvas.subplots(1 + len(runs), 1, squeeze=False).flatten()
        _draw_runs(axes[0], runs)
        for axis, run in zip(axes[1:], runs, strict=True):
            _draw_bins(axis, run)
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)


def _row(run: CorrectionMetrics) -> dict[str, str]:
    total = run.total
    systems = total.systems
    return {
        "correction": run.correction,
        "prediction": run.prediction,
        "scoring": run.scoring,
        "normalizer": run.normalizer,
        "n": str(total.utterances),
        "rejected": str(run.rows["rejected"] + run.rejected_before.get("build_corrector_data", 0)),
        "words": str(total.words),
        "confidence": number_cell(run.confidence),
        "mbr_weights": run.mbr_weights,
        **_interval("first", systems["first"].wer),
        **_interval("mbr", systems["mbr"].wer),
        **_interval("answer", systems["answer"].wer),
        **_interval("corrected", systems["corrected"].wer),
        **_interval("oracle", systems["oracle"].wer),
        "compositional_oracle": number_cell(systems["compositional_oracle"].wer.value),
        "corrected_cer": number_cell(systems["corrected"].cer),
        "corrected_sentence_error_rate": number_cell(systems["corrected"].sentence_error_rate),
        **_interval("less_first", total.corrected_less_first),
        "less_first_p_value": number_cell(total.corrected_less_first.p_value),
        **_interval("less_mbr", total.corrected_less_mbr),
        "less_mbr_p_value": number_cell(total.corrected_less_mbr.p_value),
        "beats_first": total.beats_first,
        "beats_mbr": total.beats_mbr,
        "in_list": number_cell(total.in_list),
        "changed": number_cell(total.changed),
        "improved": number_cell(total.improved),
        "worsened": number_cell(total.worsened),
        "early_rejections": str(total.early_rejections),
        "cut_off": str(total.cut_off),
    }


def _draw_runs(axis: Any, runs: Sequence[CorrectionMetrics]) -> None:
    step = 0.8 / len(COLORS)
    for index, (kind, color) in enumerate(COLORS.items()):
        rates = [run.total.systems[kind].wer for run in runs]
        places = [place + (index - 1.5) * step for place in range(len(runs))]
        axis.bar(places, [_percent(item.value) for item in rates], step * 0.92, color=color, label=LABELS[kind])
        known = [(place, item) for place, item in zip(places, rates, strict=True) if item.low is not None]
        axis.vlines(
            [place for place, _ in known],
            [_percent(item.low) for _, item in known],
            [_percent(item.high) for _, item in known],
            colors="#333333",
            linewidth=1,
        )
    names = [f"{run.correction}\n{run.scoring}\n{run.total.utterances} utterances" for run in runs]
    axis.set_xticks(range(len(runs)), names, fontsize=8)
    axis.set_xlim(-0.6, max(len(runs), 2) - 0.4)
    axis.set_ylabel("WER (%)")
    axis.grid(axis="y", alpha=0.3)


def _draw_bins(axis: Any, run: CorrectionMetrics) -> None:
    parts: Sequence[BinScores] = run.by_distinct_candidates
    for kind, color in COLORS.items():
        values = [_percent(part.wer[kind]) for part in parts]
        axis.plot(range(len(parts)), values, marker="o", markersize=3.5, color=color)
    axis.set_xticks(range(len(parts)), [f"{bin_name(part)}\n{part.words}" for part in parts], fontsize=8)
    axis.set_xlim(-0.5, max(len(parts), 2) - 0.5)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("different candidates in the list; below them reference words")
    axis.set_ylabel("WER (%)")
    axis.set_title(f"{run.correction} / {run.scoring}", fontsize=9)
    axis.grid(alpha=0.3)


def _interval(name: str, item: Rate | Difference) -> dict[str, str]:
    return {name: number_cell(item.value), f"{name}_low": number_cell(item.low), f"{name}_high": number_cell(item.high)}


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value


def _shown_percent(cell: str) -> str:
    return f"{100 * float(cell):.2f}" if cell else "undefined"


def _shown_rate(row: Cells, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return _shown_percent(row[name]) + (f" [{_shown_percent(low)}, {_shown_percent(high)}]" if low and high else "")
