"""Stage `summarize_rationales`: one row per rationale and list length, for programs and for people."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import atomic_writer, read_json
from utterflow.jobs import log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.rationale.records import RationaleMetrics
from utterflow.records import parse_record
from utterflow.report.summary import STYLE, aligned_text
from utterflow.report.tables import Cells, html_line, number_cell, write_tsv

STAGE = "summarize_rationales"
QUESTIONS = ("intent_candidates", "slot_candidates", "intent_pruning", "slot_grounding")


def summarize_rationales(
    metrics: Sequence[Path], *, table: Path, page: Path, meta: Path, cfg: Mapping[str, Any], code: str
) -> None:
    """Write the summary of all rationales.

    Args:
        metrics: metrics files (`rationale.records.RationaleMetrics`).
        table: written: tab-separated, one row per file, shares as fractions, empty where undefined.
        page: written: the same for people, a self-contained HTML page.
        cfg: `name` and `title` of the experiment.

    Raises:
        UserError: no file, or one of another kind.
    """
    watch = Stopwatch()
    runs = [read_rationale(path) for path in metrics]
    if not runs:
        raise UserError("there is no rationale to report", fix="name one under `rationales` in an entry of `runs`")
    rows = [rationale_cells(run) for run in sorted(runs, key=lambda run: (run.rationale, run.k))]
    write_tsv(table, rows)
    with atomic_writer(page) as handle:
        handle.write(html_page(cfg["title"] or cfg["name"], rows))
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg,
        code=code,
        inputs=metrics,
        outputs={"rationales/1": table, "rationales_page/1": page},
        seconds=watch.seconds(),
        rows={"in": len(runs), "out": len(rows), "rejected": 0},
    )
    log.info("%d rationales\n%s", len(rows), rationales_text(rows))


def read_rationale(path: Path) -> RationaleMetrics:
    """Read the metrics file of one rationale.

    Raises:
        UserError: the file is missing, or is no such file.
    """
    return parse_record(RationaleMetrics, read_json(path), str(path))


def rationale_cells(run: RationaleMetrics) -> dict[str, str]:
    """One metrics file as a row of the table."""
    fallbacks = {
        f"{name}_fallback": number_cell(run.questions[name].fallback_share if name in run.questions else None)
        for name in QUESTIONS
    }
    return {
        "rationale": run.rationale,
        "k": str(run.k),
        "evidence": run.evidence,
        "stages": run.stages,
        "gold": str(run.gold).lower(),
        "backend": run.backend,
        "model": run.model,
        "n": str(run.rows["out"]),
        "rejected": str(run.rows["rejected"]),
        "valid": number_cell(run.valid_share),
        "agreeing": number_cell(run.agreeing_share),
        "fallback": number_cell(run.fallback_share),
        **fallbacks,
        "gold_slots": str(run.slots.gold),
        "heard": number_cell(run.slots.heard_share),
        "grounded": number_cell(run.slots.grounded_share),
        "spans_heard": number_cell(run.slots.spans_heard_share),
        "tries": str(run.tries),
        "input_tokens": str(run.input_tokens),
        "cached_tokens": str(run.cached_tokens),
        "output_tokens": str(run.output_tokens),
        "reasoning_tokens": str(run.reasoning_tokens),
        "cost": number_cell(run.cost),
        "currency": run.currency or "",
        "seconds": f"{run.seconds:.3f}",
    }


# Heading and cell of each column that people see.
SHOWN: tuple[tuple[str, Callable[[Cells], str]], ...] = (
    ("rationale", lambda row: row["rationale"]),
    ("model", lambda row: row["model"]),
    ("evidence", lambda row: row["evidence"]),
    ("k", lambda row: row["k"]),
    ("stages", lambda row: row["stages"]),
    ("gold", lambda row: "shown" if row["gold"] == "true" else "hidden"),
    ("rows", lambda row: row["n"]),
    ("rejected", lambda row: row["rejected"]),
    ("valid %", lambda row: _percent(row["valid"])),
    ("agreeing %", lambda row: _percent(row["agreeing"])),
    ("fallback %", lambda row: _percent(row["fallback"])),
    ("slots heard %", lambda row: _percent(row["heard"])),
    ("slots grounded %", lambda row: _percent(row["grounded"])),
    ("spans heard %", lambda row: _percent(row["spans_heard"])),
    ("tokens in", lambda row: row["input_tokens"]),
    ("tokens out", lambda row: row["output_tokens"]),
    ("of them reasoning", lambda row: row["reasoning_tokens"]),
    ("cost", lambda row: f"{float(row['cost']):.4f} {row['currency']}" if row["cost"] else "unknown"),
)
NAME_COLUMNS = 3


def rationales_text(rows: Sequence[Cells]) -> str:
    """The table as people see it, aligned."""
    return aligned_text(
        [[heading for heading, _ in SHOWN], *([cell(row) for _, cell in SHOWN] for row in rows)], NAME_COLUMNS
    )


def html_page(title: str, rows: Sequence[Cells]) -> str:
    """The table as a self-contained HTML page."""
    name = html.escape(title)
    lines = [html_line("th", [heading for heading, _ in SHOWN], NAME_COLUMNS)]
    lines += [html_line("td", [cell(row) for _, cell in SHOWN], NAME_COLUMNS) for row in rows]
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
        "<small>valid: the list of intents passed its checks; agreeing: the rationale ends with the gold intent; "
        "fallback: an answer was made by rule; slots heard: gold fillers that a shown hypothesis holds; slots "
        "grounded: those that the rationale supports with just these words; spans heard: supported spans that are "
        "in the evidence</small>\n"
        "<table>\n" + "\n".join(lines) + "\n</table>\n</body>\n</html>\n"
    )


def _percent(cell: str) -> str:
    return f"{100 * float(cell):.2f}" if cell else "undefined"
