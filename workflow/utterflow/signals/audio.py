"""Rule `save_logits`, source audio: recordings of a corpus -> logits of a Hugging Face CTC model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utterflow.asr.transcribe import make_batches, read_shard, row_key
from utterflow.audio import AudioError, load_row_audio
from utterflow.config.signals import AudioLogits
from utterflow.errors import UserError
from utterflow.files import digest_of
from utterflow.gather import Shard
from utterflow.jobs import Progress, check_rejected, log
from utterflow.models.devices import choose_device, device_name
from utterflow.models.folders import model_digest
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import ManifestRow, RejectedRow, TrialRow
from utterflow.signals.logits import RECORD, STAGE, Computed, ShardFiles, write_shard
from utterflow.signals.stored import array_names, npz_writer, read_array

NO_NUMBERS = "not numbers: the model gives values that are none"
TOO_SHORT = "too short: the model makes no frame of it"


@dataclass(frozen=True)
class CtcModel:
    """A loaded checkpoint. `padded`: whether its output is the same when a recording is padded in a batch."""

    model: Any
    extractor: Any
    device: torch.device
    padded: bool

    @property
    def sample_rate(self) -> int:
        return int(self.extractor.sampling_rate)

    def frames(self, samples: int) -> int | None:
        """Frames of so many samples; None where the model does not tell."""
        lengths = getattr(self.model, "_get_feat_extract_output_lengths", None)
        return int(lengths(torch.tensor(samples))) if lengths else None


def save_audio_logits(
    *,
    manifest: Path,
    folder: Path,
    shard: Shard,
    cfg: AudioLogits,
    code: str,
    state: Path,
    threads: int,
    files: ShardFiles,
) -> None:
    """Write the log-probabilities of one shard of a corpus, float32; noise of the manifest is added to the audio.

    Finished batches are kept below `state` until all are there: a killed job computes the others only.

    Raises:
        UserError: model or manifest cannot be used, or too many rows were rejected.
    """
    watch = Stopwatch()
    torch.set_num_threads(threads)
    device = choose_device(cfg.device)
    rows = read_shard(manifest, shard)
    model = load_ctc_model(folder, device)
    log.info("shard %d of %d: %d rows; model %s, %s", shard.index, shard.count, len(rows), folder, device)
    if not model.padded:
        log.info("recordings are computed one by one: this model's output changes with padding")
    places = {row.id: shard.index + place * shard.count for place, row in enumerate(rows)}

    weights = model_digest(folder)
    kept_batches = state / STAGE / digest_of({"code": code, "model": weights})[:32]
    used: list[Path] = []

    def computed() -> Iterator[Computed]:
        progress = Progress(len(rows), "rows")
        for batch in make_batches(rows, cfg.batch_size if model.padded else 1):
            used.append(kept_batches / f"{digest_of([row_key(row) for row in batch])[:32]}.npz")
            for row, found in zip(batch, _kept_batch(model, batch, used[-1]), strict=True):
                if isinstance(found, str):
                    yield RejectedRow(id=row.id, stage=STAGE, reason=found, where=row.audio)
                else:
                    yield _row(row, places[row.id], found), found
            progress.advance(len(batch))

    kept, lost = write_shard(files, (), computed(), shard)
    write_meta(
        files.meta,
        rule=STAGE,
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[manifest],
        outputs={RECORD: files.logits, TrialRow.RECORD: files.trials, RejectedRow.RECORD: files.rejected},
        seconds=watch.seconds(),
        rows={"in": len(rows), "out": kept, "rejected": len(lost)},
        device=device_name(device),
        extra={"origin": "unknown", "model": str(folder), "model_digest": weights, "threads": threads},
    )
    for path in used:
        path.unlink(missing_ok=True)
    check_rejected(lost, len(rows), cfg.max_rejected)


def load_ctc_model(folder: Path, device: torch.device) -> CtcModel:
    """Load a CTC checkpoint from a folder: safetensors only, no code from the checkpoint, nothing from the network.

    Where the feature encoder normalises over time (`feat_extract_norm: group`), or the model does not tell how many
    frames it makes, padding changes the output, and recordings have to be computed one by one.

    Raises:
        UserError: the folder is missing or incomplete, or holds no CTC model.
    """
    from safetensors import SafetensorError
    from transformers import AutoFeatureExtractor, AutoModelForCTC
    from transformers.utils import logging as transformers_logging

    if not folder.is_dir():
        raise UserError("model folder not found", where=str(folder), fix="correct `model`, or fetch it first")
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        load: Any = AutoFeatureExtractor.from_pretrained
        extractor = load(folder, local_files_only=True, trust_remote_code=False)
        model, loading = AutoModelForCTC.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load this CTC model: {error}", where=str(folder)) from None
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"the checkpoint lacks {len(missing)} of the model's weights, e.g. {missing[0]}",
            where=str(folder),
            fix="take a checkpoint that was fine-tuned with CTC",
        )
    tells_frames = hasattr(model, "_get_feat_extract_output_lengths")
    padded = tells_frames and getattr(model.config, "feat_extract_norm", "group") == "layer"
    return CtcModel(model.to(device).eval(), extractor, device, padded)


@torch.inference_mode()
def ctc_logits(model: CtcModel, signals: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Log-probabilities [frames, classes] of each recording of a batch.

    Raises:
        UserError: the GPU's memory is too small for the batch.
    """
    inputs = model.extractor(
        list(signals),
        sampling_rate=model.sample_rate,
        padding=len(signals) > 1,
        return_attention_mask=len(signals) > 1,
        return_tensors="pt",
    ).to(model.device)
    try:
        logs = model.model(**inputs).logits.float().log_softmax(-1).cpu().numpy()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU's memory is too small for this batch: {error}", fix="lower `batch_size`, or take a larger GPU"
        ) from None
    frames = [model.frames(len(signal)) for signal in signals]
    return [array[:length].copy() for array, length in zip(logs, frames, strict=True)]


