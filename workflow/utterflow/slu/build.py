"""Stage `build_slu_data`: spoken commands as prompts; the answer is their labels (`<slu>`) or a rationale (`<ras>`)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from utterflow.config.datasets import SluDataset, SluSource
from utterflow.corrector.prompt import numbered, read_text
from utterflow.errors import UserError
from utterflow.files import atomic_writer, json_line, write_json
from utterflow.jobs import check_rejected, log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.rationale.text import last_hypothesis
from utterflow.records import Message, RationaleRow, Record, RejectedRow, SftRow, SluItem
from utterflow.slu.inputs import named_texts
from utterflow.slu.items import STAGE, SluDataItem, WhereFrom, read_items, single_line, unique
from utterflow.slu.labels import Inventory, read_inventory
from utterflow.slu.phones import Speller, read_pronunciations
from utterflow.slu.prompts import Task, Template, conversation, read_template

LOG_EVERY = 10_000
COMMONEST = 20

Split = Literal["train", "validation", "test"]


class Unpronounced(Record):
    """Words of the prompts that the lexicon does not have; occurrences are counted."""

    RECORD: ClassVar[str] = "unpronounced/1"
    words: int = Field(description="all words")
    without: int = Field(description="those without a pronunciation; they stay as written")
    distinct: int = Field(description="different ones without a pronunciation")
    commonest: dict[str, int]


class SluStats(Record):
    """What a split of a data set of spoken commands holds."""

    RECORD: ClassVar[str] = "slu_stats/1"
    rows: dict[str, int] = Field(
        description="`in` = `out` + `rejected` + `disagreeing` (left out by `agreeing`); a command counts once per task"
    )
    tasks: dict[str, int]
    sources: dict[str, dict[str, int]] = Field(description="rows per source and task")
    without_labels: int = Field(description="`<slu>` rows of the test split without an answer")
    without_rationale: int = Field(description="rows whose prompt would show a rationale, but there is none")
    candidates: dict[int, int] = Field(description="rows by the number of candidates in the prompt")
    recordings: int = Field(description="rows with a recording in the prompt")
    unpronounced: Unpronounced | None = Field(description="null where the prompts have words as they are")
    intents: int = Field(description="different ones among the labelled rows")
    intents_outside_labels: dict[str, int] | None = Field(
        description="rows of each intent that the inventory of `labels` lacks; null without `labels`"
    )
    slot_types_outside_labels: dict[str, int] | None = Field(description="the same of slot types")
    warnings: list[str]


@dataclass(frozen=True)
class Prompter:
    """What prompts are made of."""

    templates: Mapping[Task, Template]
    system: str | None
    inventory: Inventory | None
    speller: Speller | None

    def text(self, task: Task, candidates: Sequence[str], rationale: str | None) -> str:
        labels = self.inventory or Inventory((), ())
        return self.templates[task].render(
            {
                "n": str(len(candidates)) if candidates else "",
                "candidates": numbered(candidates),
                "rationale": rationale or "",
                "intents": ", ".join(labels.intents),
                "slot_types": ", ".join(labels.slot_types),
            }
        )


@dataclass(frozen=True)
class Source:
    """A source of a split, with its name and its file."""

    cfg: SluSource
    name: str
    path: Path
    tasks: tuple[Task, ...]

    @property
    def where_from(self) -> WhereFrom:
        if self.cfg.rationale:
            return "rationale"
        if self.cfg.asr:
            return "nbest"
        return "lists" if self.cfg.lists else "annotations"


@dataclass
class Tally:
    """What is kept of the rows for the statistics."""

    counts: Counter[str] = field(default_factory=Counter)
    rejected: list[RejectedRow] = field(default_factory=list)
    sources: dict[str, Counter[str]] = field(default_factory=dict)
    candidates: Counter[int] = field(default_factory=Counter)
    intents: Counter[str] = field(default_factory=Counter)
    slot_types: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.counts["out"] + self.counts["disagreeing"] + len(self.rejected)


class Made(NamedTuple):
    """A row, and its item where it is a `<slu>` row."""

    row: SftRow
    item: SluDataItem | None
    source: str
    candidates: int


@dataclass(frozen=True)
class Shown:
    """What the prompts of a command show of it; `audio` is the path of its recording."""

    candidates: tuple[str, ...]
    audio: str | None


@dataclass
class Builder:
    """Makes the rows of a split; `used` are the ids that are taken."""

    cfg: SluDataset
    split: Split
    prompter: Prompter
    used: set[str] = field(default_factory=set)

    def rows(self, sources: Sequence[Source], tally: Tally) -> Iterator[Made | RejectedRow]:
        """The rows of all sources, a command's `<slu>` row first; those that `agreeing` leaves out are only counted."""
        for source in sources:
            for entry in islice(read_items(source.path, source.where_from), source.cfg.limit):
                if isinstance(entry, RejectedRow):
                    yield entry
                elif _disagrees(entry, source):
                    tally.counts["disagreeing"] += len(source.tasks)
                else:
                    yield from self._rows_of(entry, source)

    def _rows_of(self, entry: SluItem, source: Source) -> Iterator[Made | RejectedRow]:
        name = unique(f"text:{entry.id}" if source.cfg.gold_text else entry.id, self.used)
        item = entry.model_copy(update={"id": name})
        shown: Shown | None = None
        for task in source.tasks:
            id = name if task == "slu" else unique(f"ras:{name}", self.used)
            if reason := self._fault(task, item, source):
                yield RejectedRow(id=id, stage=STAGE, reason=reason, where=str(source.path))
                continue
            shown = shown or self._shown(item, source)
            yield self._slu_row(item, shown, source) if task == "slu" else self._ras_row(id, item, shown, source)

    def _fault(self, task: Task, item: SluItem, source: Source) -> str | None:
        """What a row lacks; None where nothing."""
        if self._listens(source) and item.audio is None:
            return "no recording: `audio` is on, and the command has none"
        if not self._listens(source) and not self._texts(item, source):
            return "no candidates: the list is empty"
        if task == "slu" and self.split != "test" and target_of(item) is None:
            return f"no labels: the {self.split} split needs scenario, action and entities"
        if task == "ras" and not (isinstance(item, RationaleRow) and (item.rationale_text or "").strip()):
            why = isinstance(item, RationaleRow) and (item.topk_validation_error or item.fallback_reason)
            return f"no rationale: {why or 'there is no text of it'}"
        return None

    def _listens(self, source: Source) -> bool:
        """Whether the prompt has a recording; sentences as written have none, and the test split has no exception."""
        return self.cfg.audio and (self.split == "test" or not source.cfg.gold_text)

    def _texts(self, item: SluItem, source: Source) -> list[str]:
        if source.cfg.gold_text:
            return [single_line(item.text or "")]
        return item.hypotheses[: self.cfg.candidates]

    def _shown(self, item: SluItem, source: Source) -> Shown:
        speller = self.prompter.speller
        texts = (single_line(text) for text in self._texts(item, source))
        candidates = tuple(speller.spell(text) if speller else text for text in texts)
        return Shown(candidates, item.audio if self._listens(source) else None)

    def _messages(self, task: Task, item: SluItem, shown: Shown, rationale: str | None) -> list[Message]:
        text = self.prompter.text(task, shown.candidates, rationale)
        return conversation(task, text, system=self.prompter.system, audio=shown.audio, noise=item.noise)

    def _rationale(self, item: SluItem, source: Source) -> str | None:
        """The rationale that a `<slu>` prompt shows.

        Raises:
            UserError: in the test split, one that was made with the gold labels in sight.
        """
        if not self.cfg.rationale_in_prompt or not isinstance(item, RationaleRow):
            return None
        if self.split == "test" and item.sees_gold:
            raise UserError(
                f"the rationale of {item.id!r} was made with the gold labels in sight and would be in a test prompt",
                where=str(source.path),
                fix="use rationales with `gold: false` in `test`, or set rationale_in_prompt: false",
            )
        return (item.rationale_text or "").strip() or None

    def _slu_row(self, item: SluItem, shown: Shown, source: Source) -> Made:
        rationale = self._rationale(item, source)
        row = SftRow(
            id=item.id,
            task="slu",
            messages=self._messages("slu", item, shown, rationale),
            target=target_of(item),
            group=_group(item),
        )
        made_of = {}
        if isinstance(item, RationaleRow):
            names = ("rationale_text", "sees_gold", "nbest_k", "final_prediction")
            made_of = {name: getattr(item, name) for name in names}
        kept = SluDataItem(
            **{name: getattr(item, name) for name in SluItem.model_fields},
            source=source.name,
            candidates=list(shown.candidates),
            rationale_shown=rationale is not None,
            **made_of,
        )
        return Made(row, kept, source.name, len(shown.candidates))

    def _ras_row(self, id: str, item: SluItem, shown: Shown, source: Source) -> Made:
        assert isinstance(item, RationaleRow)
        row = SftRow(
            id=id,
            task="ras",
            messages=self._messages("ras", item, shown, None),
            target=(item.rationale_text or "").strip(),
            group=_group(item),
            weight=self.cfg.ras_weight,
        )
        return Made(row, None, source.name, len(shown.candidates))


