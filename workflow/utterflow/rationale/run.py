"""Rule `generate_rationale`: one shard of n-best lists -> rationales of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from utterflow.config.rationale import Rationale
from utterflow.files import write_jsonl
from utterflow.gather import Shard
from utterflow.jobs import check_rejected, log
from utterflow.journal import Journal
from utterflow.llm import ask as asking_llm
from utterflow.provenance import Stopwatch, input_digest, write_meta
from utterflow.rationale.backends import Machine, device_of, open_backend
from utterflow.rationale.evidence import STAGE, Case, case_of, read_rows
from utterflow.rationale.files import prompt_files
from utterflow.rationale.inputs import where_from
from utterflow.rationale.metrics import row_counts, summed
from utterflow.rationale.one_stage import ask_one_stage
from utterflow.rationale.prompts import Prompts, read_prompts
from utterflow.rationale.questions import Asking, Found
from utterflow.rationale.settings import Settings
from utterflow.rationale.text import rationale_text
from utterflow.rationale.two_stages import ask_two_stages
from utterflow.records import RationaleRow, RejectedRow, SluItem, parse_record
from utterflow.slu.labels import read_inventory

# The keys of the source's files, in their order: they stand first in a row.
SOURCE_KEYS = (
    "slurp_id",
    "nbest_k",
    "input_text",
    "gold_intent",
    "slot_candidates",
    "raw_output",
    "topk_valid",
    "topk_validation_error",
)


def generate_rationale(
    *,
    lists: Path,
    k: int,
    shard: Shard,
    settings: Settings,
    code: str,
    state: Path,
    machine: Machine,
    rationales: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Write the rationales of one shard for lists of at most `k` hypotheses.

    Answers already in the journal are taken from there. A row that cannot be used, or that got no answer at all, is
    written to `rejected`.

    Raises:
        UserError: a file cannot be used, nothing can be answered, the budget is used up, or too many rows were
            rejected.
    """
    watch = Stopwatch()
    cfg, scope = settings.rationale, input_digest(lists)
    labels, used = [Path(path) for path in cfg.labels], [Path(path) for path in prompt_files(cfg)]
    prompts = read_prompts(used, read_inventory(labels))
    rows = read_rows(lists, where_from(cfg), cfg.limit)[shard.index :: shard.count]
    log.info(
        "shard %d of %d: %d rows, lists of %d; evidence %s, %s, %s gold labels; %s %s; %d intents, %d slot types",
        *(shard.index, shard.count, len(rows), k, cfg.evidence),
        "one stage" if cfg.stages == "one" else "two stages",
        "with" if cfg.gold else "without",
        *(cfg.backend, settings.answering, len(prompts.inventory.intents), len(prompts.inventory.slot_types)),
    )
    kept, lost = sorted_out(rows, k, cfg, prompts, lists)
    found: list[Found] = []
    if kept:
        with (
            closing(open_backend(settings, machine)) as backend,
            Journal(state, asking_llm.STAGE, backend.digest, scope, shard.index, shard.count) as journal,
        ):
            ask = partial(asking_llm.ask, backend=backend, journal=journal, retries=cfg.format_retries)
            found = ask_stages([case for _, case in kept], cfg, Asking(prompts, cfg.max_new_tokens, cfg.seed, ask))
    written = [(item, case, what) for (item, case), what in zip(kept, found, strict=True) if what.lost is None]
    lost += [
        RejectedRow(id=item.id, stage=STAGE, reason=what.lost, where=str(lists))
        for (item, _), what in zip(kept, found, strict=True)
        if what.lost is not None
    ]
    order = {row.id: place for place, row in enumerate(rows)}
    lost.sort(key=lambda row: order[row.id])
    write_jsonl(rationales, (rationale_row(item, case, what, k, cfg) for item, case, what in written))
    write_jsonl(rejected, (row.row() for row in lost))
    questions = [outcome for what in found for outcome in what.outcomes.values()]
    prices = settings.server.prices if settings.server else None
    write_meta(
        meta,
        rule=STAGE,
        cfg=settings.row(),
        code=code,
        inputs=[lists, *labels, *used],
        outputs={RationaleRow.RECORD: rationales, RejectedRow.RECORD: rejected},
        seconds=watch.seconds(),
        rows={"in": len(rows), "out": len(written), "rejected": len(lost)},
        device=device_of(settings, machine),
        extra={
            "k": k,
            "model": settings.answering,
            "inventory": {"intents": len(prompts.inventory.intents), "slot_types": len(prompts.inventory.slot_types)},
            "counts": summed(row_counts(item, case, what) for (item, case), what in zip(kept, found, strict=True)),
            "currency": prices and prices.currency,
            "questions": len(questions),
            "questions_from_journal": sum(outcome.from_journal for outcome in questions),
        },
    )
    check_rejected(lost, len(rows), cfg.max_rejected)


def sorted_out(
    rows: Sequence[SluItem | RejectedRow], k: int, cfg: Rationale, prompts: Prompts, lists: Path
) -> tuple[list[tuple[SluItem, Case]], list[RejectedRow]]:
    """The rows that can be asked about, each with what is shown of it, and the others."""
    kept: list[tuple[SluItem, Case]] = []
    lost: list[RejectedRow] = []
    for row in rows:
        if isinstance(row, RejectedRow):
            lost.append(row)
            continue
        try:
            kept.append((row, case_of(row, k, cfg.evidence, cfg.gold, prompts.inventory)))
        except ValueError as error:
            lost.append(RejectedRow(id=row.id, stage=STAGE, reason=str(error), where=str(lists)))
    return kept, lost


def ask_stages(cases: Sequence[Case], cfg: Rationale, asking: Asking) -> list[Found]:
    """What came of the questions about each case, in their order.

    Raises:
        UserError: a template cannot be filled, nothing can be answered, or the budget is used up.
    """
    return ask_one_stage(cases, asking) if cfg.stages == "one" else ask_two_stages(cases, asking)


def rationale_row(item: SluItem, case: Case, found: Found, k: int, cfg: Rationale) -> dict[str, Any]:
    """A row of the file (`records.RationaleRow`), the source's keys first."""
    answer = found.answer
    full = cfg.output_mode == "full"
    value = {
        **item.row(),
        "nbest_k": k,
        "input_text": case.text,
        "gold_intent": case.reference.intent if case.reference else None,
        "slot_candidates": [slot.row() for slot in case.reference.slots] if case.reference else [],
        "raw_output": found.raw_output,
        "topk_valid": found.problem is None,
        "topk_validation_error": found.problem,
        "sees_gold": case.reference is not None,
        "final_prediction": answer and answer["final_prediction"],
        "rationale_text": answer and rationale_text(answer),
        "fallback_used": bool(found.fallbacks),
        "fallback_reason": "; ".join(f"{name}: {why}" for name, why in found.fallbacks.items()) or None,
        "rationale": answer if full else None,
        "asked": asked_rows(found) if full else None,
    }
    row = parse_record(RationaleRow, value, f"row {item.id}").row()
    return {**{name: row[name] for name in SOURCE_KEYS}, **row}


def asked_rows(found: Found) -> list[dict[str, Any]]:
    """Each question with its tries: prompt, answer, what was wrong, tokens and cost. The same after a resume."""
    return [
        {
            "question": name,
            "tries": [{key: value for key, value in item.items() if key != "from_journal"} for item in outcome.tries],
        }
        for name, outcome in found.outcomes.items()
    ]
