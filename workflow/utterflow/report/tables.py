"""What all tables of the report share: cells, the file for programs, a line of the page."""

from __future__ import annotations

import csv
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from utterflow.files import atomic_writer

Cells = Mapping[str, str]


def write_tsv(path: Path, rows: Sequence[Cells]) -> None:
    """Write at least one row, tab-separated, below a line with the names of the columns."""
    with atomic_writer(path) as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def number_cell(value: float | None) -> str:
    """Six decimals; empty where there is no number."""
    return "" if value is None else f"{value:.6f}"


def html_line(tag: str, cells: Sequence[str], names: int) -> str:
    """A line of an HTML table; the first `names` cells are names."""
    kinds = [' class="name"' if index < names else "" for index in range(len(cells))]
    parts = [f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)]
    return f"<tr>{''.join(parts)}</tr>"
