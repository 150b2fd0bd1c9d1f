"""Rule `dump_beams`: one shard's logits -> lists of word sequences."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utterflow.beams.characters import Decode, LogProbs, character_decoder, read_classes, read_unigrams
from utterflow.beams.choice import choose_trials, missing_positions
from utterflow.beams.lexicon import read_lexicon
from utterflow.beams.ngram_scores import WordScorer, load_ngram
from utterflow.beams.search import LexiconDecoder, SearchSettings
from utterflow.beams.tokens import read_tokens
from utterflow.config.base import placement_keys
from utterflow.config.beams import Beams
from utterflow.errors import UserError
from utterflow.evaluate.normalize import basic
from utterflow.files import digest_of, write_jsonl
from utterflow.gather import Shard
from utterflow.jobs import Progress, check_rejected, log
from utterflow.journal import Journal
from utterflow.provenance import Stopwatch, input_digest, write_meta
from utterflow.records import BeamHypothesis, BeamsRow, RejectedRow, TrialRow, read_records
from utterflow.signals.stored import load_trial_logits

STAGE = "dump_beams"
# Keys that place, size or choose the work, and those whose effect the journal's digest takes in another form.
NOT_IN_RESULT = {
    "logits", "tokens", "lexicon", "ngram", "max_samples", "trial_indices", "batch_size", "max_rejected",
} | placement_keys(Beams)  # fmt: skip
DECIMALS = 4
NO_HYPOTHESIS = "no hypothesis: the search lost all sentences; a wider beam may keep some"
WIDEN = "raise `beam_prune_threshold`, `beam_size` or `token_prune`, or lower `acoustic_scale`"

Result = list[dict[str, Any]] | str  # the list, or why there is none
DecodeAll = Callable[[Iterable[LogProbs]], Iterator[Result]]


@dataclass(frozen=True)
class DecoderFiles:
    """What a decoder is made from; `arpa` lists the words of a binary `ngram`, for characters."""

    tokens: Path
    lexicon: Path | None = None
    ngram: Path | None = None
    arpa: Path | None = None

    def named(self) -> dict[str, Path]:
        """The files that there are, by role."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: path for name, path in found.items() if path is not None}


