"""`utterflow report`: results on the terminal."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = Path("results/report/asr_summary.tsv")


def add_parser(subparsers: Any) -> None:
    """Add `report summary`."""
    commands = subparsers.add_parser("report", help="results on the terminal").add_subparsers(
        dest="what", required=True, metavar="summary"
    )
    summary = commands.add_parser("summary", help="one line per run")
    summary.add_argument(
        "--path", type=Path, default=SUMMARY, metavar="FILE", help=f"the summary table; default: {SUMMARY}"
    )
    summary.set_defaults(func=run_summary)


def run_summary(args: argparse.Namespace) -> int:
    """`utterflow report summary`."""
    from utterflow.report.summary import print_summary

    print_summary(args.path)
    return 0
