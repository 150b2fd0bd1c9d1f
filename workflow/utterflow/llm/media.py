"""Recordings and images in messages, as the protocol of OpenAI's chat completions has them."""

from __future__ import annotations

import base64
import io
import mimetypes
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from utterflow.audio import SAMPLE_RATE, AudioError, add_noise, load_audio
from utterflow.files import file_sha256
from utterflow.records import Message, Noise

IMAGES = ("image/png", "image/jpeg", "image/webp", "image/gif")


class MediaError(ValueError):
    """A recording or an image that cannot be sent."""


def part_key(part: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer depends on: the file's content, not its name. A missing file has none."""
    if part["type"] == "text":
        return {"type": "text", "text": part.get("text", "")}
    key = {"type": part["type"], "sha256": _digest(str(part.get("path")))}
    return key | ({"noise": part["noise"]} if part.get("noise") else {})


def message_keys(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Messages as `part_key` has their parts."""
    return [
        {
            "role": item.role,
            "content": item.content if isinstance(item.content, str) else [part_key(part) for part in item.content],
        }
        for item in messages
    ]


def sent_part(part: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """A part as it is sent, and the seconds of its audio.

    Raises:
        MediaError: the file is missing, or is no recording or image that can be sent.
    """
    if part["type"] == "audio":
        data, seconds = wav_of(str(part["path"]), part.get("noise"))
        audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
        return {"type": "input_audio", "input_audio": audio}, seconds
    if part["type"] == "image":
        return {"type": "image_url", "image_url": {"url": _image_url(Path(str(part["path"])))}}, 0.0
    return {"type": "text", "text": str(part.get("text", ""))}, 0.0


def wav_of(path: str, noise: Mapping[str, Any] | None) -> tuple[bytes, float]:
    """A recording as it is heard by every other stage: one channel of 16 kHz with its noise, as a 16-bit wav file.

    Returns:
        The file, and its seconds.

    Raises:
        MediaError: the recording cannot be used.
    """
    import soundfile  # type: ignore[import-untyped]

    try:
        signal = load_audio(path)
    except AudioError as error:
        raise MediaError(str(error)) from None
    if noise:
        signal = add_noise(signal, Noise.model_validate(noise))
    file = io.BytesIO()
    soundfile.write(file, np.clip(signal, -1, 1), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue(), signal.size / SAMPLE_RATE


def _image_url(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0]
    if kind not in IMAGES:
        raise MediaError(f"not an image that can be sent: {path} (png, jpeg, webp and gif can)")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MediaError(f"missing: {path} ({error.strerror})") from None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@lru_cache(maxsize=200_000)
def _digest(path: str) -> str | None:
    return file_sha256(Path(path)) if Path(path).is_file() else None
