"""The stage `prepare_corpus`: annotations and audio files to a manifest."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from utterflow.audio import SAMPLE_RATE, AudioError, load_audio
from utterflow.config.corpora import AnyCorpus, Corpus, NoiseConfig
from utterflow.corpora.adapters import ADAPTERS, source_files
from utterflow.corpora.candidates import Candidate, Entry, reject
from utterflow.corpora.sampling import chosen_positions
from utterflow.errors import UserError
from utterflow.files import atomic_writer, file_sha256, json_line, seed_of
from utterflow.jobs import Progress, log
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import ManifestRow, Noise, RejectedRow

RULE = "prepare_corpus"
QUEUE = 32
SHOWN = 5
NO_GROUP = "(none)"


@dataclass(frozen=True)
class Probe:
    """What decoding a recording told: its length and its identity, or what is wrong with it."""

    seconds: float = 0.0
    sha256: str = ""
    bytes: int = 0
    problem: str | None = None


@dataclass
class Tally:
    """Counts of a run, and the first examples of each reason for a rejection."""

    used: int = 0
    rejected: int = 0
    texts: int = 0
    audio_seconds: float = 0.0
    groups: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[RejectedRow]] = field(default_factory=lambda: defaultdict(list))

    def count(self, row: ManifestRow | RejectedRow) -> None:
        if isinstance(row, RejectedRow):
            kind = row.reason.split(":")[0]
            self.rejected += 1
            self.reasons[kind] += 1
            if len(self.examples[kind]) < 2:
                self.examples[kind].append(row)
            return
        self.used += 1
        self.texts += row.text is not None
        self.audio_seconds += row.seconds
        self.groups[row.group if row.group is not None else NO_GROUP] += 1


def prepare_corpus(
    config: Mapping[str, Any],
    manifest: Path,
    rejected: Path,
    meta: Path,
    *,
    code: str,
    threads: int = 1,
    failed: Path | None = None,
) -> None:
    """Make the manifest of a corpus: each chosen entry becomes a manifest row or a rejected row, in corpus order.

    Every recording is decoded to its end, by `threads` processes.

    Args:
        config: a corpus's section of the configuration.
        failed: where the rejected rows go too when there are too many of them; removed otherwise.

    Raises:
        UserError: annotations or folders are missing, there are no rows, or more than `max_rejected` of them are
            rejected; then the rejected rows are written, and no manifest.
    """
    watch = Stopwatch()
    if failed is not None:
        failed.unlink(missing_ok=True)
    cfg: AnyCorpus = TypeAdapter(AnyCorpus).validate_python(dict(config))
    total, chosen = choose(cfg)
    log.info("%s: %d entries, %d chosen", cfg.adapter, total, len(chosen))
    tally = Tally()
    with atomic_writer(manifest) as kept:
        with atomic_writer(rejected) as dropped:
            for row, line in rows_of(cfg, chosen, threads):
                (dropped if isinstance(row, RejectedRow) else kept).write(line)
                tally.count(row)
        check(tally, cfg, rejected, failed)
    log_summary(tally)
    write_meta(
        meta,
        rule=RULE,
        cfg=config,
        code=code,
        inputs=[Path(file) for file in source_files(cfg)],
        outputs={ManifestRow.RECORD: manifest, RejectedRow.RECORD: rejected},
        seconds=watch.seconds(),
        rows={
            "in": len(chosen),
            "out": tally.used,
            "rejected": tally.rejected,
            "not_drawn": total - len(chosen),
        },
        extra={
            "audio_seconds": round(tally.audio_seconds, 3),
            "groups": dict(sorted(tally.groups.items())),
            "reasons": dict(tally.reasons.most_common()),
        },
    )


def entries(cfg: AnyCorpus) -> Iterator[Entry]:
    """The adapter's entries; one that repeats an earlier id becomes a rejected row."""
    first: dict[str, str] = {}
    for entry in ADAPTERS[cfg.adapter].read(cfg):
        if isinstance(entry, Candidate):
            if entry.id in first:
                yield reject(entry.id, f"repeated id: first at {first[entry.id]}", entry.where)
                continue
            first[entry.id] = entry.where
        yield entry


def choose(cfg: AnyCorpus) -> tuple[int, list[int]]:
    """The number of entries, and the positions of those to use.

    Raises:
        UserError: there are none.
    """
    ids: list[str] = []
    groups: list[str | None] = []
    for entry in entries(cfg):
        ids.append(entry.id)
        groups.append(entry.group if isinstance(entry, Candidate) else None)
    if not ids:
        raise UserError(
            "the corpus has no rows",
            where=", ".join(source_files(cfg)) or str(cfg),
            fix="check the configured paths",
        )
    return len(ids), chosen_positions(ids, groups, cfg)


def rows_of(cfg: AnyCorpus, chosen: list[int], threads: int) -> Iterator[tuple[ManifestRow | RejectedRow, str]]:
    """Yield each chosen entry as (row, its line in the file), in corpus order."""
    wanted = set(chosen)
    picked = (entry for position, entry in enumerate(entries(cfg)) if position in wanted)
    progress = Progress(len(chosen))
    for entry, probe in probed(picked, threads):
        row = entry if isinstance(entry, RejectedRow) else finish(entry, probe, cfg)
        yield written(row, entry)
        progress.advance(1)


