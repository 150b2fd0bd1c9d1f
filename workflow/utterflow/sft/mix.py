"""Stage `mix_sft`: training and validation rows of one training, drawn from data sets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from utterflow.config.training import MixPart
from utterflow.errors import UserError
from utterflow.files import atomic_writer, digest_of, json_line, parse_object, seed_of, write_json, write_jsonl
from utterflow.jobs import check_rejected, log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import Message, RejectedRow, SftRow, parse_record
from utterflow.sft.stats import MixStats, PartStats, RowFacts, side_stats

STAGE = "mix_sft"

Side = Literal["train", "validation"]
SplitBy = Literal["row", "group"]


@dataclass(frozen=True)
class Part:
    """A split of a data set in the mixture, and its file."""

    side: Side
    cfg: MixPart
    path: Path


class Key(NamedTuple):
    """Names a row over all data sets."""

    dataset: str
    split: str
    id: str


class Entry(NamedTuple):
    """A row in its file: where it begins (bytes), and what draw, split and statistics need of it."""

    key: Key
    path: Path
    offset: int
    prompt: str
    facts: RowFacts


class Drawn(NamedTuple):
    """A row in the mixture, `copies` times."""

    entry: Entry
    copies: int


class Line(NamedTuple):
    """A line to write: a row under its id in the mixture."""

    id: str
    entry: Entry


def mix_sft(
    parts: Sequence[Part],
    *,
    validation_share: float,
    split_by: SplitBy,
    seed: int,
    train: Path,
    validation: Path,
    stats: Path,
    rejected: Path,
    meta: Path,
    cfg: Mapping[str, Any],
    code: str,
) -> MixStats:
    """Write the training and the validation rows of one training.

    Which rows of a part are drawn depends on the seed and on that part alone. The rows' order is drawn too; each has
    its data set as `source`. Rows stay in their files until they are written: memory holds a few numbers of each.

    Args:
        parts: what is mixed; there are none of side `validation` where there is a `validation_share`.
        validation_share: share of the training rows that becomes the validation set, see `split`.
        train, validation: written: `records.SftRow`, JSON Lines; the latter may be empty.
        stats: written: `MixStats`, JSON.
        rejected: written: `records.RejectedRow`: rows without an answer, JSON Lines.
        meta: written: the side file.
        cfg: the configuration's keys behind all this, for the side file.

    Raises:
        UserError: a row that does not fit its record, an id that a file has twice, or nothing is left to train on.
    """
    watch = Stopwatch()
    usable: list[list[Entry]] = []
    refused: dict[Key, RejectedRow] = {}
    for part in parts:
        entries, without_answer = read_part(part)
        usable.append(entries)
        refused |= without_answer
    drawn = [draw(entries, part.cfg, seed) for part, entries in zip(parts, usable, strict=True)]
    sides: dict[Side, list[Drawn]] = {"train": [], "validation": []}
    for part, items in zip(parts, drawn, strict=True):
        sides[part.side] += items
    if validation_share:
        sides["train"], sides["validation"] = split(sides["train"], validation_share, split_by, seed)
    if not sides["train"]:
        raise UserError(
            "there is nothing to train on",
            where=", ".join(str(part.path) for part in parts if part.side == "train"),
            fix="the parts of `train` need rows with answers; raise their `limit` or `share`, or lower "
            "`validation_share` (with split_by: group, a group is all on one side)",
        )
    names = unique_names(entry.key for entries in usable for entry in entries)
    lines = {side: arrange(items, names, seed) for side, items in sides.items()}
    write_lines(train, lines["train"])
    write_lines(validation, lines["validation"])
    write_jsonl(rejected, (row.row() for row in refused.values()))
    written = [*lines["train"], *lines["validation"]]
    result = MixStats(
        parts=[_part_stats(*item) for item in zip(parts, usable, drawn, strict=True)],
        train=side_stats(line.entry.facts for line in lines["train"]),
        validation=side_stats(line.entry.facts for line in lines["validation"]),
        rejected=len(refused),
        renamed=sum(names[key] != key.id for key in {line.entry.key for line in written}),
        shared_rows=_shared_rows(lines["train"], lines["validation"]),
        shared_groups=len(_groups(lines["train"]) & _groups(lines["validation"])),
    )
    write_json(stats, result.row())
    known = {entry.key for entries in usable for entry in entries}
    used = {line.entry.key for line in written}
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg,
        code=code,
        inputs=list(dict.fromkeys(part.path for part in parts)),
        outputs={
            SftRow.RECORD: train,
            f"{SftRow.RECORD} validation": validation,
            MixStats.RECORD: stats,
            RejectedRow.RECORD: rejected,
        },
        seconds=watch.seconds(),
        rows={
            "in": len(known) + len(refused),
            "out": len(written),
            "rejected": len(refused),
            "not_drawn": len(known - used),
            "repeated": len(written) - len(used),
        },
    )
    _log(result)
    check_rejected(list(refused.values()), len(known) + len(refused), limit=1.0)
    return result


def read_part(part: Part) -> tuple[list[Entry], dict[Key, RejectedRow]]:
    """The rows of a part that have an answer, and those that have none.

    Raises:
        UserError: a row that does not fit its record, or an id that occurs twice.
    """
    entries: dict[Key, Entry] = {}
    refused: dict[Key, RejectedRow] = {}
    for number, offset, line in _lines_with_offsets(part.path):
        where = f"{part.path}, line {number}"
        row = parse_record(SftRow, parse_object(line, part.path, number), where)
        key = Key(part.cfg.dataset, part.cfg.split, row.id)
        if key in entries or key in refused:
            raise UserError(f"id {row.id!r} occurs twice", where=where, fix="make the data set anew")
        if row.target is None or not row.target.strip():
            reason = "no answer: `target` is null or empty"
            refused[key] = RejectedRow(id=row.id, stage=STAGE, reason=reason, where=where)
            continue
        facts = RowFacts(
            task=row.task,
            dataset=part.cfg.dataset,
            group=row.group,
            prompt_characters=sum(map(_characters, row.messages)),
            target_characters=len(row.target),
        )
        prompt = digest_of([message.row() for message in row.messages])
        entries[key] = Entry(key, part.path, offset, prompt, facts)
    return list(entries.values()), refused


def draw(entries: Sequence[Entry], cfg: MixPart, seed: int) -> list[Drawn]:
    """Draw `cfg.share` of the rows (rounded; above 1 with repetitions), at most `cfg.limit`.

    Each row has a rank of its own, made from the seed and its names; those of the least rank are drawn, and are the
    first to be repeated. So a smaller draw is part of a larger one.
    """
    if not entries:
        return []
    wanted = math.floor(cfg.share * len(entries) + 0.5)
    wanted = wanted if cfg.limit is None else min(wanted, cfg.limit)
    ranked = sorted(entries, key=lambda entry: (seed_of(seed, "draw", *entry.key), entry.key))
    whole, rest = divmod(wanted, len(entries))
    copies = (whole + (rank < rest) for rank in range(len(ranked)))
    return [Drawn(entry, times) for entry, times in zip(ranked, copies, strict=True) if times]


def split(items: Sequence[Drawn], share: float, by: SplitBy, seed: int) -> tuple[list[Drawn], list[Drawn]]:
    """(training, validation): about `share` of the rows to the latter, without repetitions.

    Units (rows, or groups with all their rows, of whatever data set; a row without a group is its own) are taken in an
    order drawn with the seed, each that still fits into the share; at least one is taken, the smallest.
    """
    units: dict[tuple[str, ...], list[Drawn]] = {}
    for item in items:
        group = item.entry.facts.group
        unit: tuple[str, ...] = ("group", group) if by == "group" and group is not None else ("row", *item.entry.key)
        units.setdefault(unit, []).append(item)
    sizes = {unit: len({item.entry.key for item in members}) for unit, members in units.items()}
    ranked = sorted(units, key=lambda unit: (seed_of(seed, "validation", *unit), unit))
    allowed = share * sum(sizes.values()) + 0.5
    chosen: set[tuple[str, ...]] = set()
    taken = 0
    for unit in ranked:
        if taken + sizes[unit] <= allowed:
            chosen.add(unit)
            taken += sizes[unit]
    if not chosen and ranked:
        chosen.add(min(ranked, key=lambda unit: sizes[unit]))
    once = {item.entry.key: Drawn(item.entry, 1) for unit in units if unit in chosen for item in units[unit]}
    return [item for unit in units if unit not in chosen for item in units[unit]], list(once.values())


def unique_names(keys: Iterable[Key]) -> dict[Key, str]:
    """An id in the mixture for each row: its own, or `<dataset>:<id>`, or `<dataset>/<split>:<id>` where others have
    that one too."""
    spellings = {
        key: (key.id, f"{key.dataset}:{key.id}", f"{key.dataset}/{key.split}:{key.id}") for key in dict.fromkeys(keys)
    }
    uses = Counter(name for names in spellings.values() for name in names)
    return {key: next((name for name in names if uses[name] == 1), names[-1]) for key, names in spellings.items()}


def arrange(items: Iterable[Drawn], names: Mapping[Key, str], seed: int) -> list[Line]:
    """The lines of one side in a drawn order; further copies of a row are called `<id>#2`, `<id>#3`, ..."""
    copies: Counter[Key] = Counter()
    entries: dict[Key, Entry] = {}
    for item in items:
        copies[item.entry.key] += item.copies
        entries[item.entry.key] = item.entry
    taken = set(names.values())
    lines = []
    for key, entry in entries.items():
        lines.append(Line(names[key], entry))
        numbered = (f"{names[key]}#{number}" for number in count(2))
        free = (name for name in numbered if name not in taken)
        lines += [Line(next(free), entry) for _ in range(copies[key] - 1)]
    return sorted(lines, key=lambda line: (seed_of(seed, "order", line.id), line.id))


def write_lines(path: Path, lines: Sequence[Line]) -> None:
    """Write the rows, each fetched from its file."""
    with ExitStack() as stack, atomic_writer(path) as target:
        sources = {source: stack.enter_context(source.open("rb")) for source in {line.entry.path for line in lines}}
        for line in lines:
            handle = sources[line.entry.path]
            handle.seek(line.entry.offset)
            row = SftRow.model_validate_json(handle.readline())
            target.write(json_line({**row.row(), "id": line.id, "source": line.entry.key.dataset}))


def _lines_with_offsets(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (number from 1, offset in bytes, line) of a text file; empty lines are skipped."""
    offset = 0
    try:
        with path.open("rb") as handle:
            for number, raw in enumerate(handle, start=1):
                if raw.strip():
                    yield number, offset, raw.decode()
                offset += len(raw)
    except FileNotFoundError:
        raise UserError("file not found", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path)) from None


