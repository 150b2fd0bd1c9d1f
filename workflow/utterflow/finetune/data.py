"""Training data: SFT rows -> token ids and labels, with what was rejected and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utterflow.config.training import Training
from utterflow.errors import UserError
from utterflow.files import file_sha256
from utterflow.finetune.batches import epoch_order, pack_rows, padding_share
from utterflow.finetune.records import DataStatistics
from utterflow.jobs import log
from utterflow.records import RejectedRow, SftRow, read_records
from utterflow.sft.tokenize import IGNORED, audio_parts, part_text

STAGE = "finetune"
Encode = Callable[[SftRow], tuple[list[int], list[int]]]


@dataclass(frozen=True)
class EncodedSet:
    """A data set as the trainer takes it.

    Attributes:
        sequences: `datasets.Dataset` with `input_ids`, `labels` and, where packed, `seq_lengths` per sequence; with
            `audio` (`tokenize.part_text` of each recording) and `weight` where any row has them.
        lengths: tokens per sequence.
        recordings: SHA-256 of each recording's file, by path.
    """

    sequences: Any
    lengths: list[int]
    rejected: list[RejectedRow]
    statistics: DataStatistics
    recordings: dict[str, str] = field(default_factory=dict)

    @property
    def all_have_audio(self) -> bool | None:
        """Whether every row has recordings; None: none has any."""
        if "audio" not in self.sequences.column_names:
            return None
        return all(self.sequences["audio"])


def encode_set(path: Path, encode: Encode, training: Training, *, train: bool) -> EncodedSet | None:
    """Encode a file of SFT rows; None where it holds no row at all.

    A row that cannot be encoded, or with more than `max_length` tokens, is rejected, never cut. Validation rows are
    not packed: their loss then does not depend on `packing`.

    Weights of rows count in training only.

    Raises:
        UserError: a row does not fit its record, an id comes twice, or rows with weights were to be packed.
    """
    ids: list[NDArray[np.int32]] = []
    labels: list[NDArray[np.int32]] = []
    audio: list[list[str]] = []
    weights: list[float] = []
    recordings: dict[str, str] = {}
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
            parts = audio_parts(row.messages)
        except ValueError as error:
            rejected.append(RejectedRow(id=row.id, stage=STAGE, reason=str(error), where=str(path)))
            continue
        ids.append(np.asarray(row_ids, dtype=np.int32))
        labels.append(np.asarray(row_labels, dtype=np.int32))
        audio.append([part_text(part) for part in parts])
        weights.append(row.weight)
        recordings |= {part.path: file_sha256(Path(part.path)) for part in parts if part.path not in recordings}
    if not seen:
        return None
    columns: dict[str, Any] = {"input_ids": ids, "labels": labels}
    if any(audio):
        columns["audio"] = audio
    if train and any(weight != 1 for weight in weights):
        if training.packing:
            raise UserError(
                "rows with weights cannot be packed: a sequence has one weight",
                where=str(path),
                fix="leave `packing` out, or the `weight` of the rows",
            )
        columns["weight"] = weights
    return _encoded(columns, rejected, recordings, training, train=train)


def _encoded(
    columns: Mapping[str, Any],
    rejected: list[RejectedRow],
    recordings: dict[str, str],
    training: Training,
    *,
    train: bool,
) -> EncodedSet:
    from datasets import Dataset  # type: ignore[import-untyped]

    ids, labels = columns["input_ids"], columns["labels"]
    sequences = Dataset.from_dict(dict(columns))
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
    return EncodedSet(sequences, lengths, rejected, statistics, recordings)


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
