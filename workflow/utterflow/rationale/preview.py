"""`utterflow preview rationale`: prompts and answers of the first rows, on the terminal.

Answers come through the journal of the rule `generate_rationale`: what was asked here is not asked there again, and the
other way round.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utterflow.config.commands import add_configfile, config_of
from utterflow.config.models import Config
from utterflow.errors import UserError

if TYPE_CHECKING:
    from utterflow.llm.ask import Outcome, Question
    from utterflow.rationale.evidence import Case
    from utterflow.rationale.questions import Ask, Found
    from utterflow.rationale.settings import Settings
    from utterflow.records import RejectedRow, SluItem

STATE = Path("results/.state")
NOT_ASKED = "not asked (--prompts-only)"
INTERRUPTED = 130  # exit code, as shells have it
DESCRIPTION = """Prompts and answers of the first rows of a rationale, of all its questions.

What is asked here enters the journal below results/.state, so that `snakemake` does not ask (and pay) for it again.
With --prompts-only nothing is asked; the candidates in the prompts of a second stage are then made by rule."""


@dataclass
class Seen:
    """The questions that were asked, and what came of them."""

    ask: Ask
    questions: dict[str, Question] = field(default_factory=dict)

    def __call__(self, questions: Sequence[Question]) -> list[Outcome]:
        self.questions |= {question.id: question for question in questions}
        return self.ask(questions)


def add_parser(subparsers: Any) -> None:
    """Add `preview rationale`."""
    commands = subparsers.add_parser("preview", help="what a model is asked, and what it answers").add_subparsers(
        dest="what", required=True, metavar="rationale"
    )
    parser: argparse.ArgumentParser = commands.add_parser(
        "rationale",
        help="prompts and answers of the first rows",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="a name under `rationales`")
    add_configfile(parser)
    parser.add_argument("--k", type=_positive, metavar="K", help="length of the lists; default: the first configured")
    parser.add_argument("--rows", type=_positive, default=3, metavar="N", help="how many rows; default: 3")
    parser.add_argument("--prompts-only", action="store_true", help="ask nothing")
    parser.add_argument("--json", action="store_true", help="one JSON list: questions, answers, and the file's rows")
    parser.set_defaults(func=run_preview)


def run_preview(args: argparse.Namespace) -> int:
    """`utterflow preview rationale`."""
    config = config_of(args)
    if args.name not in config.rationales:
        known = ", ".join(config.rationales) or "there is none"
        raise UserError(f"no entry of `rationales` is named {args.name}", fix=f"take one of these: {known}")
    _check_lists(config, args)
    try:
        rows = preview(config, args.name, args.k, args.rows, prompts_only=args.prompts_only)
    except KeyboardInterrupt:
        print("interrupted; answers that came are in the journal, and are not asked for again", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(rows, ensure_ascii=False, indent=2) if args.json else "\n\n".join(map(_text, rows)))
    return 0


def preview(config: Config, name: str, k: int | None, count: int, *, prompts_only: bool) -> list[dict[str, Any]]:
    """What is asked about the first rows, and the rows of the file.

    Returns:
        Per row `id`, `questions` (each with `question`, `messages` and `tries`), and `row` or, with the reason,
        `rejected`.

    Raises:
        UserError: a file cannot be used, or nothing can be answered.
    """
    from utterflow.rationale.evidence import read_rows
    from utterflow.rationale.files import prompt_files
    from utterflow.rationale.inputs import lists_file, placement, settings, where_from
    from utterflow.rationale.prompts import read_prompts
    from utterflow.rationale.questions import Asking
    from utterflow.rationale.run import ask_stages, sorted_out
    from utterflow.rationale.settings import settings_of
    from utterflow.slu.labels import read_inventory

    placed = placement(config, name)
    set_up = settings_of(settings(config, name), placed)
    cfg = set_up.rationale
    length = k or config.rationales[name].nbest_values[0]
    prompts = read_prompts(
        [Path(path) for path in prompt_files(cfg)], read_inventory([Path(path) for path in cfg.labels])
    )
    lists = Path(lists_file(config, name))
    rows = read_rows(lists, where_from(cfg), min(count, cfg.limit or count))
    kept, lost = sorted_out(rows, length, cfg, prompts, lists)
    cases = [case for _, case in kept]

    def answered(ask: Ask) -> tuple[Seen, list[Found]]:
        seen = Seen(ask)
        return seen, ask_stages(cases, cfg, Asking(prompts, cfg.max_new_tokens, cfg.seed, seen))

    seen, found = answered(_unasked) if prompts_only else _with_backend(answered, set_up, placed, lists)
    shown = {
        item.id: _shown(item, case, what, seen, length, set_up, prompts_only)
        for (item, case), what in zip(kept, found, strict=True)
    }
    return [shown.get(row.id) or {"id": row.id, "questions": [], "rejected": _reason(row, lost)} for row in rows]


def _with_backend(
    answered: Callable[[Ask], tuple[Seen, list[Found]]], set_up: Settings, placed: dict[str, Any], lists: Path
) -> tuple[Seen, list[Found]]:
    from utterflow.journal import Journal
    from utterflow.llm import ask as asking_llm
    from utterflow.provenance import input_digest
    from utterflow.rationale.backends import machine_of, open_backend

    cfg = set_up.rationale
    with (
        closing(open_backend(set_up, machine_of(placed, cfg.threads, cfg.gpus))) as backend,
        Journal(STATE, asking_llm.STAGE, backend.digest, input_digest(lists)) as journal,
    ):
        return answered(partial(asking_llm.ask, backend=backend, journal=journal, retries=cfg.format_retries))


def _unasked(questions: Sequence[Question]) -> list[Outcome]:
    """As if a model had used up its tokens each time: so a rule makes the candidates that later prompts show."""
    from utterflow.llm.ask import Outcome, Usage
    from utterflow.rationale.questions import EMPTY

    return [
        Outcome(question.id, None, None, None, f"{EMPTY}: {NOT_ASKED}", (), Usage(), False) for question in questions
    ]


def _shown(
    item: SluItem, case: Case, found: Found, seen: Seen, k: int, set_up: Settings, prompts_only: bool
) -> dict[str, Any]:
    from utterflow.rationale.run import asked_rows, rationale_row

    messages = {name: seen.questions[outcome.id].messages for name, outcome in found.outcomes.items()}
    questions = [
        {**asked, "messages": [message.row() for message in messages[asked["question"]]]} for asked in asked_rows(found)
    ]
    shown: dict[str, Any] = {"id": item.id, "questions": questions}
    if prompts_only:
        return shown
    if found.lost is not None:
        return {**shown, "rejected": found.lost}
    return {**shown, "row": rationale_row(item, case, found, k, set_up.rationale)}


def _reason(row: SluItem | RejectedRow, lost: Sequence[RejectedRow]) -> str:
    return next(item.reason for item in lost if item.id == row.id)


def _text(row: dict[str, Any]) -> str:
    """A row for people."""
    blocks = []
    for question in row["questions"]:
        blocks.append(f"=== {row['id']}: {question['question']} ===")
        blocks += [f"[{message['role']}]\n{_content(message['content'])}" for message in question["messages"]]
        for number, item in enumerate(question["tries"], start=1):
            verdict = item["problem"] or "passed its checks"
            blocks.append(f"--- answer {number}: {verdict} ---\n{item['answer']}")
    if "rejected" in row:
        blocks.append(f"=== {row['id']}: rejected ===\n{row['rejected']}")
    elif "row" in row:
        text = row["row"]["rationale_text"] or f"unusable: {row['row']['topk_validation_error']}"
        note = f"\n\nmade by rule: {row['row']['fallback_reason']}" if row["row"]["fallback_used"] else ""
        blocks.append(f"=== {row['id']}: the rationale ===\n{text}{note}")
    return "\n\n".join(blocks)


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(
        part["text"] if part["type"] == "text" else f"({part['type']}: {part['path']})" for part in content
    )


def _check_lists(config: Config, args: argparse.Namespace) -> None:
    from utterflow.rationale.inputs import lists_file

    entry, path = config.rationales[args.name], lists_file(config, args.name)
    if Path(path).is_file():
        return
    files = f" --configfile {' '.join(map(str, args.configfile))}" if args.configfile else ""
    makes = entry.lists is None or entry.lists in config.downloads
    fix = f"run `snakemake --cores all {path}{files}`" if makes else f"correct `rationales.{args.name}.lists`"
    raise UserError("the n-best lists are not there yet" if makes else "file not found", where=path, fix=fix)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value
