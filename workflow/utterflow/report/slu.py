"""Stage `summarize_slu`: what models understood, run beside run, as a table and a figure."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import atomic_writer, read_json
from utterflow.jobs import log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import Rate, parse_record
from utterflow.report.figures import figure
from utterflow.report.summary import STYLE, aligned_text
from utterflow.report.tables import Cells, html_line, number_cell, write_tsv
from utterflow.slu.records import SluMetrics, SluScores

STAGE = "summarize_slu"
BARS = (
    ("intent accuracy", "intent_accuracy", "#4c72b0"),
    ("entity F1", "entity_f1", "#dd8452"),
    ("SLU-F1", "slu_f1", "#55a868"),
)
# Numbers that others have published on SLURP's test set: (system, source, intent accuracy, SLU-F1), in percent.
PUBLISHED = (
    (
        "Conformer and Transformer, trained on real and synthetic speech",
        "NVIDIA NeMo, Huang, Balam & Ginsburg 2023, arXiv:2307.07057",
        90.14,
        82.27,
    ),
    ("ESPnet", "quoted without a source that we could find", 86.53, 77.63),
    ("Qwen2.5-Omni, multi-task with rationales", "quoted without a source that we could find", 88.35, 76.88),
)


def summarize_slu(
    metrics: Sequence[Path],
    *,
    table: Path,
    page: Path,
    scores: Path,
    meta: Path,
    cfg: Mapping[str, Any],
    code: str,
) -> None:
    """Write the summary of all scored understandings.

    Args:
        metrics: metrics files (`slu.records.SluMetrics`).
        table: written: tab-separated, one row per file, rates as fractions, empty where undefined.
        page: written: the same for people, a self-contained HTML page, with published numbers below.
        scores: written: the figure of `plot_slu`, SVG.
        meta: written: the side file.
        cfg: `name` and `title` of the experiment, and `understandings`: what `slu.targets.described` says of each.

    Raises:
        UserError: no file, or one of another kind.
    """
    watch = Stopwatch()
    runs = [read_understanding(path) for path in metrics]
    if not runs:
        raise UserError(
            "there is no understanding to report", fix="name one under `understandings` in an entry of `runs`"
        )
    rows = [slu_row(run, cfg["understandings"][run.understanding]) for run in runs]
    write_tsv(table, rows)
    with atomic_writer(page) as handle:
        handle.write(html_page(cfg["title"] or cfg["name"], rows))
    plot_slu(runs, scores)
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg,
        code=code,
        inputs=metrics,
        outputs={"slu/1": table, "slu_page/1": page, "slu_figure/1": scores},
        seconds=watch.seconds(),
        rows={"in": len(runs), "out": len(rows), "rejected": 0},
    )
    log.info("%d understandings\n%s", len(rows), slu_text(rows))


def read_understanding(path: Path) -> SluMetrics:
    """Read the metrics file of one understanding.

    Raises:
        UserError: the file is missing, or is no such file.
    """
    return parse_record(SluMetrics, read_json(path), str(path))


def slu_row(run: SluMetrics, described: Mapping[str, str]) -> dict[str, str]:
    """One understanding as a row of the table; rates as fractions."""
    shown = run.intervals
    return {
        "understanding": run.understanding,
        "prediction": run.prediction,
        **described,
        "by": run.by,
        "average": run.average,
        "gold": str(run.gold),
        "n": str(run.scored),
        "coverage": number_cell(run.coverage),
        "rejected": str(sum(run.rejected_before.values())),
        "without_gold": str(run.without_gold),
        "repeated": str(run.repeated),
        "unparsable": str(run.unparsable),
        "cut_off": str(run.cut_off),
        "confidence": number_cell(run.confidence),
        **_interval("intent_accuracy", shown.intent_accuracy),
        **_interval("entity_f1", shown.entity_f1),
        "entity_precision": number_cell(run.entities.precision),
        "entity_recall": number_cell(run.entities.recall),
        **_interval("slu_f1", shown.slu_f1),
        **_scores("micro", run.micro),
        **_scores("macro", run.macro),
        **_scores("strict_micro", run.strict.micro),
        **_scores("strict_macro", run.strict.macro),
        "majority": f"{run.majority.scenario}_{run.majority.action}" if run.majority else "",
        **_scores("majority_micro", run.majority.micro if run.majority else None),
        **_scores("majority_macro", run.majority.macro if run.majority else None),
    }


# Heading and cell of each column that people see.
SHOWN: tuple[tuple[str, Callable[[Cells], str]], ...] = (
    ("understanding", lambda row: row["understanding"]),
    ("data set", lambda row: f"{row['dataset']}/{row['split']}"),
    ("source", lambda row: row["source"]),
    ("model", lambda row: row["model"]),
    ("training", lambda row: row["training"] or "none"),
    ("trained on", lambda row: row["trained_on"]),
    ("candidates", lambda row: _shown_candidates(row)),
    ("audio", lambda row: row["audio"]),
    ("scored", lambda row: row["n"]),
    ("coverage %", lambda row: _shown_percent(row["coverage"])),
    ("intent %", lambda row: _shown_intent(row)),
    ("entity F1 %", lambda row: _shown_rate(row, "entity_f1")),
    ("SLU-F1 %", lambda row: _shown_rate(row, "slu_f1")),
    ("strict intent %", lambda row: _shown_percent(row[f"strict_{row['average']}_intent_f1"])),
    ("strict SLU-F1 %", lambda row: _shown_percent(row["strict_micro_slu_f1"])),
    ("majority intent %", lambda row: _shown_percent(row[f"majority_{row['average']}_intent_f1"])),
    ("unparsable", lambda row: row["unparsable"]),
    ("cut off", lambda row: row["cut_off"]),
)
NAME_COLUMNS = 6
ON_TERMINAL = ("understanding", "data set", "scored", "coverage %", "intent %", "entity F1 %", "SLU-F1 %")
NAMES_ON_TERMINAL = 2


def slu_text(rows: Sequence[Cells]) -> str:
    """Some columns of the table, aligned."""
    shown = [(heading, cell) for heading, cell in SHOWN if heading in ON_TERMINAL]
    return aligned_text(
        [[heading for heading, _ in shown], *([cell(row) for _, cell in shown] for row in rows)], NAMES_ON_TERMINAL
    )


def html_page(title: str, rows: Sequence[Cells]) -> str:
    """The summary as a self-contained HTML page, with published numbers in a table of their own."""
    name = html.escape(title)
    levels = " or ".join(sorted({f"{100 * float(row['confidence']):g}%" for row in rows}))
    lines = [html_line("th", [heading for heading, _ in SHOWN], NAME_COLUMNS)]
    lines += [html_line("td", [cell(row) for _, cell in SHOWN], NAME_COLUMNS) for row in rows]
    published = [html_line("th", ["system", "source", "intent %", "SLU-F1 %"], 2)]
    published += [
        html_line("td", [system, source, f"{intent:.2f}", f"{slu_f1:.2f}"], 2)
        for system, source, intent, slu_f1 in PUBLISHED
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"/><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
        f"<small>[low, high]: {levels} bootstrap interval of the micro average; numbers are over rows with a "
        "prediction, strict ones take a missing prediction as wrong; &lt;ras&gt;: rationales were learnt</small>\n"
        "<table>\n" + "\n".join(lines) + "\n</table>\n"
        "<p><b>Published elsewhere, on SLURP's test set</b><br/><small>Not computed here. Comparable only with a row "
        "that scores every recording of SLURP's test set.</small></p>\n"
        "<table>\n" + "\n".join(published) + "\n</table>\n</body>\n</html>\n"
    )


def plot_slu(runs: Sequence[SluMetrics], path: Path) -> None:
    """Intent accuracy, entity F1 and SLU-F1 of each understanding, with intervals; a line at the majority's intent."""
    with figure((max(6.5, 1.2 + 1.3 * len(runs)), 4.2), path) as canvas:
        axis = canvas.subplots()
        width = 0.8 / len(BARS)
        for index, (label, name, color) in enumerate(BARS):
            rates = [getattr(run.intervals, name) for run in runs]
            places = [place + (index - 1) * width for place in range(len(runs))]
            axis.bar(places, [_percent(item.value) for item in rates], width * 0.92, color=color, label=label)
            known = [(place, item) for place, item in zip(places, rates, strict=True) if item.low is not None]
            axis.vlines(
                [place for place, _ in known],
                [_percent(item.low) for _, item in known],
                [_percent(item.high) for _, item in known],
                colors="#333333",
                linewidth=1,
            )
        based = [(place, run.majority) for place, run in enumerate(runs) if run.majority]
        if based:
            axis.hlines(
                [100 * item.micro.intent_f1 for _, item in based],
                [place - 1.5 * width for place, _ in based],
                [place - 0.5 * width for place, _ in based],
                colors="#000000",
                linestyles="dashed",
                label="most frequent intent",
            )
        axis.set_xticks(range(len(runs)), [_tick(run) for run in runs], fontsize=8)
        axis.set_xlim(-0.6, max(len(runs), 2) - 0.4)
        axis.set_ylim(0, 100)
        axis.set_ylabel("%")
        axis.grid(axis="y", alpha=0.3)
        canvas.legend(loc="outside upper center", ncols=2, frameon=False)


def _tick(run: SluMetrics) -> str:
    return f"{run.understanding}\n{run.scored} of {run.gold}"


def _interval(name: str, item: Rate) -> dict[str, str]:
    return {name: number_cell(item.value), f"{name}_low": number_cell(item.low), f"{name}_high": number_cell(item.high)}


def _scores(name: str, item: SluScores | None) -> dict[str, str]:
    return {
        f"{name}_{metric}": number_cell(getattr(item, metric) if item else None) for metric in SluScores.model_fields
    }


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value


def _shown_percent(cell: str) -> str:
    return f"{100 * float(cell):.2f}" if cell else "none"


def _shown_rate(row: Cells, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return _shown_percent(row[name]) + (f" [{_shown_percent(low)}, {_shown_percent(high)}]" if low and high else "")


def _shown_intent(row: Cells) -> str:
    if row["average"] == "macro":
        return f"{_shown_percent(row['macro_intent_f1'])} (macro F1)"
    return _shown_rate(row, "intent_accuracy")


def _shown_candidates(row: Cells) -> str:
    return row["candidates"] + ("" if row["input_format"] == "asr" else f" ({row['input_format']})")
