"""`utterflow score`: error rates of files, as one JSON object on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from utterflow.evaluate.normalize import NAMES

WER_HELP = """Word and character error rate of hypotheses against references (JSON Lines, rows {id, text}).

Prints one JSON object: wer and cer are fractions over the whole file, null where the references are
empty. A reference without hypothesis counts as all deleted, and in `missing`; a hypothesis without
reference is an error."""

NBEST_HELP = """Word error rate of the first hypothesis, of the minimum Bayes risk choice, of the oracle
and of the compositional oracle of n-best lists. JSON Lines, best hypothesis first, rows
{input: [...], output}, {input_beams: [...], ground_truth} or {asr_hypotheses: [{text}], text}.

Prints one JSON object; rates are fractions over the whole file."""


def add_parser(subparsers: Any) -> None:
    """Add `score wer` and `score nbest`."""
    commands = subparsers.add_parser("score", help="error rates of texts and n-best lists").add_subparsers(
        dest="what", required=True, metavar="wer|nbest"
    )
    wer = _command(commands, "wer", "one hypothesis per reference", WER_HELP)
    wer.add_argument("--ref", type=Path, required=True, metavar="FILE", help="references, rows {id, text}")
    wer.add_argument("--hyp", type=Path, required=True, metavar="FILE", help="hypotheses, rows {id, text}")
    wer.set_defaults(func=run_wer)
    nbest = _command(commands, "nbest", "n-best lists", NBEST_HELP)
    nbest.add_argument("--input", type=Path, required=True, metavar="FILE", help="n-best lists with references")
    nbest.add_argument(
        "--n", type=_positive, metavar="N", help="only the first N hypotheses of each list; default: all"
    )
    nbest.set_defaults(func=run_nbest)


def run_wer(args: argparse.Namespace) -> int:
    """`utterflow score wer`."""
    from utterflow.evaluate.files import score_texts

    result = score_texts(args.ref, args.hyp, args.normalizer)
    if result["missing"]:
        print(f"warning: {result['missing']} of {result['n']} references have no hypothesis", file=sys.stderr)
    print(json.dumps(result))
    return 0


def run_nbest(args: argparse.Namespace) -> int:
    """`utterflow score nbest`."""
    from utterflow.evaluate.files import score_lists

    print(json.dumps(score_lists(args.input, args.normalizer, args.n)))
    return 0


def _command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--normalizer", choices=NAMES, default="none", help="text normalisation first; default: none")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value
