"""Rule `transcribe`: one shard of a corpus -> n-best lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utterflow.asr.recognise import Recognised, choose_method, recognise
from utterflow.asr.whisper import Whisper, check_model_folder, load_whisper
from utterflow.audio import AudioError, load_row_audio
from utterflow.config.asr import AsrVariant
from utterflow.config.base import placement_keys
from utterflow.errors import UserError
from utterflow.files import digest_of, parse_object, text_lines, write_jsonl
from utterflow.gather import Shard
from utterflow.jobs import Progress, check_rejected, log
from utterflow.journal import Journal
from utterflow.models.devices import choose_device, choose_dtype, device_name
from utterflow.models.folders import model_digest
from utterflow.provenance import Stopwatch, input_digest, write_meta
from utterflow.records import ManifestRow, NbestRow, RejectedRow, parse_record

STAGE = "transcribe"
NO_NUMBERS = "no scores: the model gives values that are not numbers (float16 can overflow: try another dtype)"
# Keys that place or size the work, and those whose effect the journal's digest takes in another form.
NOT_IN_RESULT = {"batch_size", "max_rejected", "device", "dtype", "model", "revision"} | placement_keys(AsrVariant)


def read_shard(manifest: Path, shard: Shard) -> list[ManifestRow]:
    """The shard's rows, in the manifest's order; other shards' lines are not parsed."""
    return [
        parse_record(ManifestRow, parse_object(line, manifest, number), f"{manifest}, line {number}")
        for number, line in islice(text_lines(manifest), shard.index, None, shard.count)
    ]


def row_key(row: ManifestRow) -> str:
    """What a row's n-best list depends on, beside config and code."""
    noise = row.noise.row() if row.noise else None
    return digest_of({"id": row.id, "audio": row.audio_sha256, "noise": noise})


