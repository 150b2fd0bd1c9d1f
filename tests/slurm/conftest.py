"""A real Slurm cluster for the tests of this folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, missing_programs, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Started once; skips where Slurm or root is missing, which REQUIRE_SLURM=1 makes a failure."""
    lacking = [*missing_programs(), *(["root"] if os.geteuid() else [])]
    if lacking:
        message = f"a Slurm cluster needs {', '.join(lacking)} (Debian: apt-get install slurm-wlm munge)"
        if os.environ.get("REQUIRE_SLURM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/var/tmp"))  # the usual tmp_path is closed to munged
    folder.chmod(0o755)
    try:
        with running_cluster(folder / "c") as started:
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)