def probed(picked: Iterator[Entry], threads: int) -> Iterator[tuple[Entry, Probe]]:
    """Yield (entry, probe of its recording) in order; at most `QUEUE` per process are under way.

    Raises:
        UserError: a decoding process died.
    """
    if threads == 1:
        yield from ((entry, probe_entry(entry)) for entry in picked)
        return
    context = multiprocessing.get_context("fork")
    waiting: deque[tuple[Entry, Future[Probe]]] = deque()
    with ProcessPoolExecutor(threads, mp_context=context) as pool:
        try:
            for entry in picked:
                waiting.append((entry, pool.submit(probe_entry, entry)))
                if len(waiting) >= QUEUE * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process that decodes audio was killed",
                where=f"one of the {QUEUE * threads} recordings from {done.id} on",
                fix="give the rule more memory, or set `threads: 1` to find the recording that does it",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def probe_entry(entry: Entry) -> Probe:
    """Decode an entry's recording to its end."""
    if isinstance(entry, RejectedRow):
        return Probe()
    try:
        samples = load_audio(entry.audio).size
        path = Path(entry.audio)
        return Probe(samples / SAMPLE_RATE, file_sha256(path), path.stat().st_size)
    except AudioError as error:
        return Probe(problem=str(error))
    except OSError as error:
        return Probe(problem=f"broken: {entry.audio} ({error.strerror})")


def finish(candidate: Candidate, probe: Probe, cfg: Corpus) -> ManifestRow | RejectedRow:
    """The candidate with what its recording told, or why it cannot be used."""
    problem = probe.problem
    if problem is None and probe.seconds < cfg.min_seconds:
        problem = f"too short: {candidate.audio} lasts {probe.seconds:.3f} s, min_seconds is {cfg.min_seconds:g}"
    if problem is None and cfg.max_seconds is not None and probe.seconds > cfg.max_seconds:
        problem = f"too long: {candidate.audio} lasts {probe.seconds:.3f} s, max_seconds is {cfg.max_seconds:g}"
    if problem is not None:
        return reject(candidate.id, problem, candidate.where)
    try:
        return ManifestRow(
            id=candidate.id,
            audio=candidate.audio,
            audio_sha256=probe.sha256,
            audio_bytes=probe.bytes,
            seconds=round(probe.seconds, 6),
            text=candidate.text,
            speaker=candidate.speaker,
            group=candidate.group,
            noise=draw_noise(cfg.noise, candidate.id) if cfg.noise else None,
            **candidate.extra,
        )
    except ValueError as error:
        return reject(candidate.id, f"unreadable: {_first_fault(error)}", candidate.where)


def _first_fault(error: ValueError) -> str:
    """A row that does not fit its record: which field, and why; half a surrogate has no UTF-8 form."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"field {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def draw_noise(cfg: NoiseConfig, id: str) -> Noise:
    """The noise of one row: level and colour uniform within the configured bounds, from the row's id."""
    rng = np.random.default_rng(seed_of(cfg.seed, id))
    return Noise(
        snr_db=round(float(rng.uniform(*cfg.snr_db)), 3),
        color=round(float(rng.uniform(*cfg.color)), 3),
        seed=int(rng.integers(2**31)),
    )


def written(row: ManifestRow | RejectedRow, entry: Entry) -> tuple[ManifestRow | RejectedRow, str]:
    """The row with its line; one that JSON or UTF-8 cannot hold (NaN, half a surrogate) is rejected."""
    try:
        line = json_line(row.row())
        line.encode()
    except ValueError as error:
        row = reject(entry.id, f"unreadable: {error}", entry.where or "")
        line = json_line(row.row())
    return row, line


def check(tally: Tally, cfg: AnyCorpus, rejected: Path, failed: Path | None) -> None:
    """
    Raises:
        UserError: too many rows were rejected, or all.
    """
    total = tally.used + tally.rejected
    share = tally.rejected / total
    if tally.used and share <= cfg.max_rejected:
        return
    if failed is not None:
        failed.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(rejected, failed)
    limit = f"max_rejected allows {cfg.max_rejected:.2%}" if tally.used else "none is left"
    raise UserError(
        f"{tally.rejected} of {total} rows ({share:.2%}) cannot be used; {limit}\n" + "\n".join(reasons(tally)),
        where=str(failed or rejected),
        fix="mend or remove these recordings, or raise the corpus's `max_rejected`",
    )


def reasons(tally: Tally) -> list[str]:
    """The commonest reasons for rejections, each with its count and first examples."""
    return [
        f"  {count} {kind}, e.g. " + "; ".join(f"{row.id} ({row.reason}; {row.where})" for row in tally.examples[kind])
        for kind, count in tally.reasons.most_common(SHOWN)
    ]


def log_summary(tally: Tally) -> None:
    log.info("%d rows, %.2f h of audio, %d rejected", tally.used, tally.audio_seconds / 3600, tally.rejected)
    for line in reasons(tally):
        log.warning("rejected:%s", line)
    if tally.texts == 0:
        log.warning("no row has a reference transcript: the corpus can be transcribed, not scored")
    elif tally.texts < tally.used:
        log.warning("%d rows have no reference transcript", tally.used - tally.texts)
