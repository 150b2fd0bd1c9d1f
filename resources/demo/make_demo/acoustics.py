"""What happens to a waveform between the synthesiser and a file: trimming, noise, distortion, Opus."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soxr
from scipy.signal import butter, fftconvolve, lfilter, sosfilt

SAMPLE_RATE = 16_000
PEAK = 0.8
MAX_SECONDS = 4.9
OPUS_BITS_PER_SECOND = 24_000
ETIOLOGIES = ("wobble", "slurred", "breathy", "typical")


def trim_and_resample(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cut the silence at both ends, resample to 16 kHz, bring the peak to one."""
    loud = np.flatnonzero(np.abs(samples) > 0.003)
    kept = samples[max(0, loud[0] - 400) : loud[-1] + 400]
    speech = soxr.resample(kept, sample_rate, SAMPLE_RATE).astype(np.float32)
    return speech / np.abs(speech).max()


def add_margins(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Put 0.05 to 0.25 s of silence before and after."""
    before, after = (int(rng.uniform(0.05, 0.25) * SAMPLE_RATE) for _ in range(2))
    return np.pad(samples, (before, after))


def coloured_noise(length: int, beta: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit deviation whose power falls as 1/f**beta: white for 0, pink for 1."""
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    frequencies[0] = frequencies[1]
    bins = len(frequencies)
    spectrum = rng.standard_normal(bins) + 1j * rng.standard_normal(bins)
    noise = np.fft.irfft(spectrum / frequencies ** (beta / 2), length)
    return (noise / noise.std()).astype(np.float32)


def peak_normalise(samples: np.ndarray) -> np.ndarray:
    """Scale so that the loudest sample is at `PEAK`."""
    return (samples / np.abs(samples).max() * PEAK).astype(np.float32)


def add_noise(samples: np.ndarray, snr_db: float, beta: float, rng: np.random.Generator) -> np.ndarray:
    """Add coloured noise at a signal-to-noise ratio, then normalise the peak."""
    rms = np.sqrt(np.mean(samples**2))
    noise = coloured_noise(len(samples), beta, rng)
    return peak_normalise(samples + rms * 10 ** (-snr_db / 20) * noise)


def wobble(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Slow waves in tempo and pitch; gives the samples and the SNR that goes with them."""
    rate, depth, phase = rng.uniform(3, 5), rng.uniform(0.10, 0.18), rng.uniform(0, 2 * np.pi)
    time = np.arange(len(samples))
    angle = 2 * np.pi * rate * time / SAMPLE_RATE + phase
    positions = time + depth * SAMPLE_RATE / (2 * np.pi * rate) * np.sin(angle)
    return np.interp(positions, time, samples).astype(np.float32), rng.uniform(10, 18)


def slur(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Sounds run into each other (a short dense echo) and lose everything above 1.5 to 2 kHz."""
    length = int(0.16 * SAMPLE_RATE)
    echo = np.exp(-np.arange(length) / (0.045 * SAMPLE_RATE)) * rng.standard_normal(length)
    echo[0] += 2
    smeared = fftconvolve(samples, echo)[: len(samples) + 1200]
    low_pass = butter(4, rng.uniform(1500, 2000), fs=SAMPLE_RATE, output="sos")
    return sosfilt(low_pass, smeared).astype(np.float32), rng.uniform(18, 26)


def breathe(samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A trembling loudness, breath noise that follows the voice, and a narrow band."""
    time = np.arange(len(samples)) / SAMPLE_RATE
    trembling = samples * (1 + 0.7 * np.sin(2 * np.pi * rng.uniform(4, 7) * time))
    envelope = lfilter([0.01], [1, -0.99], np.abs(trembling))
    breathy = trembling + 0.8 * envelope * rng.standard_normal(len(samples))
    band_pass = butter(2, [350, 3000], btype="band", fs=SAMPLE_RATE, output="sos")
    return sosfilt(band_pass, breathy).astype(np.float32), rng.uniform(8, 14)


def distort(samples: np.ndarray, etiology: str, rng: np.random.Generator) -> np.ndarray:
    """Turn clean speech into one of the `ETIOLOGIES`, its noise included; `typical` gets the noise only."""
    if etiology == "typical":
        shaped, snr_db = samples, rng.uniform(10, 25)
    else:
        shaped, snr_db = {"wobble": wobble, "slurred": slur, "breathy": breathe}[etiology](samples, rng)
    return add_noise(add_margins(shaped, rng), snr_db, rng.uniform(0, 1.2), rng)


def write_opus(path: Path, samples: np.ndarray) -> None:
    """Write mono Ogg Opus; the same samples give the same bytes."""
    import av

    pcm = np.round(samples * 32767).astype(np.int16)[None]
    options = {"fflags": "+bitexact", "serial_offset": "1"}
    with av.open(str(path), "w", format="ogg", options=options) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        stream.bit_rate = OPUS_BITS_PER_SECOND
        stream.options = {"application": "audio", "vbr": "on"}
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in stream.encode(frame):
            container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)


def read_audio(path: Path) -> np.ndarray:
    """Read a file as mono float32 at 16 kHz."""
    import soundfile

    samples, sample_rate = soundfile.read(path, dtype="float32")
    if sample_rate != SAMPLE_RATE:
        samples = soxr.resample(samples, sample_rate, SAMPLE_RATE)
    return samples
