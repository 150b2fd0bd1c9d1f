"""`utterflow report`: results on the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utterflow.report.tables import Cells

FOLDER = Path("results/report")
TABLES = ("asr_summary.tsv", "corrections.tsv", "rationales.tsv", "slu.tsv")


def add_parser(subparsers: Any) -> None:
    """Add `report summary`."""
    commands = subparsers.add_parser("report", help="results on the terminal").add_subparsers(
        dest="what", required=True, metavar="summary"
    )
    summary = commands.add_parser("summary", help="one line per run")
    summary.add_argument(
        "--path", type=Path, metavar="FILE", help=f"a summary table; default: those of {', '.join(TABLES)} in {FOLDER}"
    )
    summary.set_defaults(func=run_summary)


def run_summary(args: argparse.Namespace) -> int:
    """`utterflow report summary`."""
    from utterflow.report.summary import read_summary

    found = [FOLDER / name for name in TABLES if (FOLDER / name).is_file()] or [FOLDER / TABLES[0]]
    tables = [args.path] if args.path else found
    print("\n\n".join(read_summary(path, _as_text(path)) for path in tables))
    return 0


def _as_text(table: Path) -> Callable[[Sequence[Cells]], str]:
    """What prints a table, told by the name of its first column."""
    from utterflow.report.corrections import corrections_text
    from utterflow.report.rationales import rationales_text
    from utterflow.report.slu import slu_text
    from utterflow.report.summary import summary_text

    kinds = {"correction": corrections_text, "rationale": rationales_text, "understanding": slu_text}
    if not table.is_file():
        return summary_text
    first = table.read_text(encoding="utf-8", errors="replace").partition("\t")[0]
    return kinds.get(first, summary_text)