def _group(item: SluItem) -> str | None:
    sentence = None if item.slurp_id is None else str(item.slurp_id)
    return item.speaker or item.group or sentence


def build_slu_data(
    sources: Sequence[Path],
    *,
    split: Split,
    cfg: SluDataset,
    rows: Path,
    items: Path,
    rejected: Path,
    stats: Path,
    meta: Path,
    code: str,
) -> SluStats:
    """Write one split of a data set of spoken commands.

    A command becomes a `<slu>` row, a `<ras>` row, or both, as `cfg` has it; in `test` always a `<slu>` row. Commands
    without labels stay in `test` and are rejected elsewhere; so are rows without what their prompt or answer needs:
    candidates, a recording, a rationale. Sentences as written have no recording, and get a prompt of text alone in
    `train` and `validation`.

    Args:
        sources: the files of the split's sources, in their order.
        rows: written: `records.SftRow`, JSON Lines; `group` is the speaker, else the group, else the `slurp_id`.
        items: written: `items.SluDataItem`, JSON Lines, one per `<slu>` row.
        rejected: written: `records.RejectedRow`, JSON Lines.
        stats: written: `SluStats`, JSON.
        meta: written: the side file.

    Raises:
        UserError: a template, the lexicon, the labels or a source cannot be used; there is no command at all; a prompt
            of the test split would show a rationale that was made with the gold labels in sight; or more rows are
            rejected than `cfg.max_rejected` allows.
    """
    watch = Stopwatch()
    joined = sources_of(cfg, split, sources)
    builder = Builder(cfg, split, _prompter(cfg, joined))
    tally = Tally()
    with ExitStack() as stack:
        sft, data_items, refused = (stack.enter_context(atomic_writer(path)) for path in (rows, items, rejected))
        for made in builder.rows(joined, tally):
            if isinstance(made, RejectedRow):
                tally.rejected.append(made)
                refused.write(json_line(made.row()))
                continue
            sft.write(json_line(made.row.row()))
            if made.item:
                data_items.write(json_line(made.item.row()))
            _count(tally, made, cfg)
            if tally.counts["out"] % LOG_EVERY == 0:
                log.info("%d rows, %.0f/s", tally.counts["out"], tally.counts["out"] / max(watch.seconds(), 1e-3))
        if not tally.total:
            raise UserError(f"split {split}: there is no command", where=", ".join(map(str, sources)))
    result = _stats(tally, split, builder, joined)
    write_json(stats, result.row())
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[*sources, *map(Path, named_texts(cfg))],
        outputs={
            SftRow.RECORD: rows,
            SluDataItem.RECORD: items,
            RejectedRow.RECORD: rejected,
            SluStats.RECORD: stats,
        },
        seconds=watch.seconds(),
        rows=result.rows,
    )
    _log(result)
    check_rejected(tally.rejected, tally.total, cfg.max_rejected)
    return result


