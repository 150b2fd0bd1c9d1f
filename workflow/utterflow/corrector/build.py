"""Stage `build_corrector_data`: n-best lists as instructions, with the reference as the answer."""

from __future__ import annotations

import functools
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from utterflow.config.datasets import CandidateSource, CorrectorDataset
from utterflow.config.language_models import LanguageModel
from utterflow.corrector.candidates import STAGE, NbestList, read_sources
from utterflow.corrector.prompt import Template, messages, read_template, read_text
from utterflow.errors import UserError
from utterflow.evaluate.normalize import basic
from utterflow.files import atomic_writer, json_line, write_json
from utterflow.jobs import check_rejected, log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import CandidatesRow, Message, Record, RejectedRow, SftRow

TASK = "corrector"
LOG_EVERY = 10_000
WORDS_CACHED = 100_000
ALPACA = "alpaca/1"

Split = Literal["train", "validation", "test"]
CountTokens = Callable[[Sequence[Message]], int]


class Spread(Record):
    """Mean and range of a count over rows; null without rows."""

    RECORD: ClassVar[str] = "spread/1"
    mean: float | None
    min: int | None
    max: int | None


class CorrectorStats(Record):
    """What a split of a corrector data set holds."""

    RECORD: ClassVar[str] = "corrector_stats/1"
    rows: dict[str, int]
    sources: dict[str, int]
    without_reference: int
    candidates: Spread
    dropped_duplicates: int
    cut_rows: int
    cut_candidates: int
    prompt_tokens: Spread | None
    lists_with_reference: int
    logits: dict[str, int]
    warnings: list[str]


