"""Training data: SFT rows -> token ids and labels, with what was rejected and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utterflow.config.training import Training
from utterflow.errors import UserError
from utterflow.finetune.batches import epoch_order, pack_rows, padding_share
from utterflow.finetune.records import DataStatistics
from utterflow.jobs import log
from utterflow.records import RejectedRow, SftRow, read_records
from utterflow.sft.tokenize import IGNORED

STAGE = "finetune"
Encode = Callable[[SftRow], tuple[list[int], list[int]]]


@dataclass(frozen=True)
class EncodedSet:
    """A data set as the trainer takes it.

    Attributes:
        sequences: `datasets.Dataset` with `input_ids`, `labels` and, where packed, `seq_lengths` per sequence.
        lengths: tokens per sequence.
    """

    sequences: Any
    lengths: list[int]
    rejected: list[RejectedRow]
    statistics: DataStatistics


def encode_set(path: Path, encode: Encode, training: Training, *, train: bool) -> EncodedSet | None:
    """Encode a file of SFT rows; None where it holds no row at all.

    A row that cannot be encoded, or with more than `max_length` tokens, is rejected, never cut. Validation rows are
    not packed: their loss then does not depend on `packing`.

    Raises:
        UserError: a row does not fit its record, or an id comes twice.
    """
    ids: list[NDArray[np.int32]] = []
    labels: list[NDArray[np.int32]] = []
    rejected: list[RejectedRow] = []
    seen: set[str] = set()
    for row in read_records(path, SftRow):
        if row.id in seen:
            raise UserError(f"the id {row.id!r} comes twice", where=str(path), fix="give each row an id of its own")
        seen.add(row.id)
        try:
            row_ids, row_labels = encode(row)
            if len(row_ids) > training.max_length:
                raise ValueError(f"too long: {len(row_ids)} tokens, max_length is {training.max_length}")
        except ValueError as error:
            rejected.append(RejectedRow(id=row.id, stage=STAGE, reason=str(error), where=str(path)))
            continue
        ids.append(np.asarray(row_ids, dtype=np.int32))
        labels.append(np.asarray(row_labels, dtype=np.int32))
    if not seen:
        return None
    return _encoded(ids, labels, rejected, training, train=train)


def _encoded(
    ids: Sequence[NDArray[np.int32]],
    labels: Sequence[NDArray[np.int32]],
    rejected: list[RejectedRow],
    training: Training,
    *,
    train: bool,
) -> EncodedSet:
    from datasets import Dataset  # type: ignore[import-untyped]

    sequences = Dataset.from_dict({"input_ids": ids, "labels": labels})
    if train and training.packing and len(ids):
        sequences = pack_rows(sequences, training.max_length)
        lengths = [sum(parts) for parts in sequences["seq_lengths"]]
    else:
        lengths = [len(row) for row in ids]
    order = first_order(lengths, training) if train else list(range(len(lengths)))
    tokens = sum(map(len, ids))
    statistics = DataStatistics(
        rows=len(ids),
        rejected=len(rejected),
        tokens=tokens,
        answer_tokens=sum(int((row != IGNORED).sum()) for row in labels),
        longest=max(map(len, ids), default=0),
        mean_length=round(tokens / max(len(ids), 1), 2),
        sequences=len(lengths),
        padding_share=round(padding_share(lengths, order, training.batch_size), 4),
    )
    return EncodedSet(sequences, lengths, rejected, statistics)


def is_grouped(training: Training) -> bool:
    return training.group_by_length and not training.packing


def first_order(lengths: Sequence[int], training: Training) -> list[int]:
    """The order of the first epoch."""
    batch = training.batch_size * training.world_size
    return epoch_order(lengths, batch, grouped=is_grouped(training), seed=training.seed, epoch=0)


def tokens_seen(lengths: Sequence[int], training: Training, epochs: float) -> int:
    """Tokens without padding of so many passes."""
    batch = training.batch_size * training.world_size
    whole, part = divmod(epochs, 1)
    order = epoch_order(lengths, batch, grouped=is_grouped(training), seed=training.seed, epoch=int(whole))
    return int(whole) * sum(lengths) + sum(lengths[index] for index in order[: round(part * len(order))])


def log_set(name: str, encoded: EncodedSet) -> None:
    facts = encoded.statistics
    log.info(
        "%s: %d rows (%d rejected), %d tokens, %d of them answers, longest row %d; %d sequences, %.1f%% padding",
        *(name, facts.rows, facts.rejected, facts.tokens, facts.answer_tokens, facts.longest, facts.sequences),
        100 * facts.padding_share,
    )
