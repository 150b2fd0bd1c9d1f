"""Fixtures that all tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
sys.path.insert(0, str(TESTS))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny random Whisper: window of 2 s, 48 decoder positions."""
    from tiny_whisper import save_tiny_whisper

    folder = tmp_path_factory.mktemp("tiny_whisper")
    save_tiny_whisper(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_whisper(tiny_whisper_folder: Path):
    import torch

    from utterflow.asr.whisper import load_whisper

    torch.set_num_threads(1)
    return load_whisper(tiny_whisper_folder, torch.device("cpu"), torch.float32)
