"""What a mixture of SFT rows holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

from pydantic import Field

from utterflow.records import Record


class PartStats(Record):
    """One part of a mixture: a split of a data set."""

    RECORD: ClassVar[str] = "sft_part/1"
    side: str = Field(description="`train` or `validation`: where the configuration names it")
    dataset: str
    split: str
    available: int = Field(description="rows with an answer")
    drawn: int = Field(description="rows of the mixture, repetitions counted")
    repeated: int = Field(description="of these, second and further copies of a row")


class SideStats(Record):
    """The training or the validation rows of a mixture; characters are those of text."""

    RECORD: ClassVar[str] = "sft_side/1"
    rows: int
    tasks: dict[str, int]
    datasets: dict[str, int]
    groups: int = Field(description="different groups; rows without one do not count")
    prompt_characters: int
    target_characters: int


class MixStats(Record):
    """Statistics of a mixture; those of tokens come from the training."""

    RECORD: ClassVar[str] = "sft_mix/1"
    parts: list[PartStats]
    train: SideStats
    validation: SideStats
    rejected: int = Field(description="rows without an answer")
    renamed: int = Field(description="rows whose id another data set or split has too")
    shared_rows: int = Field(description="validation rows whose prompt stands in the training set too")
    shared_groups: int = Field(description="groups with rows on both sides")


class RowFacts(NamedTuple):
    """What the statistics need of a row."""

    task: str
    dataset: str
    group: str | None
    prompt_characters: int
    target_characters: int


def side_stats(rows: Iterable[RowFacts]) -> SideStats:
    """Counts of one side of the mixture."""
    items = list(rows)
    return SideStats(
        rows=len(items),
        tasks=_counts(item.task for item in items),
        datasets=_counts(item.dataset for item in items),
        groups=len({item.group for item in items} - {None}),
        prompt_characters=sum(item.prompt_characters for item in items),
        target_characters=sum(item.target_characters for item in items),
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
