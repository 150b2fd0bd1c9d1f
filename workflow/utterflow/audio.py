"""Audio files to arrays, and noise added to them."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from utterflow.files import file_sha256
from utterflow.records import ManifestRow, Noise

SAMPLE_RATE = 16_000
NOISE_PEAK = 0.8
LOST_SHARE = 0.01
LOST_SECONDS = 0.05
EXACT_LENGTH = {"flac", "mov,mp4,m4a,3gp,3g2,mj2", "aiff", "caf", "w64", "au"}
WAV_SIZE_UNKNOWN = 0x7FF00000

Signal = NDArray[np.float32]


class AudioError(Exception):
    """A recording that cannot be used. The message is short and starts with the kind of fault and a colon."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}")


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Signal:
    """Read a recording in any container that PyAV (FFmpeg) reads.

    Channels are averaged; the whole signal is resampled at once with soxr, quality HQ. A file counts as
    broken when more than 1 % of it, and more than 50 ms, does not decode: measured against the length that
    its container gives, where that is exact (wav, flac, mp4, webm, mp3 with a Xing header, ...), against an
    Ogg page that runs over the end of the file, and against the packets that fail to decode. A smaller loss
    is left out silently.

    Returns:
        Mono float32 of shape [samples], full scale at -1 and 1.

    Raises:
        AudioError: `missing`, `empty`, `no audio stream` or `broken`.
    """
    file = Path(path)
    try:
        size = file.stat().st_size if file.is_file() else -1
    except OSError as error:
        raise AudioError("missing", f"{path} ({error.strerror})") from None
    if size < 0:
        raise AudioError("missing", str(path))
    if size == 0:
        raise AudioError("empty", f"{path} has no bytes")
    try:
        signal, rate = _decode(file)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError("broken", f"{path} ({getattr(error, 'strerror', None) or error})") from None
    if not signal.size:
        raise AudioError("empty", f"{path} has no samples")
    if not np.isfinite(signal).all():
        raise AudioError("broken", f"{path} (holds samples that are not numbers)")
    if rate != sample_rate:
        signal = np.asarray(soxr.resample(signal, rate, sample_rate, quality="HQ"), dtype=np.float32)
    return signal


def add_noise(signal: Signal, noise: Noise) -> Signal:
    """Add coloured noise of a given signal-to-noise ratio.

    The noise is the inverse Fourier transform of a complex standard normal spectrum, divided by frequency to
    the power of half of `noise.color` (Timmer and Koenig 1995), scaled to unit standard deviation. The sum is
    scaled to a peak of 0.8. A silent signal stays silent.

    Args:
        signal: shape [samples].

    Returns:
        Shape [samples], float32.
    """
    clean = signal.astype(np.float64)
    level = float(np.sqrt(np.mean(clean**2))) if clean.size else 0.0
    if level == 0.0:
        return signal.astype(np.float32)
    noisy = clean + level * 10 ** (-noise.snr_db / 20) * _coloured(clean.size, noise)
    return np.asarray(NOISE_PEAK * noisy / np.abs(noisy).max(), dtype=np.float32)


def load_row_audio(row: ManifestRow, sample_rate: int = SAMPLE_RATE) -> Signal:
    """The recording of a manifest row, with the row's noise: mono float32 of shape [samples].

    Raises:
        AudioError: as `load_audio`, and `changed since prepare_corpus` where the file's bytes are others.
    """
    with contextlib.suppress(OSError):
        size = Path(row.audio).stat().st_size
        if size != row.audio_bytes:
            raise AudioError("changed since prepare_corpus", f"{row.audio} had {row.audio_bytes} bytes, has {size}")
        if file_sha256(Path(row.audio)) != row.audio_sha256:
            raise AudioError("changed since prepare_corpus", f"{row.audio} has another checksum")
    signal = load_audio(row.audio, sample_rate)
    return add_noise(signal, row.noise) if row.noise else signal


