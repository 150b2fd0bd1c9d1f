"""What a question may show of a row: the evidence, and the reference labels where the configuration allows it.

Prompts are made from a `Case` alone. Without gold labels its reference is None, so that none of them can reach a
prompt, a repair question or a fallback.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from utterflow.corrector.prompt import numbered
from utterflow.errors import UserError
from utterflow.records import Entity, RejectedRow, SluItem
from utterflow.slu.items import WhereFrom, read_items
from utterflow.slu.labels import Inventory

STAGE = "generate_rationale"

EvidenceKind = Literal["nbest", "audio"]


@dataclass(frozen=True)
class Reference:
    """The gold labels that a model is shown."""

    intent: str
    slots: tuple[Entity, ...]

    @property
    def slot_types(self) -> tuple[str, ...]:
        """Each type once, in the order of the sentence."""
        return tuple(dict.fromkeys(slot.type for slot in self.slots))


@dataclass(frozen=True)
class Case:
    """One row as questions show it."""

    id: str
    hypotheses: tuple[str, ...]  # the first k, best first; empty where the model listens
    recording: dict[str, Any] | None  # {path, noise?}, where the model listens
    reference: Reference | None  # None: the model does not see the gold labels

    @property
    def text(self) -> str:
        """The evidence as a prompt shows it; of a recording its path."""
        return str(self.recording["path"]) if self.recording else numbered(self.hypotheses)


def read_rows(path: Path, where_from: WhereFrom, limit: int | None) -> list[SluItem | RejectedRow]:
    """The first `limit` rows of a file, unreadable ones among them.

    Raises:
        UserError: the file is missing or has no row, or a row of the workflow's own files does not fit its record.
    """
    rows: list[SluItem | RejectedRow] = []
    for row in read_items(path, where_from, stage=STAGE):
        if limit is not None and len(rows) == limit:
            break
        rows.append(row)
    if not rows:
        raise UserError("there is no command", where=str(path), fix="give a file with n-best lists, one per line")
    return rows


def case_of(item: SluItem, k: int, evidence: EvidenceKind, gold: bool, inventory: Inventory) -> Case:
    """What is shown of a row with the first `k` hypotheses, or with its recording.

    Raises:
        ValueError: why the row cannot be used.
    """
    reference = _reference(item, inventory) if gold else None
    if evidence == "audio":
        return Case(item.id, (), _recording(item), reference)
    if not item.hypotheses:
        raise ValueError("no hypotheses: the row has no n-best list")
    return Case(item.id, tuple(item.hypotheses[:k]), None, reference)


def words(text: str) -> list[str]:
    """Lower-case words, as spans are compared."""
    return text.lower().split()


def find_span(text: str, span: str) -> str | None:
    """The words of `span` as they stand in `text`, one after the other; None where they do not. Case does not count."""
    wanted, there = words(span), words(text)
    for start in range(len(there) - len(wanted) + 1) if wanted else ():
        if there[start : start + len(wanted)] == wanted:
            return " ".join(text.split()[start : start + len(wanted)])
    return None


def _reference(item: SluItem, inventory: Inventory) -> Reference:
    if item.intent is None or item.entities is None:
        raise ValueError("no labels: `gold: true` shows scenario, action and entities, and the row has not all of them")
    if item.intent not in inventory.intents:
        raise ValueError(f"unknown intent: {item.intent} is not in the files of `labels`")
    if unknown := [entity.type for entity in item.entities if entity.type not in inventory.slot_types]:
        raise ValueError(f"unknown slot type: {unknown[0]} is not in the files of `labels`")
    return Reference(item.intent, tuple(item.entities))


def _recording(item: SluItem) -> dict[str, Any]:
    if item.audio is None:
        raise ValueError("no recording: the row has no `audio`")
    if not Path(item.audio).is_file():
        raise ValueError(f"no recording: {item.audio} is missing")
    return {"path": item.audio, **({"noise": item.noise.row()} if item.noise else {})}