def _kept_batch(model: CtcModel, rows: Sequence[ManifestRow], path: Path) -> list[NDArray[np.float32] | str]:
    """What `_batch` gives; taken from `path` where it was put before. A batch with rejected rows is not kept."""
    if path.is_file():
        return [read_array(path, name) for name in array_names(path)]
    found = _batch(model, rows)
    arrays = [item for item in found if not isinstance(item, str)]
    if len(arrays) == len(rows):
        with npz_writer(path) as writer:
            for place, array in enumerate(arrays):
                writer.add(f"arr_{place}", array)
    return found


def _batch(model: CtcModel, rows: Sequence[ManifestRow]) -> list[NDArray[np.float32] | str]:
    """Each row's log-probabilities, or the reason why there are none."""
    signals = [_signal(model, row) for row in rows]
    good = [signal for signal in signals if not isinstance(signal, str)]
    logits = iter(ctc_logits(model, good) if good else [])
    return [signal if isinstance(signal, str) else _checked(next(logits)) for signal in signals]


def _signal(model: CtcModel, row: ManifestRow) -> NDArray[np.float32] | str:
    try:
        signal = load_row_audio(row, model.sample_rate)
    except AudioError as error:
        return str(error)
    frames = model.frames(len(signal))
    return signal if frames is None or frames > 0 else TOO_SHORT


def _checked(logits: NDArray[np.float32]) -> NDArray[np.float32] | str:
    return logits if np.isfinite(logits).all() else NO_NUMBERS


def _row(row: ManifestRow, index: int, logits: NDArray[np.float32]) -> TrialRow:
    return TrialRow(
        id=row.id,
        index=index,
        npz="",
        array="",
        frames=len(logits),
        text=row.text,
        session=None,
        group=row.group,
        logits="unknown",
    )
