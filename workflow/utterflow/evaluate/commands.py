"""`utterflow score`: error rates and metrics of files, as one JSON object on standard output."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from utterflow.config.scoring import Bootstrap
from utterflow.evaluate.normalize import NAMES

WER_HELP = """Word and character error rate of hypotheses against references (JSON Lines, rows {id, text}).

Prints one JSON object: wer and cer are fractions over the whole file, null where the references are
empty. A reference without hypothesis counts as all deleted, and in `missing`; a hypothesis without
reference is an error."""

NBEST_HELP = """Word error rate of the first hypothesis, of the minimum Bayes risk choice, of the oracle
and of the compositional oracle of n-best lists. JSON Lines, best hypothesis first, rows
{input: [...], output}, {input_beams: [...], ground_truth} or {asr_hypotheses: [{text}], text}.

Prints one JSON object; rates are fractions over the whole file."""

SLU_HELP = """SLURP's metrics of scenario, action and entities. Both files as SLURP has them, JSON Lines: gold rows are
its annotations (scenario, action, tokens, entities, recordings), predictions
{file, scenario, action, entities: [{type, filler}]}, with --text {slurp_id, ...}.

Prints one JSON object: the official numbers as fractions, which leave out gold rows without a
prediction; `coverage`, the share of those with one; and `strict`, the numbers with a missing prediction
taken as wrong. Of several predictions for one recording the last one counts."""

PRONUNCIATION_HELP = """Pronunciation assessment and mispronunciation detection on speechocean762: correlation and mean
absolute error of the scores, word and phone error rates, detection and diagnosis of mispronunciations.
Predictions are JSON Lines, rows {id, accuracy, fluency, prosodic, total, word_transcript,
phoneme_transcript}; fields may be missing or null.

Prints one JSON object. Unusable scores are left out of their aspect and counted in `answered`; unusable
transcripts and missing rows count as empty transcripts. A prediction for an unknown utterance is an error."""


def add_parser(subparsers: Any) -> None:
    """Add `score wer`, `score nbest`, `score slu` and `score pronunciation`."""
    commands = subparsers.add_parser(
        "score", help="error rates of texts and n-best lists, metrics of understood commands"
    ).add_subparsers(dest="what", required=True, metavar="wer|nbest|slu|pronunciation")
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
    slu = _parser(commands, "slu", "scenario, action and entities", SLU_HELP)
    slu.add_argument("--gold", type=Path, required=True, metavar="FILE", help="SLURP annotations")
    slu.add_argument("--pred", type=Path, required=True, metavar="FILE", help="predictions in SLURP's format")
    slu.add_argument("--text", action="store_true", help="pair by slurp_id instead of by recording")
    slu.add_argument("--average", choices=("micro", "macro"), default="micro", help="over labels; default: micro")
    slu.set_defaults(func=run_slu)
    _add_pronunciation(commands)


def _add_pronunciation(commands: Any) -> None:
    usual = Bootstrap()
    parser = _parser(commands, "pronunciation", "pronunciation scores and mispronunciations", PRONUNCIATION_HELP)
    parser.add_argument("--gold", type=Path, required=True, metavar="FILE", help="speechocean762's scores.json")
    parser.add_argument("--pred", type=Path, required=True, metavar="FILE", help="predictions")
    parser.add_argument(
        "--utt2spk", type=Path, metavar="FILE", help="the split's Kaldi table: only its utterances count; default: all"
    )
    parser.add_argument(
        "--normalizer", choices=NAMES, default="basic", help="of the word transcripts, on both sides; default: basic"
    )
    parser.add_argument(
        "--samples", type=_count, default=usual.samples, metavar="N",
        help=f"bootstrap resamples, 0: no intervals; default: {usual.samples}",
    )  # fmt: skip
    parser.add_argument(
        "--unit", choices=("utterance", "speaker"), default=usual.unit,
        help=f"what is resampled; speaker needs --utt2spk; default: {usual.unit}",
    )  # fmt: skip
    parser.add_argument("--phones", action="store_true", help="add the tables of phones and of confusions")
    parser.set_defaults(func=run_pronunciation)


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


def run_slu(args: argparse.Namespace) -> int:
    """`utterflow score slu`."""
    from utterflow.slu.files import score_files

    result = score_files(args.gold, args.pred, text=args.text, average=args.average)
    kind = "slurp_id" if args.text else "file"
    for name, what in {
        "missing": f"gold rows of {result['gold']} have no prediction: they are left out, and wrong in `strict`",
        "unknown": f"predictions have a {kind} that gold does not have: they are left out",
        "repeated": f"predictions have a {kind} that a later one has too: the last one counts",
        "odd_entities": "predicted entities have more keys than type and filler: the official script, which compares "
        "whole objects, would take them as wrong in entity_f1",
    }.items():
        if result[name]:
            print(f"warning: {result[name]} {what}", file=sys.stderr)
    print(json.dumps(result))
    return 0


def run_pronunciation(args: argparse.Namespace) -> int:
    """`utterflow score pronunciation`."""
    from utterflow.pronunciation.files import score_files

    result = score_files(
        args.gold,
        args.pred,
        speakers=args.utt2spk,
        normalizer_name=args.normalizer,
        bootstrap=Bootstrap(samples=args.samples, unit=args.unit),
        with_phones=args.phones,
    )
    if result.missing:
        hint = "" if args.utt2spk else "; --utt2spk scores one split only"
        print(
            f"warning: {result.missing} of {result.utterances} utterances have no prediction: their transcripts count "
            f"as empty{hint}",
            file=sys.stderr,
        )
    for name, answered in result.answered.items():
        unusable = {kind: count for kind, count in answered.unusable.items() if kind != "missing"}
        if unusable:
            kinds = ", ".join(f"{count} {kind}" for kind, count in unusable.items())
            print(f"warning: {name}: {sum(unusable.values())} values cannot be used: {kinds}", file=sys.stderr)
    print(json.dumps(result.row()))
    return 0


def _command(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser = _parser(commands, name, summary, description)
    parser.add_argument("--normalizer", choices=NAMES, default="none", help="text normalisation first; default: none")
    return parser


def _parser(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value