def _coloured(samples: int, noise: Noise) -> NDArray[np.float64]:
    frequencies = np.fft.rfftfreq(samples)
    if samples < 2:
        return np.zeros(samples)
    frequencies[0] = frequencies[1]
    rng = np.random.default_rng(noise.seed)
    spectrum = rng.standard_normal(frequencies.size) + 1j * rng.standard_normal(frequencies.size)
    coloured = np.fft.irfft(spectrum / frequencies ** (noise.color / 2), n=samples)
    return np.asarray(coloured / coloured.std())


def _decode(file: Path) -> tuple[Signal, int]:
    parts: list[Signal] = []
    rates: set[int] = set()
    packets = failed = 0
    with av.open(f"file:{file}", metadata_errors="ignore") as container:
        stream = container.streams.best("audio")
        if stream is None:
            raise AudioError("no audio stream", str(file))
        if stream.codec_context is None:
            raise AudioError("broken", f"{file} (unknown codec)")
        demuxer = container.demux(stream)
        while (packet := _next_packet(demuxer)) is not None:
            packets += 1
            try:
                frames = packet.decode()
            except av.FFmpegError:
                failed += 1
                continue
            for frame in frames:
                parts.append(_mono(frame))
                rates.add(frame.sample_rate)
        promised = _promised_seconds(file, container, stream)
    if len(rates) > 1:
        raise AudioError("broken", f"{file} (sample rate changes: {sorted(rates)})")
    if failed > 1 + LOST_SHARE * packets or (failed and not parts):
        raise AudioError("broken", f"{file} ({failed} of {packets} packets do not decode)")
    signal = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    rate = rates.pop() if rates else SAMPLE_RATE
    seconds = signal.size / rate
    if promised is not None and promised - seconds > max(LOST_SECONDS, LOST_SHARE * promised):
        raise AudioError("broken", f"{file} (truncated: {seconds:.2f} s of {promised:.2f} s)")
    if _ogg_page_overruns(file):
        raise AudioError("broken", f"{file} (truncated: the last Ogg page is incomplete)")
    return signal, rate


def _next_packet(demuxer: Any) -> Any:
    """The next packet; None at the end, wherever the demuxer puts it."""
    try:
        return next(demuxer, None)
    except av.FFmpegError:
        return None


def _mono(frame: Any) -> Signal:
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype == np.uint8:
        data = (data.astype(np.float32) - 128) / 128
    elif np.issubdtype(data.dtype, np.integer):
        data = data.astype(np.float32) / np.float32(-float(np.iinfo(data.dtype).min))
    return np.asarray(data.mean(axis=0), dtype=np.float32)


def _promised_seconds(file: Path, container: Any, stream: Any) -> float | None:
    """The duration that the container states; None where it states none, or only an estimate."""
    name = container.format.name
    if name == "wav":
        return _wav_seconds(file)
    if name == "matroska,webm":
        return container.duration / av.time_base if container.duration and len(container.streams) == 1 else None
    exact = name in EXACT_LENGTH or (name == "mp3" and _has_xing_header(file))
    return float(stream.duration * stream.time_base) if exact and stream.duration else None


def _wav_seconds(file: Path) -> float | None:
    """Seconds that a RIFF file's header promises; None where a writer left the size open."""
    rate = 0
    with file.open("rb") as handle:
        if handle.read(4) != b"RIFF":
            return None
        handle.seek(12)
        while len(header := handle.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                return size / rate if rate and 0 < size < WAV_SIZE_UNKNOWN else None
            if name == b"fmt ":
                rate = struct.unpack("<I", handle.read(12)[8:].ljust(4, b"\0"))[0]
                size -= 12
            handle.seek(size + size % 2, 1)
    return None


def _has_xing_header(file: Path) -> bool:
    with file.open("rb") as handle:
        head = handle.read(1 << 16)
    return b"Xing" in head or b"Info" in head


def _ogg_page_overruns(file: Path) -> bool:
    size = file.stat().st_size
    with file.open("rb") as handle:
        if handle.read(4) != b"OggS":
            return False
        handle.seek(max(0, size - (1 << 17)))
        tail = handle.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27:
        return True
    segments = page[26]
    return len(page) < 27 + segments + sum(page[27 : 27 + segments])