def _characters(message: Message) -> int:
    if isinstance(message.content, str):
        return len(message.content)
    return sum(len(str(part.get("text", ""))) for part in message.content)


def _part_stats(part: Part, entries: Sequence[Entry], drawn: Sequence[Drawn]) -> PartStats:
    total = sum(item.copies for item in drawn)
    return PartStats(
        side=part.side,
        dataset=part.cfg.dataset,
        split=part.cfg.split,
        available=len(entries),
        drawn=total,
        repeated=total - len(drawn),
    )


def _shared_rows(train: Sequence[Line], validation: Sequence[Line]) -> int:
    prompts = {line.entry.prompt for line in train}
    return sum(line.entry.prompt in prompts for line in validation)


def _groups(lines: Sequence[Line]) -> set[str]:
    return {line.entry.facts.group for line in lines if line.entry.facts.group is not None}


def _log(result: MixStats) -> None:
    for part in result.parts:
        say = log.info if part.drawn else log.warning
        say("%s: %d of %d rows of %s/%s", part.side, part.drawn, part.available, part.dataset, part.split)
    log.info("%d rows to train on, %d to validate with", result.train.rows, result.validation.rows)
    if result.shared_rows:
        log.warning("%d validation rows stand in the training set too: their loss looks too good", result.shared_rows)
    if result.shared_groups:
        log.info("%d groups have rows on both sides", result.shared_groups)
