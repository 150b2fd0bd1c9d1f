"""What intents and slot types there are, and how often, in labelled sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utterflow.errors import UserError
from utterflow.jobs import log
from utterflow.records import RejectedRow, SluItem
from utterflow.slu.items import read_items


@dataclass(frozen=True)
class Inventory:
    """Intents (`scenario_action`) and slot types, each sorted."""

    intents: tuple[str, ...]
    slot_types: tuple[str, ...]


def read_inventory(paths: Sequence[Path]) -> Inventory:
    """The intents and slot types of SLURP annotations.

    Rows that cannot be read are logged and left out.

    Raises:
        UserError: a file is missing, or no row of all files has an intent.
    """
    intents: set[str] = set()
    slot_types: set[str] = set()
    for item in _labelled(paths):
        intents.add(str(item.intent))
        slot_types.update(entity.type for entity in item.entities or ())
    return Inventory(tuple(sorted(intents)), tuple(sorted(slot_types)))


def majority(paths: Sequence[Path]) -> tuple[str, str]:
    """(scenario, action) of the most frequent intent of SLURP annotations; of equally frequent ones the first by name.

    Raises:
        UserError: a file is missing, or no row of all files has an intent.
    """
    counts = Counter((str(item.scenario), str(item.action)) for item in _labelled(paths))
    return min(counts, key=lambda pair: (-counts[pair], pair))


def _labelled(paths: Sequence[Path]) -> Iterator[SluItem]:
    found = False
    for path in paths:
        unreadable: list[RejectedRow] = []
        for item in read_items(path, "annotations"):
            if isinstance(item, RejectedRow):
                unreadable.append(item)
            elif item.intent:
                found = True
                yield item
        if unreadable:
            log.warning(
                "%d rows of %s cannot be read; first: %s, %s", len(unreadable), path, unreadable[0].id,
                unreadable[0].reason,
            )  # fmt: skip
    if not found:
        raise UserError(
            "there is no labelled sentence", where=", ".join(map(str, paths)) or "no file is named",
            fix="name SLURP annotations (.jsonl) with `scenario` and `action`",
        )  # fmt: skip
