"""Rule `index_logits`: stored logits of an npz -> rows that say where each trial's are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import write_jsonl
from utterflow.gather import Shard
from utterflow.jobs import check_rejected, log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import RejectedRow, TrialRow
from utterflow.signals.stored import array_names, check_array
from utterflow.signals.transcripts import read_transcripts

STAGE = "index_logits"


def index_logits(
    *,
    logits: Path,
    transcripts: Path | None,
    partition: str,
    shard: Shard,
    cfg: Mapping[str, Any],
    code: str,
    trials: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Write a row for each array of one shard of an npz; of the arrays only the headers are read.

    Args:
        cfg: `field` of a .jsonl, `held_out` and `max_rejected`.

    Raises:
        UserError: a file cannot be read, there are more or fewer transcripts than arrays, or too many are rejected.
    """
    watch = Stopwatch()
    names = array_names(logits)
    texts = read_transcripts(transcripts, cfg["field"]) if transcripts else [None] * len(names)
    if len(texts) != len(names):
        raise UserError(
            f"{len(names)} arrays in {logits}, but {len(texts)} transcripts in {transcripts}",
            where=str(transcripts),
            fix="give the transcripts of these very arrays, one for each, in the same order",
        )
    rows: list[TrialRow] = []
    lost: list[RejectedRow] = []
    classes: set[int] = set()
    for index in range(shard.index, len(names), shard.count):
        name = names[index]
        row_id = f"{partition}.{name}"
        try:
            frames, width = check_array(logits, name)
        except ValueError as error:
            lost.append(RejectedRow(id=row_id, stage=STAGE, reason=str(error), where=f"{logits}, {name}"))
            continue
        classes.add(width)
        rows.append(
            TrialRow(
                id=row_id,
                index=index,
                npz=str(logits),
                array=name,
                frames=frames,
                text=texts[index],
                logits="held_out" if cfg["held_out"] else "unknown",
            )
        )
    log.info("%d arrays of %s, with %s classes", len(rows), logits, ", ".join(map(str, sorted(classes))) or "no")
    if len(classes) > 1:
        log.warning("the arrays have different numbers of classes: %s", sorted(classes))
    write_jsonl(trials, (row.row() for row in rows))
    write_jsonl(rejected, (row.row() for row in lost))
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg,
        code=code,
        inputs=[logits, *([transcripts] if transcripts else [])],
        outputs={TrialRow.RECORD: trials, RejectedRow.RECORD: rejected},
        seconds=watch.seconds(),
        rows={"in": len(rows) + len(lost), "out": len(rows), "rejected": len(lost)},
    )
    check_rejected(lost, len(rows) + len(lost), cfg["max_rejected"])