def make_batches(rows: Sequence[ManifestRow], size: int) -> list[list[ManifestRow]]:
    """Longest rows first, `size` rows together: formed from all rows of the shard, whatever is already done."""
    ordered = sorted(rows, key=lambda row: (-row.seconds, row.id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def transcribe(
    *,
    manifest: Path,
    shard: Shard,
    model: Path,
    cfg: AsrVariant,
    code: str,
    state: Path,
    threads: int,
    nbest: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Write the n-best lists of one shard.

    Rows already in the journal are taken from there; a row whose audio cannot be used is written to `rejected`.

    Raises:
        UserError: model or manifest cannot be used, or too many rows were rejected.
    """
    watch = Stopwatch()
    torch.set_num_threads(threads)
    check_model_folder(model)
    device = choose_device(cfg.device)
    dtype = choose_dtype(cfg.dtype, device)
    method = choose_method(cfg)
    rows = read_shard(manifest, shard)
    log.info("shard %d of %d: %d rows; model %s, %s, %s", shard.index, shard.count, len(rows), model, device, dtype)
    if method.fallback:
        log.warning("%s cannot run (%s): falling back to %s", cfg.diversity_method, method.fallback, method.name)
    weights = model_digest(model)
    digest = digest_of(
        {
            "cfg": {name: value for name, value in cfg.model_dump(mode="json").items() if name not in NOT_IN_RESULT},
            "code": code,
            "model": weights,
            "dtype": str(dtype),
        }
    )
    with Journal(state, STAGE, digest, input_digest(manifest), shard.index, shard.count) as journal:
        results = journal.load([row_key(row) for row in rows])
        found_before = sum(row_key(row) in results for row in rows)
        log.info("%d rows found in the journal, %d to do", found_before, len(rows) - found_before)
        failures = _fill(results, rows, journal, cfg, lambda: load_whisper(model, device, dtype))
    kept = [row for row in rows if row_key(row) in results]
    write_jsonl(nbest, (_nbest_row(row, results[row_key(row)]) for row in kept))
    lost = [
        RejectedRow(id=row.id, stage=STAGE, reason=failures[row_key(row)], where=row.audio)
        for row in rows
        if row_key(row) in failures
    ]
    write_jsonl(rejected, (row.row() for row in lost))
    write_meta(
        meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[manifest],
        outputs={NbestRow.RECORD: nbest, RejectedRow.RECORD: rejected},
        seconds=watch.seconds(),
        rows={"in": len(rows), "out": len(kept), "rejected": len(lost), "from_journal": found_before},
        device=device_name(device),
        extra={
            "dtype": str(dtype).removeprefix("torch."),
            "model": str(model),
            "model_digest": weights,
            "threads": threads,
            "audio_seconds": round(sum(row.seconds for row in kept), 3),
        },
    )
    check_rejected(lost, len(rows), cfg.max_rejected)


def _fill(
    results: dict[str, Any],
    rows: Sequence[ManifestRow],
    journal: Journal,
    cfg: AsrVariant,
    load_model: Callable[[], Whisper],
) -> dict[str, str]:
    """Compute what is missing from `results`, batch by batch; row key -> reason of the rows that cannot be used.

    Raises:
        UserError: the GPU's memory is too small for a batch.
    """
    failures: dict[str, str] = {}
    batches = [[row for row in batch if row_key(row) not in results] for batch in make_batches(rows, cfg.batch_size)]
    todo = [batch for batch in batches if batch]
    if not todo:
        return failures
    whisper = load_model()
    max_seconds = whisper.window_samples / whisper.sample_rate if cfg.long_audio == "reject" else float("inf")
    method = choose_method(cfg)
    progress = Progress(sum(map(len, todo)))
    for batch, signals in _prefetch(todo, whisper.sample_rate, max_seconds):
        good = [(row, signal) for row, signal in zip(batch, signals, strict=True) if isinstance(signal, np.ndarray)]
        failures |= {row_key(row): why for row, why in zip(batch, signals, strict=True) if isinstance(why, str)}
        if good:
            try:
                found = recognise(whisper, [signal for _, signal in good], [row.id for row, _ in good], cfg)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"the GPU's memory is too small for this batch: {error}",
                    fix="lower `batch_size` (or `sampling_pool`) and start again: finished rows are in the journal",
                ) from None
            listed = {row_key(row): item for (row, _), item in zip(good, found, strict=True)}
            failures |= {key: NO_NUMBERS for key, item in listed.items() if not item.hypotheses}
            fresh = {
                key: _result(item, method.name, method.fallback) for key, item in listed.items() if item.hypotheses
            }
            journal.append(fresh)
            results.update(fresh)
        progress.advance(len(batch))
    return failures


def _prefetch(
    batches: Sequence[Sequence[ManifestRow]], sample_rate: int, max_seconds: float
) -> Iterator[tuple[Sequence[ManifestRow], list[NDArray[Any] | str]]]:
    """Each batch with its signals (or the reason why there is none); the next one is decoded meanwhile."""

    def load(batch: Sequence[ManifestRow]) -> list[NDArray[Any] | str]:
        return [_signal(row, sample_rate, max_seconds) for row in batch]

    with ThreadPoolExecutor(1) as pool:
        coming: Future[list[NDArray[Any] | str]] = pool.submit(load, batches[0])
        for index, batch in enumerate(batches):
            signals = coming.result()
            if index + 1 < len(batches):
                coming = pool.submit(load, batches[index + 1])
            yield batch, signals


def _signal(row: ManifestRow, sample_rate: int, max_seconds: float) -> NDArray[Any] | str:
    if row.seconds > max_seconds:
        return f"longer than the model's window: {row.seconds:.1f} s > {max_seconds:g} s (long_audio: reject)"
    try:
        return load_row_audio(row, sample_rate)
    except AudioError as error:
        return str(error)


def _result(item: Recognised, method: str, fallback: str | None) -> dict[str, Any]:
    return {
        "asr_hypotheses": [hypothesis.row() for hypothesis in item.hypotheses],
        "asr_method": method,
        "asr_fallback": fallback,
        "asr_language": item.language,
        "asr_windows": item.windows,
    }


def _nbest_row(row: ManifestRow, result: Mapping[str, Any]) -> dict[str, Any]:
    return parse_record(NbestRow, {**row.row(), **result}, f"row {row.id}").row()