def dump_beams(
    *,
    trials: Path,
    shard: Shard,
    files: DecoderFiles,
    cfg: Beams,
    code: str,
    state: Path,
    threads: int,
    beams: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Write the lists of one shard's trials, or of those that the configuration chooses.

    Trials already in the journal are taken from there; a trial whose logits cannot be used or decoded is written to
    `rejected`.

    Raises:
        UserError: trials or decoder files cannot be used, a decoding process died, or too many trials were rejected.
    """
    watch = Stopwatch()
    present = list(read_records(trials, TrialRow))
    rows = list(choose_trials(present, cfg.max_samples, cfg.trial_indices))
    log.info("shard %d of %d: %d of its %d trials", shard.index, shard.count, len(rows), len(present))
    if lost := missing_positions(present, cfg.max_samples, cfg.trial_indices, shard.index, shard.count):
        log.warning("trial_indices without a trial (beyond the partition's end, or rejected before): %s", lost)
    decode, classes = load_decoder(files, cfg)
    keys, failures = examine(rows, classes)
    digest = digest_of(
        {
            "cfg": {name: value for name, value in cfg.model_dump(mode="json").items() if name not in NOT_IN_RESULT},
            "code": code,
            "files": {name: input_digest(path) for name, path in files.named().items()},
        }
    )
    with Journal(state, STAGE, digest, input_digest(trials), shard.index, shard.count) as journal:
        results: dict[str, Any] = journal.load(list(keys.values()))
        found_before = sum(key in results for key in keys.values())
        log.info("%d trials found in the journal, %d to do", found_before, len(keys) - found_before)
        batches = [
            [row for row in batch if row.index in keys and keys[row.index] not in results]
            for batch in make_batches(rows, cfg.batch_size)
        ]
        todo = [batch for batch in batches if batch]
        with decoding(decode, classes, threads if todo else 1) as decode_all:
            milliseconds = _fill(results, failures, todo, keys, journal, decode_all)
    kept = [row for row in rows if row.index not in failures]
    write_jsonl(beams, (beams_row(row, results[keys[row.index]]) for row in kept))
    bad = [
        RejectedRow(id=row.id, stage=STAGE, reason=failures[row.index], where=f"{row.npz}, {row.array}")
        for row in rows
        if row.index in failures
    ]
    write_jsonl(rejected, (row.row() for row in bad))
    lists = count_lists([results[keys[row.index]] for row in kept], cfg.top_n)
    warn_of_short_lists(lists, cfg.top_n)
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[trials, *files.named().values(), *sorted({Path(row.npz) for row in rows})],
        outputs={BeamsRow.RECORD: beams, RejectedRow.RECORD: rejected},
        seconds=watch.seconds(),
        rows={"in": len(rows), "out": len(kept), "rejected": len(bad), "from_journal": found_before},
        extra={
            "not_chosen": len(present) - len(rows),
            "lists": lists,
            **list_means(lists),
            "ms_per_trial": milliseconds,
            "threads": threads,
        },
    )
    check_rejected(bad, len(rows), cfg.max_rejected)


def load_decoder(files: DecoderFiles, cfg: Beams) -> tuple[Decode, int]:
    """The decoder, and the number of classes that it expects.

    Raises:
        UserError: one of the files cannot be used.
    """
    model = load_ngram(files.ngram) if files.ngram else None
    if cfg.decoder == "characters":
        alphabet = read_classes(files.tokens)
        unigrams = read_unigrams(files.arpa) if files.arpa else None
        return character_decoder(alphabet, cfg, model, unigrams), alphabet.count
    if files.lexicon is None:
        raise UserError("decoder lexicon needs a lexicon", fix="set `lexicon: <file>`")
    tokens = read_tokens(files.tokens)
    lexicon = read_lexicon(files.lexicon, tokens)
    scorer = WordScorer(model, lexicon.words, cfg.unk_score) if model is not None else None
    if scorer and scorer.unknown_words:
        log.warning("%d of the lexicon's %d words are unknown to the n-gram", scorer.unknown_words, len(lexicon.words))
    settings = SearchSettings(**{item.name: getattr(cfg, item.name) for item in fields(SearchSettings)})
    return partial(_decode_words, LexiconDecoder(tokens, lexicon, scorer, settings)), len(tokens.names)


def _decode_words(decoder: LexiconDecoder, log_probs: LogProbs) -> list[BeamHypothesis]:
    return [
        BeamHypothesis(text=beam.text, score=beam.score, acoustic_score=beam.acoustic_score, lm_score=beam.lm_score)
        for beam in decoder.decode(log_probs)
    ]


def examine(rows: Iterable[TrialRow], classes: int) -> tuple[dict[int, str], dict[int, str]]:
    """Look at each trial's logits: the key of its list by position, and the reason why there can be none.

    A key is made from all that a list depends on, beside configuration, code and decoder files.
    """
    keys: dict[int, str] = {}
    failures: dict[int, str] = {}
    for row in rows:
        try:
            log_probs = load_trial_logits(row)
        except ValueError as error:
            failures[row.index] = str(error)
            continue
        if log_probs.shape[1] != classes:
            failures[row.index] = f"wrong classes: the logits have {log_probs.shape[1]}, the tokens are {classes}"
            continue
        content = hashlib.sha256(np.ascontiguousarray(log_probs).tobytes()).hexdigest()
        keys[row.index] = digest_of({"id": row.id, "logits": content, "shape": list(log_probs.shape)})
    return keys, failures


def make_batches(rows: Sequence[TrialRow], size: int) -> list[list[TrialRow]]:
    """Longest trials first, `size` of them together: formed from all of the shard, whatever is already done."""
    ordered = sorted(rows, key=lambda row: (-row.frames, row.index))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _fill(
    results: dict[str, Any],
    failures: dict[int, str],
    batches: Sequence[Sequence[TrialRow]],
    keys: Mapping[int, str],
    journal: Journal,
    decode_all: DecodeAll,
) -> float | None:
    """Decode batches: lists go into journal and `results`, reasons into `failures`; milliseconds per trial.

    Raises:
        UserError: a decoding process died.
    """
    total = sum(map(len, batches))
    progress = Progress(total, "trials")
    start = time.perf_counter()
    lists = decode_all(load_trial_logits(row) for batch in batches for row in batch)
    for batch in batches:
        fresh = {}
        for row in batch:
            result = next(lists)
            if isinstance(result, str):
                failures[row.index] = result
            else:
                fresh[keys[row.index]] = result
        journal.append(fresh)
        results.update(fresh)
        progress.advance(len(batch))
    return round(1000 * (time.perf_counter() - start) / total, 3) if total else None


@contextmanager
def decoding(decode: Decode, classes: int, processes: int) -> Iterator[DecodeAll]:
    """A function that decodes arrays and yields their results in order, with several processes where asked to.

    The processes are forks: they share the decoder, its n-gram and its machine code, all loaded once. They end when
    this process does, however it ends.
    """
    if processes == 1:
        yield partial(map, partial(_attempt, decode))
        return
    decode(np.full((1, classes), -np.log(classes), np.float32))  # compiled here, not in each process
    pool = ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin_process,
        initargs=(decode, os.getpid()),
    )
    try:
        yield partial(_decode_in_pool, pool, 2 * processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_in_pool(pool: ProcessPoolExecutor, ahead: int, arrays: Iterable[LogProbs]) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    try:
        for log_probs in arrays:
            waiting.append(pool.submit(_attempt_in_process, log_probs))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a decoding process was killed, most often because memory ran out",
            fix="raise `mem_mb`, or lower `threads` or `beam_size`; finished trials are in the journal",
        ) from None


_decoders: list[Decode] = []  # of this process, when it is a fork


def _begin_process(decode: Decode, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _decoders.append(decode)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _attempt_in_process(log_probs: LogProbs) -> Result:
    return _attempt(_decoders[0], log_probs)


def _attempt(decode: Decode, log_probs: LogProbs) -> Result:
    """A trial's list as it goes into the journal, or why there is none."""
    try:
        found = decode(log_probs)
    except ValueError as error:
        return str(error)
    rounded = [
        {name: round(value, DECIMALS) if isinstance(value, float) else value for name, value in item.row().items()}
        for item in found
    ]
    return rounded or NO_HYPOTHESIS


def beams_row(trial: TrialRow, beams: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A trial with its list, as it is written."""
    return BeamsRow(
        id=trial.id,
        index=trial.index,
        text=trial.text,
        session=trial.session,
        group=trial.group,
        logits=trial.logits,
        beams=[BeamHypothesis.model_validate(item) for item in beams],
    ).row()


def count_lists(lists: Sequence[Sequence[Mapping[str, Any]]], top_n: int) -> dict[str, int]:
    """Lists, their hypotheses, those that differ in more than case and punctuation, lists of one, short lists."""
    return {
        "trials": len(lists),
        "hypotheses": sum(map(len, lists)),
        "distinct": sum(len({basic(item["text"]) for item in found}) for found in lists),
        "single": sum(len(found) == 1 for found in lists),
        "below_top_n": sum(len(found) < top_n for found in lists),
    }


def list_means(lists: Mapping[str, int]) -> dict[str, float | None]:
    """Hypotheses per trial; None without trials."""
    trials = lists["trials"]
    return {
        "mean_hypotheses": round(lists["hypotheses"] / trials, 2) if trials else None,
        "mean_distinct_hypotheses": round(lists["distinct"] / trials, 2) if trials else None,
    }


def warn_of_short_lists(lists: Mapping[str, int], top_n: int) -> None:
    """Say in the log where lists have collapsed to one hypothesis, or are shorter than asked for."""
    trials, single, below = lists["trials"], lists["single"], lists["below_top_n"]
    if top_n > 1 and single:
        what = "all" if single == trials else f"{single} of"
        log.warning("collapsed beams: %s %d trials have a single hypothesis; %s", what, trials, WIDEN)
    if below:
        mean = lists["hypotheses"] / trials
        log.warning(
            "%d of %d trials have fewer than top_n = %d hypotheses (mean %.1f); %s", below, trials, top_n, mean, WIDEN
        )
