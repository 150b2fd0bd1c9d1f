"""Reading audio of many containers, broken files, and noise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from utterflow.audio import AudioError, Signal, add_noise, load_audio, load_row_audio
from utterflow.files import file_sha256
from utterflow.records import ManifestRow, Noise

SECONDS = 1.5
CODEC_PADDING = 0.13  # two AAC frames at 16 kHz
LOSSY = {"mp3": "libmp3lame", "opus": "libopus", "m4a": "aac", "webm": "libopus", "flac": "flac"}


def tone(rate: int, hertz: float = 440.0, seconds: float = SECONDS) -> Signal:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def encode(path: Path, codec: str, rate: int, signal: Signal) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(signal[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout="mono", rate=rate)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def loudest_hertz(signal: Signal, rate: int = 16_000) -> float:
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(signal.size)))
    return float(np.fft.rfftfreq(signal.size, 1 / rate)[spectrum.argmax()])


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_wav_of_every_sample_type_and_rate(tmp_path: Path, rate: int, subtype: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(rate), rate, subtype=subtype)
    signal = load_audio(path)
    expected = tone(16_000)
    assert signal.dtype == np.float32
    assert signal.shape == expected.shape
    middle = slice(800, -800)
    assert np.abs(signal[middle] - expected[middle]).max() < (0.01 if subtype == "PCM_U8" else 0.002)


def test_audio_at_the_asked_rate_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(16_000), 16_000, subtype="PCM_16")
    assert np.array_equal(load_audio(path), soundfile.read(path, dtype="float32")[0])
    assert load_audio(path, 8000).size == int(SECONDS * 8000)


@pytest.mark.parametrize("suffix", sorted(LOSSY))
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_containers(tmp_path: Path, suffix: str, rate: int) -> None:
    path = tmp_path / f"a.{suffix}"
    encode(path, LOSSY[suffix], rate, tone(rate))
    signal = load_audio(path)
    assert signal.size / 16_000 == pytest.approx(SECONDS, abs=CODEC_PADDING)
    assert loudest_hertz(signal) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(signal[4000:16_000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_channels_are_averaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    stereo = np.stack([tone(16_000), np.zeros(int(SECONDS * 16_000), dtype=np.float32)], axis=1)
    soundfile.write(path, stereo, 16_000)
    signal = load_audio(path)
    assert signal.ndim == 1
    assert np.sqrt(np.mean(signal**2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.05)


def test_the_audio_track_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=16_000)
        audio.layout = "mono"
        for _ in range(100):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        sound = av.AudioFrame.from_ndarray(tone(16_000)[None], format="fltp", layout="mono")
        sound.sample_rate = 16_000
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
        container.mux(video.encode(None))
    assert load_audio(path).size / 16_000 == pytest.approx(SECONDS, abs=CODEC_PADDING)


def reason(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{caught.value.kind}: ")
    return caught.value.kind


def test_missing_folder_and_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    assert reason(tmp_path / "absent.wav") == "missing"
    assert reason(tmp_path) == "missing"
    assert reason(tmp_path / "empty.wav") == "empty"
    assert reason(tmp_path / "none.wav") == "empty"


def test_text_and_noise_that_call_themselves_audio(tmp_path: Path) -> None:
    text, junk = tmp_path / "text.wav", tmp_path / "junk.mp3"
    text.write_text("this is no audio\n" * 100)
    junk.write_bytes(np.random.default_rng(0).bytes(20_000))
    assert reason(text) in ("broken", "no audio stream")
    assert reason(junk) in ("broken", "no audio stream", "empty")


def test_a_picture_has_no_audio_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        video.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")
        container.mux([*video.encode(picture), *video.encode(None)])
    assert reason(path) == "no audio stream"


def test_samples_that_are_not_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    signal = tone(16_000)
    signal[100] = np.nan
    soundfile.write(path, signal, 16_000, subtype="FLOAT")
    assert reason(path) == "broken"


@pytest.mark.parametrize("suffix", ["wav", *sorted(LOSSY)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.85])
def test_truncated_files_are_broken(tmp_path: Path, suffix: str, share: float) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    if suffix == "wav":
        soundfile.write(whole, noise, 16_000)
    else:
        encode(whole, LOSSY[suffix], 16_000, noise)
    load_audio(whole)
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    assert reason(cut) in ("broken", "empty", "no audio stream")


def test_a_negligible_loss_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16_000, seconds=10), 16_000)
    path.write_bytes(path.read_bytes()[: -2 * 800])
    assert load_audio(path).size == 160_000 - 800


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_wav_from_a_pipe_has_no_length_to_hold_it_to(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16_000), 16_000, subtype="PCM_16")
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    assert load_audio(path).size == int(SECONDS * 16_000)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
@pytest.mark.parametrize("color", [0.0, 1.0, 2.0])
def test_noise_has_the_asked_level_and_peak(snr: float, color: float) -> None:
    clean = tone(16_000)
    noisy = add_noise(clean, Noise(snr_db=snr, color=color, seed=7))
    assert noisy.dtype == np.float32
    assert np.abs(noisy).max() == pytest.approx(0.8, abs=1e-6)
    # The clean tone's share is found by projection: noise is all but orthogonal to it.
    basis = np.exp(2j * np.pi * 440 * np.arange(clean.size) / 16_000)
    gain = np.abs(np.vdot(basis, noisy)) / np.abs(np.vdot(basis, clean))
    rest = noisy - gain * clean
    measured = 10 * np.log10(np.mean((gain * clean) ** 2) / np.mean(rest**2))
    assert measured == pytest.approx(snr, abs=0.2)


@pytest.mark.parametrize("color", [0.0, 1.0, 2.0])
def test_noise_spectrum_falls_by_its_exponent(color: float) -> None:
    impulse = np.zeros(1 << 16, dtype=np.float32)
    impulse[0] = 1.0
    noisy = add_noise(impulse, Noise(snr_db=-60, color=color, seed=3)).astype(np.float64)
    power = np.abs(np.fft.rfft(noisy)) ** 2
    frequencies = np.fft.rfftfreq(noisy.size)
    bands = np.geomspace(1e-3, 0.4, 12)
    means = [power[(frequencies >= low) & (frequencies < high)].mean() for low, high in pairwise(bands)]
    slope = np.polyfit(np.log(np.sqrt(bands[1:] * bands[:-1])), np.log(means), 1)[0]
    assert slope == pytest.approx(-color, abs=0.15)


def test_noise_is_the_seed_s_and_follows_the_formula() -> None:
    clean = tone(16_000)
    noise = Noise(snr_db=3, color=1.2, seed=11)
    assert np.array_equal(add_noise(clean, noise), add_noise(clean, noise))
    assert not np.array_equal(add_noise(clean, noise), add_noise(clean, noise.model_copy(update={"seed": 12})))
    rng = np.random.default_rng(11)
    bins = clean.size // 2 + 1
    spectrum = rng.standard_normal(bins) + 1j * rng.standard_normal(bins)
    frequencies = np.arange(bins) / clean.size
    frequencies[0] = frequencies[1]
    coloured = np.fft.irfft(spectrum / frequencies**0.6, n=clean.size)
    x = clean.astype(np.float64)
    mixed = x + np.sqrt(np.mean(x**2)) * 10 ** (-3 / 20) * coloured / coloured.std()
    assert np.allclose(add_noise(clean, noise), mixed * 0.8 / np.abs(mixed).max(), atol=1e-6)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_noise_on_silence_and_on_few_samples(size: int) -> None:
    noise = Noise(snr_db=0, color=1, seed=1)
    assert np.array_equal(add_noise(np.zeros(size, dtype=np.float32), noise), np.zeros(size, dtype=np.float32))
    if size:
        loud = add_noise(np.ones(size, dtype=np.float32), noise)
        assert loud.shape == (size,)
        assert np.isfinite(loud).all()


def test_row_audio_checks_the_file_and_adds_its_noise(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(16_000), 16_000)
    noise = Noise(snr_db=5, color=0, seed=2)
    row = ManifestRow(
        id="a",
        audio=str(path),
        audio_sha256=file_sha256(path),
        audio_bytes=path.stat().st_size,
        seconds=SECONDS,
        text=None,
    )
    assert np.array_equal(load_row_audio(row), load_audio(path))
    noisy = load_row_audio(row.model_copy(update={"noise": noise}))
    assert np.array_equal(noisy, add_noise(load_audio(path), noise))
    soundfile.write(path, tone(16_000) / 2, 16_000)
    assert path.stat().st_size == row.audio_bytes
    with pytest.raises(AudioError, match=r"changed since prepare_corpus: .* another checksum"):
        load_row_audio(row)
    soundfile.write(path, tone(16_000, seconds=1), 16_000)
    with pytest.raises(AudioError, match=r"changed since prepare_corpus: .* had .* bytes"):
        load_row_audio(row)
    path.unlink()
    with pytest.raises(AudioError, match="missing"):
        load_row_audio(row)