def sources_of(cfg: SluDataset, split: Split, files: Sequence[Path]) -> list[Source]:
    """The split's sources, each with a name that no other of them has, and the tasks of its rows."""
    wanted: dict[Split, tuple[SluSource, ...]] = {"train": cfg.train, "validation": cfg.validation, "test": cfg.test}
    used: set[str] = set()
    found = []
    for source, path in zip(wanted[split], files, strict=True):
        name = unique(_source_name(source), used)
        found.append(Source(source, name, path, _tasks(source, split, cfg)))
    return found


def target_of(item: SluItem) -> str | None:
    """The answer to a `<slu>` prompt, JSON; None without labels."""
    if item.intent is None or item.entities is None:
        return None
    entities = [{"type": entity.type, "filler": entity.filler} for entity in item.entities]
    return json.dumps({"scenario": item.scenario, "action": item.action, "entities": entities}, ensure_ascii=False)


def _source_name(source: SluSource) -> str:
    if source.rationale:
        return f"{source.rationale}/k{source.k}"
    if source.asr:
        return f"{source.corpus}/{source.asr}"
    return Path(str(source.lists or source.gold_text)).stem


def _tasks(source: SluSource, split: Split, cfg: SluDataset) -> tuple[Task, ...]:
    if split == "test" or not source.rationale:
        return ("slu",)
    switches: tuple[tuple[Task, bool], ...] = (("slu", cfg.rationale_slu), ("ras", cfg.ras))
    return tuple(task for task, on in switches if on)


def _prompter(cfg: SluDataset, sources: Sequence[Source]) -> Prompter:
    tasks = {task for source in sources for task in source.tasks}
    listed = cfg.candidates > 0 or any(source.cfg.gold_text for source in sources)
    needed: dict[Task, list[str]] = {task: ["candidates"] if listed else [] for task in ("slu", "ras")}
    needed["slu"] += ["rationale"] if cfg.rationale_in_prompt else []
    paths: dict[Task, str] = {"slu": cfg.slu_prompt, "ras": cfg.ras_prompt}
    speller = None
    if cfg.lexicon and cfg.input_format != "asr":
        speller = Speller(read_pronunciations(Path(cfg.lexicon), cfg.input_format), cfg.input_format)
    return Prompter(
        {task: read_template(Path(paths[task]), task, needed[task]) for task in sorted(tasks)},
        system=read_text(Path(cfg.system), "system") if cfg.system else None,
        inventory=read_inventory([Path(path) for path in cfg.labels]) if cfg.labels else None,
        speller=speller,
    )


