"""Speech synthesis with eSpeak NG through ctypes, and the list of voices.

eSpeak NG is GPL-3.0. It is a tool of these scripts only: nothing of it enters the package, and what it speaks
is not covered by its licence.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

ESPEAK_RATE, ESPEAK_PITCH, ESPEAK_WORD_GAP = 1, 3, 7
OUTPUT_SYNCHRONOUS, POSITION_CHARACTER, CHARS_UTF8 = 2, 1, 1

# Our accent names -> the library's names. ("en-gb" itself is no voice name in the library; "en" is British.)
ACCENTS = {"us": "en-us", "gb": "en", "rp": "en-gb-x-rp"}
MALE = ["m1", "m2", "m3", "m4", "m5", "m7", "adam", "david", "john", "michel", "sandro", "zac"]
FEMALE = ["f1", "f2", "f3", "f4", "anika", "belinda"]
HELD_OUT_VARIANTS = {
    "us-f5": "female",
    "us-Andy": "male",
    "us-steph": "female",
    "gb-m8": "male",
    "gb-linda": "female",
    "rp-Mike": "male",
}


@dataclass(frozen=True)
class Voice:
    """A voice of the demo: an accent and, but for the plain voices, a variant."""

    name: str
    gender: str

    @property
    def espeak_name(self) -> str:
        """The name by which the library knows this voice."""
        accent, _, variant = self.name.partition("-")
        return ACCENTS[accent] + (f"+{variant}" if variant else "")


TRAINING_VOICES: list[Voice] = (
    [Voice(f"{accent}-{variant}", "male") for accent in ACCENTS for variant in MALE]
    + [Voice(f"{accent}-{variant}", "female") for accent in ACCENTS for variant in FEMALE]
    + [Voice("us", "male"), Voice("gb", "male")]
)
HELD_OUT_VOICES: list[Voice] = [Voice(name, gender) for name, gender in HELD_OUT_VARIANTS.items()]
ALL_VOICES: dict[str, Voice] = {voice.name: voice for voice in TRAINING_VOICES + HELD_OUT_VOICES}


class Synthesiser:
    """One eSpeak NG engine. Make one per process: the same calls in the same order give the same samples."""

    def __init__(self, seed: int) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        data_path = str(espeakng_loader.get_data_path()).encode()
        self.sample_rate = int(self._library.espeak_Initialize(OUTPUT_SYNCHRONOUS, 0, data_path, 0))
        if self.sample_rate <= 0:
            raise RuntimeError("eSpeak NG did not start")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks: list[np.ndarray] = []
        callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int,  # what it returns
            ctypes.POINTER(ctypes.c_short),
            ctypes.c_int,
            ctypes.c_void_p,
        )
        self._callback = callback_type(self._collect)  # kept: the library holds only a bare pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: ctypes._Pointer, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: Voice, rate: int, pitch: int, word_gap: int = 0) -> np.ndarray:
        """Speak a line of text; gives mono float32 samples in -1..1 at `sample_rate`."""
        self._chunks.clear()
        if self._library.espeak_SetVoiceByName(voice.espeak_name.encode()) != 0:
            raise ValueError(f"eSpeak NG has no voice {voice.espeak_name!r}")
        for parameter, value in ((ESPEAK_RATE, rate), (ESPEAK_PITCH, pitch), (ESPEAK_WORD_GAP, word_gap)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, POSITION_CHARACTER, 0, CHARS_UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.concatenate(self._chunks).astype(np.float32) / 32768
