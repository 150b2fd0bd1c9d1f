"""`utterflow report`: results on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ASR_SUMMARY = Path("results/report/asr_summary.tsv")
CORRECTIONS = Path("results/report/corrections.tsv")


def add_parser(subparsers: Any) -> None:
    """Add `report summary`."""
    commands = subparsers.add_parser("report", help="results on the terminal").add_subparsers(
        dest="what", required=True, metavar="summary"
    )
    summary = commands.add_parser("summary", help="one line per run")
    summary.add_argument(
        "--path", type=Path, metavar="FILE", help=f"a summary table; default: {ASR_SUMMARY} and {CORRECTIONS}"
    )
    summary.set_defaults(func=run_summary)


def run_summary(args: argparse.Namespace) -> int:
    """`utterflow report summary`."""
    from utterflow.report.corrections import corrections_text
    from utterflow.report.summary import read_summary, summary_text

    default = [path for path in (ASR_SUMMARY, CORRECTIONS) if path.is_file()] or [ASR_SUMMARY]
    tables = [args.path] if args.path else default
    print(
        "\n\n".join(read_summary(path, corrections_text if _of_corrections(path) else summary_text) for path in tables)
    )
    return 0


def _of_corrections(table: Path) -> bool:
    return table.is_file() and table.read_text(encoding="utf-8", errors="replace").startswith("correction\t")