def _disagrees(item: SluItem, source: Source) -> bool:
    """Whether the quality gate leaves out a rationale: it ends with another intent, or a rule made part of it."""
    if not source.cfg.agreeing or not isinstance(item, RationaleRow):
        return False
    return item.fallback_used or item.final_prediction != item.intent


def _count(tally: Tally, made: Made, cfg: SluDataset) -> None:
    row, item = made.row, made.item
    tally.counts["out"] += 1
    tally.counts["recordings"] += any(isinstance(message.content, list) for message in row.messages)
    tally.sources.setdefault(made.source, Counter())[row.task] += 1
    tally.candidates[made.candidates] += 1
    learnt = row.target if row.task == "ras" else item and item.rationale_shown and item.rationale_text
    tally.counts["beyond_candidates"] += last_hypothesis(learnt or "") > made.candidates
    if item is None:
        return
    tally.counts["without_labels"] += row.target is None
    tally.counts["without_rationale"] += cfg.rationale_in_prompt and not item.rationale_shown
    tally.counts["gold_shown"] += bool(item.rationale_shown and item.sees_gold)
    if item.intent:
        tally.intents[item.intent] += 1
    tally.slot_types.update(entity.type for entity in item.entities or ())


def _stats(tally: Tally, split: Split, builder: Builder, sources: Sequence[Source]) -> SluStats:
    tasks: Counter[str] = Counter()
    for counts in tally.sources.values():
        tasks.update(counts)
    inventory, speller = builder.prompter.inventory, builder.prompter.speller
    outside = inventory and _outside(tally.intents, inventory.intents)
    return SluStats(
        rows={
            "in": tally.total,
            "out": tally.counts["out"],
            "rejected": len(tally.rejected),
            "disagreeing": tally.counts["disagreeing"],
        },
        tasks=dict(sorted(tasks.items())),
        sources={source.name: dict(sorted(tally.sources.get(source.name, {}).items())) for source in sources},
        without_labels=tally.counts["without_labels"],
        without_rationale=tally.counts["without_rationale"],
        candidates=dict(sorted(tally.candidates.items())),
        recordings=tally.counts["recordings"],
        unpronounced=speller and _unpronounced(speller),
        intents=len(tally.intents),
        intents_outside_labels=outside,
        slot_types_outside_labels=inventory and _outside(tally.slot_types, inventory.slot_types),
        warnings=list(_warnings(tally, split, sources, outside or {})),
    )


def _outside(counts: Counter[str], inventory: Sequence[str]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts.keys() - set(inventory))}


def _unpronounced(speller: Speller) -> Unpronounced:
    commonest = sorted(speller.unknown.items(), key=lambda pair: (-pair[1], pair[0]))[:COMMONEST]
    return Unpronounced(
        words=speller.words,
        without=speller.unknown.total(),
        distinct=len(speller.unknown),
        commonest=dict(commonest),
    )


def _warnings(tally: Tally, split: Split, sources: Sequence[Source], outside: Mapping[str, int]) -> Iterator[str]:
    written = sum(sum(tally.sources.get(source.name, {}).values()) for source in sources if source.cfg.gold_text)
    if split == "test" and written:
        yield f"{written} test rows show the sentence as written (`gold_text`), not what was heard"
    if count := tally.counts["gold_shown"]:
        yield (
            f"{count} prompts of split {split} show a rationale that was made with the gold labels in sight; test "
            "prompts have none such, so a model may learn to lean on what it will not have"
        )
    if count := tally.counts["beyond_candidates"]:
        yield f"{count} rows have a rationale that names hypotheses which their prompts do not show: raise `candidates`"
    if outside:
        yield f"{sum(outside.values())} rows have one of {len(outside)} intents that `labels` lacks"


def _log(result: SluStats) -> None:
    log.info("rows: %s; tasks: %s; by number of candidates: %s", result.rows, result.tasks, result.candidates)
    if result.unpronounced:
        log.info(
            "%d of %d words have no pronunciation and stay as written",
            result.unpronounced.without,
            result.unpronounced.words,
        )
    if result.without_labels or result.without_rationale:
        log.info("%d rows without labels, %d without rationale", result.without_labels, result.without_rationale)
    for warning in result.warnings:
        log.warning("%s", warning)
