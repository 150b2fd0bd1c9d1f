"""The pins agree wherever they stand."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def pins(path: Path) -> dict[str, str]:
    return dict(line.split("==") for line in path.read_text().splitlines() if re.match(r"^[\w.-]+==", line))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_conda_environments_hold_the_pins_of_the_main_one():
    main = {canonical(name): version for name, version in pins(ROOT / "requirements/main.txt").items()}
    files = list((ROOT / "envs").glob("*.yaml"))
    assert files
    for file in files:
        packages = next(
            item["pip"] for item in yaml.safe_load(file.read_text())["dependencies"] if isinstance(item, dict)
        )
        assert packages
        for package in packages:
            name, version = package.split("==")
            assert main[canonical(name)] == version, f"{file.name}: {package}"


def test_what_is_installed_is_what_is_pinned():
    for file in ("main.txt", "dev.txt", "slurm.txt"):
        for name, version in pins(ROOT / "requirements" / file).items():
            assert importlib.metadata.version(name).split("+")[0] == version, name


def test_every_direct_requirement_is_pinned():
    main = {canonical(name) for name in pins(ROOT / "requirements/main.txt")}
    for line in (ROOT / "requirements/main.in").read_text().splitlines():
        if name := re.match(r"^[A-Za-z][\w.-]*", line):
            assert canonical(name[0]) in main, line
