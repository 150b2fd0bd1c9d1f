"""Stage `summarize_asr`: one row per run, as a table for programs, for the report and for the terminal."""

from __future__ import annotations

import csv
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import atomic_writer, read_json
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import AsrMetrics, Rate, parse_record
from utterflow.report.tables import Cells, html_line, number_cell, write_tsv

log = logging.getLogger("utterflow")


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em; color: #1b1f24; }
h1 { font-size: 1.35em; margin-bottom: .2em; }
table { border-collapse: collapse; margin-top: 1.2em; }
th, td { padding: .35em .9em; text-align: right; border-bottom: 1px solid #d5d9de; white-space: nowrap; }
th { border-bottom: 2px solid #57606a; vertical-align: bottom; }
.name { text-align: left; }
small { color: #57606a; }
"""


def summarize_asr(
    metrics: Sequence[Path], *, table: Path, page: Path, meta: Path, cfg: Mapping[str, Any], code: str
) -> None:
    """Write the summary of all runs.

    Args:
        metrics: metrics files of the runs (`records.AsrMetrics`).
        table: written: tab-separated, one row per run, rates as fractions, empty where undefined.
        page: written: the same for people, a self-contained HTML page.
        cfg: `name` and `title` of the experiment.

    Raises:
        UserError: no run, or a file that is no metrics file.
    """
    watch = Stopwatch()
    runs = [read_metrics(path) for path in metrics]
    if not runs:
        raise UserError("there is no run to report", fix="add an entry to `runs` in the configuration")
    rows = [summary_row(run) for run in runs]
    write_tsv(table, rows)
    with atomic_writer(page) as handle:
        handle.write(html_page(cfg["title"] or cfg["name"], rows))
    write_meta(
        meta,
        rule="summarize_asr",
        cfg=cfg,
        code=code,
        inputs=metrics,
        outputs={"asr_summary/1": table, "asr_summary_page/1": page},
        seconds=watch.seconds(),
        rows={"in": len(runs), "out": len(rows), "rejected": 0},
    )
    log.info("%d runs\n%s", len(rows), summary_text(rows))


def read_metrics(path: Path) -> AsrMetrics:
    """Read one run's metrics file.

    Raises:
        UserError: the file is missing, or is no metrics file.
    """
    return parse_record(AsrMetrics, read_json(path), str(path))


def summary_row(run: AsrMetrics) -> dict[str, str]:
    """One run as a row of the summary table; `oracle` is at the largest list length, `oracle_n`."""
    total, longest = run.total, max(run.total.oracle)
    return {
        "corpus": run.corpus,
        "asr": run.asr,
        "scoring": run.scoring,
        "normalizer": run.normalizer,
        "n": str(total.utterances),
        "rejected": str(run.rows["rejected"] + sum(run.rejected_before.values())),
        "words": str(total.words),
        "confidence": number_cell(run.confidence),
        **_interval("wer", total.wer),
        **_interval("mbr", total.mbr),
        "oracle_n": str(longest),
        **_interval("oracle", total.oracle[longest]),
        **_interval("compositional_oracle", total.compositional_oracle),
        "cer": number_cell(total.cer),
        "sentence_error_rate": number_cell(total.sentence_error_rate),
        "relative_oracle_gain": number_cell(relative_gain(total.wer, total.oracle[longest])),
        "mean_hypotheses": number_cell(total.mean_hypotheses),
        "mean_distinct_hypotheses": number_cell(total.mean_distinct_hypotheses),
        "fallback_share": number_cell(total.fallback_share),
    }


def relative_gain(base: Rate, better: Rate) -> float | None:
    """How much lower the better rate is, as a share of the base; None where the base is zero or undefined."""
    if not base.value or better.value is None:
        return None
    return (base.value - better.value) / base.value


# Heading and cell of each column that people see.
SHOWN: tuple[tuple[str, Callable[[Cells], str]], ...] = (
    ("corpus", lambda row: row["corpus"]),
    ("ASR", lambda row: row["asr"]),
    ("scoring", lambda row: row["scoring"]),
    ("utterances", lambda row: row["n"]),
    ("rejected", lambda row: row["rejected"]),
    ("WER %", lambda row: _with_interval(row, "wer")),
    ("MBR WER %", lambda row: _with_interval(row, "mbr")),
    ("oracle WER %", lambda row: f"{_with_interval(row, 'oracle')} @{row['oracle_n']}"),
    ("comp. oracle WER %", lambda row: _percent(row["compositional_oracle"])),
    ("CER %", lambda row: _percent(row["cer"])),
    ("oracle gain %", lambda row: _percent(row["relative_oracle_gain"])),
    ("distinct", lambda row: f"{float(row['mean_distinct_hypotheses']):.2f}"),
)
NAME_COLUMNS = 3


def shown_table(rows: Sequence[Cells]) -> list[list[str]]:
    """Heading and rows as people see them."""
    return [[heading for heading, _ in SHOWN], *([cell(row) for _, cell in SHOWN] for row in rows)]


def summary_text(rows: Sequence[Cells]) -> str:
    """The summary as an aligned text table."""
    return aligned_text(shown_table(rows), NAME_COLUMNS)


def aligned_text(table: Sequence[Sequence[str]], name_columns: int) -> str:
    """A table with its heading underlined; the first columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < name_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def html_page(title: str, rows: Sequence[Cells]) -> str:
    """The summary as a self-contained HTML page."""
    heading, *body = shown_table(rows)
    lines = [html_line("th", heading, NAME_COLUMNS), *(html_line("td", line, NAME_COLUMNS) for line in body)]
    name = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
        f"<small>{_interval_note(rows)}; WER of the first hypothesis; oracle gain: how much lower the oracle "
        "WER is than the WER; distinct: mean number of different hypotheses after normalisation</small>\n"
        "<table>\n" + "\n".join(lines) + "\n</table>\n</body>\n</html>\n"
    )


def read_summary(table: Path, as_text: Callable[[Sequence[Cells]], str]) -> str:
    """A summary table that a run wrote, as text.

    Raises:
        UserError: the file is missing, or is no summary table.
    """
    try:
        with table.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle, delimiter="\t"))
        text = as_text(rows)
    except FileNotFoundError:
        raise UserError(
            "there is no summary yet", where=str(table), fix="run `snakemake report --cores 1`, or give --path"
        ) from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(
            "this is not a summary table",
            where=str(table),
            fix="give the asr_summary.tsv or corrections.tsv of a finished run",
        ) from None
    if not rows:
        raise UserError("the summary is empty", where=str(table), fix="run `snakemake report --cores 1` again")
    return text


def _interval(name: str, item: Rate) -> dict[str, str]:
    return {name: number_cell(item.value), f"{name}_low": number_cell(item.low), f"{name}_high": number_cell(item.high)}


def _percent(cell: str) -> str:
    return f"{100 * float(cell):.2f}" if cell else "undefined"


def _with_interval(row: Cells, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return _percent(row[name]) + (f" [{_percent(low)}, {_percent(high)}]" if low and high else "")


def _interval_note(rows: Sequence[Cells]) -> str:
    levels = sorted({f"{100 * float(row['confidence']):g}%" for row in rows})
    return f"[low, high]: {' or '.join(levels)} bootstrap interval"
