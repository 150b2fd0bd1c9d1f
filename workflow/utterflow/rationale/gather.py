"""Rule `gather_rationales`: the shards' rationales -> one file in the order of the lists, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.files import read_json, write_json
from utterflow.gather import gather_shards
from utterflow.provenance import Stopwatch, side_file, write_meta
from utterflow.rationale.evidence import read_rows
from utterflow.rationale.metrics import question_counts, share, slot_counts, summed
from utterflow.rationale.records import RationaleMetrics
from utterflow.records import RationaleRow, RejectedRow
from utterflow.slu.items import WhereFrom

QUESTIONS = ("one_stage", "intent_candidates", "slot_candidates", "intent_pruning", "slot_grounding")


def gather_rationales(
    *,
    lists: Path,
    where_from: WhereFrom,
    limit: int | None,
    shards: Sequence[Path],
    rejected_shards: Sequence[Path],
    name: str,
    k: int,
    cfg: Mapping[str, Any],
    code: str,
    rationales: Path,
    rejected: Path,
    metrics: Path,
    meta: Path,
) -> None:
    """Put the shards' rows back into the order of the lists and sum their counts.

    Raises:
        UserError: a row of the lists is in no shard, or a shard holds a row that the lists do not.
    """
    watch = Stopwatch()
    order = _order(lists, where_from, limit, len(shards))
    rows = gather_shards(order, shards, rejected_shards, rationales, rejected, str(lists))
    parts = [read_json(side_file(path)) for path in shards]
    write_json(metrics, metrics_of(name, k, parts, rows).row())
    write_meta(
        meta,
        rule="gather_rationales",
        cfg=cfg,
        code=code,
        inputs=[lists, *shards],
        outputs={
            RationaleRow.RECORD: rationales,
            RejectedRow.RECORD: rejected,
            RationaleMetrics.RECORD: metrics,
        },
        seconds=round(sum(part["seconds"] for part in parts), 3),
        rows=rows,
        device=", ".join(sorted({part["device"] for part in parts})),
        extra={
            "gather_seconds": watch.seconds(),
            **{key: sum(part[key] for part in parts) for key in ("questions", "questions_from_journal")},
        },
    )


def metrics_of(name: str, k: int, parts: Sequence[Mapping[str, Any]], rows: Mapping[str, int]) -> RationaleMetrics:
    """The metrics from the side files of the shards."""
    first, counts = parts[0], summed(part["counts"] for part in parts)
    cfg = first["config"]["rationale"]
    asked = {question: question_counts(counts, question) for question in QUESTIONS if f"{question}.asked" in counts}
    valid, labelled, agreeing, fallback = (
        int(counts.get(key, 0)) for key in ("valid", "labelled", "agreeing", "fallback")
    )
    costs = [part.cost for part in asked.values() if part.cost is not None]
    return RationaleMetrics(
        rationale=name,
        k=k,
        **{key: cfg[key] for key in ("backend", "evidence", "stages", "gold")},
        model=first["model"],
        **first["inventory"],
        rows=dict(rows),
        valid=valid,
        valid_share=share(valid, rows["out"]),
        labelled=labelled,
        agreeing=agreeing,
        agreeing_share=share(agreeing, labelled),
        fallback=fallback,
        fallback_share=share(fallback, rows["out"]),
        slots=slot_counts(counts, listens=cfg["evidence"] == "audio"),
        questions=asked,
        tries=sum(part.tries for part in asked.values()),
        input_tokens=sum(part.input_tokens for part in asked.values()),
        cached_tokens=sum(part.cached_tokens for part in asked.values()),
        output_tokens=sum(part.output_tokens for part in asked.values()),
        reasoning_tokens=sum(part.reasoning_tokens for part in asked.values()),
        cost=round(sum(costs), 9) if costs else None,
        currency=first["currency"],
        seconds=round(sum(part["seconds"] for part in parts), 3),
    )


def _order(lists: Path, where_from: WhereFrom, limit: int | None, shards: int) -> Iterator[tuple[int, str]]:
    """Row i of the lists is in shard i modulo `shards`."""
    for index, row in enumerate(read_rows(lists, where_from, limit)):
        yield index % shards, row.id