@dataclass
class Tally:
    """What is kept of the rows for the statistics."""

    total: int = 0
    kept: int = 0
    rejected: list[RejectedRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    logits: Counter[str] = field(default_factory=Counter)
    candidates: array[int] = field(default_factory=lambda: array("i"))
    tokens: array[int] = field(default_factory=lambda: array("i"))


@dataclass(frozen=True)
class Prompter:
    """How a list becomes a prompt, and how long that may be; `count_tokens` is None without a limit."""

    template: Template
    system: str | None
    count_tokens: CountTokens | None
    max_tokens: int

    def messages(self, texts: Sequence[str]) -> list[Message]:
        return messages(self.template, self.system, texts)

    def fit(self, texts: Sequence[str]) -> tuple[int, int]:
        """(candidates that fit, tokens of that prompt): the longest prefix of the list; (0, tokens of one) if none.

        Found by bisection: a prompt grows with its candidates. Without a limit all fit, and tokens are 0.

        Raises:
            ValueError: the model's chat template refuses the conversation.
        """
        if self.count_tokens is None:
            return len(texts), 0
        tokens = self.count_tokens(self.messages(texts))
        if tokens <= self.max_tokens:
            return len(texts), tokens
        fitting, too_many, best = 0, len(texts), tokens
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            tokens = self.count_tokens(self.messages(texts[:middle]))
            if tokens <= self.max_tokens:
                fitting, best = middle, tokens
            else:
                too_many = middle
        return fitting, best if fitting else tokens


def build_corrector_data(
    sources: Sequence[Path],
    *,
    split: Split,
    cfg: CorrectorDataset,
    tokenizer: LanguageModel | None,
    rows: Path,
    candidates: Path,
    alpaca: Path,
    rejected: Path,
    stats: Path,
    meta: Path,
    code: str,
) -> CorrectorStats:
    """Write one split of a corrector data set.

    Lists without a reference stay in `test` and are rejected elsewhere; so are lists without candidates, and those of
    which not even one candidate fits into `cfg.max_prompt_tokens`. The answer is never cut.

    Args:
        sources: the files of the split's sources, in their order.
        tokenizer: the model that `cfg.tokenizer` names.
        rows: written: `records.SftRow`, JSON Lines; `group` is the session, else the speaker, else the group.
        candidates: written: `CandidatesRow`, JSON Lines.
        alpaca: written: `{instruction, input: "", output}`, JSON Lines; `output` is null without a reference.
        rejected: written: `records.RejectedRow`, JSON Lines.
        stats: written: `CorrectorStats`, JSON.
        meta: written: the side file.

    Raises:
        UserError: template, tokenizer or a source cannot be used, there is no list at all, or more lists are rejected
            than `cfg.max_rejected` allows.
    """
    watch = Stopwatch()
    prompter = _prompter(cfg, tokenizer)
    splits: dict[Split, tuple[CandidateSource, ...]] = {
        "train": cfg.train, "validation": cfg.validation, "test": cfg.test,
    }  # fmt: skip
    tally = Tally()
    with ExitStack() as stack:
        sft, items, instructions, refused = (
            stack.enter_context(atomic_writer(path)) for path in (rows, candidates, alpaca, rejected)
        )
        for entry in read_sources(splits[split], sources):
            tally.total += 1
            made = entry if isinstance(entry, RejectedRow) else _make_row(entry, split, cfg, prompter, tally)
            if isinstance(made, RejectedRow):
                tally.rejected.append(made)
                refused.write(json_line(made.row()))
                continue
            sft.write(json_line(_sft_row(made, prompter).row()))
            items.write(json_line(made.row()))
            answer = {"instruction": made.formatted_input, "input": "", "output": made.ground_truth}
            instructions.write(json_line(answer))
            tally.kept += 1
            if tally.kept % LOG_EVERY == 0:
                log.info("%d lists, %.0f/s", tally.kept, tally.kept / max(watch.seconds(), 1e-3))
        if not tally.total:
            raise UserError(f"split {split}: there is no list", where=", ".join(map(str, sources)))
    result = _stats(tally, split, cfg)
    write_json(stats, result.row())
    write_meta(
        meta,
        rule=STAGE,
        cfg={"dataset": cfg.model_dump(mode="json"), "tokenizer": tokenizer and tokenizer.model_dump(mode="json")},
        code=code,
        inputs=[*sources, Path(cfg.instruction), *([Path(cfg.system)] if cfg.system else [])],
        outputs={
            SftRow.RECORD: rows,
            CandidatesRow.RECORD: candidates,
            ALPACA: alpaca,
            RejectedRow.RECORD: rejected,
            CorrectorStats.RECORD: stats,
        },
        seconds=watch.seconds(),
        rows=result.rows,
    )
    _log(result)
    check_rejected(tally.rejected, tally.total, cfg.max_rejected)
    return result


def merge_equal(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    """(ranks of the different texts, best first; how often each stands in the list)."""
    counts = Counter(texts)
    first = {text: rank for rank, text in reversed(list(enumerate(texts)))}
    ranks = sorted(first.values())
    return ranks, [counts[texts[rank]] for rank in ranks]


def _prompter(cfg: CorrectorDataset, model: LanguageModel | None) -> Prompter:
    template = read_template(Path(cfg.instruction))
    system = read_text(Path(cfg.system), "system") if cfg.system else None
    return Prompter(template, system, _token_counter(model) if model else None, cfg.max_prompt_tokens or 0)


def _token_counter(model: LanguageModel) -> CountTokens:
    from utterflow.models.folders import model_folder_of
    from utterflow.models.text import load_tokenizer
    from utterflow.sft.tokenize import encode_prompt

    tokenizer: Any = load_tokenizer(model_folder_of(model), model)
    return lambda conversation: len(encode_prompt(tokenizer, conversation))


def _make_row(
    item: NbestList, split: Split, cfg: CorrectorDataset, prompter: Prompter, tally: Tally
) -> CandidatesRow | RejectedRow:
    def reject(reason: str) -> RejectedRow:
        return RejectedRow(id=item.id, stage=STAGE, reason=reason)

    if not item.texts:
        return reject("no candidates: the list is empty")
    if split != "test" and not (item.reference or "").strip():
        return reject(f"no reference: the {split} split needs the answer")
    ranks, repeats = merge_equal(item.texts) if cfg.drop_duplicates else (list(range(len(item.texts))), [])
    ranks, repeats = ranks[: cfg.candidates], repeats[: cfg.candidates]
    texts = [item.texts[rank] for rank in ranks]
    try:
        fitting, tokens = prompter.fit(texts)
    except ValueError as error:
        return reject(str(error))
    if not fitting:
        return reject(f"prompt too long: {tokens} tokens with one candidate, max_prompt_tokens {cfg.max_prompt_tokens}")
    kept = texts[:fitting]
    _count(tally, item, kept, cut=len(texts) - fitting, tokens=tokens, drop_duplicates=cfg.drop_duplicates)
    return CandidatesRow(
        trial_id=item.trial_id,
        input_beams=kept,
        ground_truth=None if item.reference is None else item.reference.strip(),
        instruction=prompter.template.instruction(kept),
        formatted_input=prompter.template.render(kept),
        id=item.id,
        source=item.source,
        group=item.group,
        session=item.session,
        speaker=item.speaker,
        scores=[item.scores[rank] for rank in ranks[:fitting]] if item.scores else None,
        repeats=repeats[:fitting] if cfg.drop_duplicates else None,
        cut=len(texts) - fitting,
    )


def _sft_row(row: CandidatesRow, prompter: Prompter) -> SftRow:
    return SftRow(
        id=row.id,
        task=TASK,
        messages=prompter.messages(row.input_beams),
        target=row.ground_truth,
        group=row.session or row.speaker or row.group,
    )


def _count(tally: Tally, item: NbestList, kept: list[str], *, cut: int, tokens: int, drop_duplicates: bool) -> None:
    tally.sources[item.source] += 1
    tally.logits[item.logits] += 1
    tally.candidates.append(len(kept))
    tally.tokens.append(tokens)
    tally.counts["duplicates"] += len(item.texts) - len(set(item.texts)) if drop_duplicates else 0
    tally.counts["cut_rows"] += cut > 0
    tally.counts["cut_candidates"] += cut
    tally.counts["without_reference"] += item.reference is None
    tally.counts["with_reference"] += item.reference is not None and _holds(kept, item.reference)


def _holds(texts: Sequence[str], reference: str) -> bool:
    """Whether a candidate is the reference but for case and punctuation."""
    wanted = _plain(reference)
    return reference in texts or any(_plain(text) == wanted for text in texts)


def _plain(text: str) -> str:
    return " ".join(filter(None, map(_plain_word, text.split())))


@functools.lru_cache(WORDS_CACHED)
def _plain_word(word: str) -> str:
    return basic(word)


def _stats(tally: Tally, split: Split, cfg: CorrectorDataset) -> CorrectorStats:
    warnings = []
    if learnt := tally.logits["learnt"]:
        warnings.append(
            f"{learnt} of {tally.kept} lists of split {split} come from a model that has learnt these very trials: "
            "they look better than lists of new trials. Use cross-fitted logits (encoders.<name>.folds), or held-out "
            "ones"
        )
    return CorrectorStats(
        rows={"in": tally.total, "out": tally.kept, "rejected": len(tally.rejected)},
        sources=dict(tally.sources),
        without_reference=tally.counts["without_reference"],
        candidates=_spread(tally.candidates),
        dropped_duplicates=tally.counts["duplicates"],
        cut_rows=tally.counts["cut_rows"],
        cut_candidates=tally.counts["cut_candidates"],
        prompt_tokens=_spread(tally.tokens) if cfg.max_prompt_tokens else None,
        lists_with_reference=tally.counts["with_reference"],
        logits=dict(sorted(tally.logits.items())),
        warnings=warnings,
    )


def _spread(values: Sequence[int]) -> Spread:
    if not values:
        return Spread(mean=None, min=None, max=None)
    return Spread(mean=round(sum(values) / len(values), 4), min=min(values), max=max(values))


def _log(result: CorrectorStats) -> None:
    log.info("rows: %s; candidates: %s", result.rows, result.candidates.row())
    log.info("%d of %d lists hold the reference", result.lists_with_reference, result.rows["out"])
    if result.cut_rows:
        log.warning(
            "%d prompts were too long and lost %d candidates from their end", result.cut_rows, result.cut_candidates
        )
    for warning in result.warnings:
        log.warning("%s", warning)
