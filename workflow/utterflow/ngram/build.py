"""Rule `build_kenlm`: KenLM's source package -> the programs `lmplz` and `build_binary`."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import atomic_writer, file_sha256
from utterflow.jobs import log
from utterflow.ngram.programs import find_program, run_program
from utterflow.provenance import Stopwatch, write_meta

VERSION = "0.3.0"
SHA256 = "c4628bb9fb63c8a6f9240035b8b037385cfc404cb72e933cf48878291edac1e8"
SOURCE = f"kenlm-{VERSION}.tar.gz"
PROGRAMS = ("lmplz", "build_binary")
GET_BOOST = (
    "pip install cmeel-boost, or Debian: apt-get install libboost-program-options-dev libboost-system-dev "
    "libboost-thread-dev libboost-test-dev"
)
HAVE_IT = "or set `tools.kenlm_bin` to a folder that holds lmplz and build_binary"
TRIED_TEXT = "a b c\na b d\nb c d\n"


def build_kenlm(
    *, lmplz: Path, build_binary: Path, meta: Path, cfg: Mapping[str, Any], code: str, threads: int
) -> None:
    """Compile KenLM's programs and try them.

    The source package (`kenlm-0.3.0.tar.gz`, by its SHA-256) is taken from the programs' folder if it lies there, and
    fetched with pip otherwise. Boost is that of the Python environment (package `cmeel-boost`) or the system's; its
    libraries are copied beside the programs if they are the environment's, so that the programs outlive it.

    Raises:
        UserError: no source package and no network, no compiler, no Boost, or the compilation fails.
    """
    watch = Stopwatch()
    folder = lmplz.parent
    folder.mkdir(parents=True, exist_ok=True)
    source = get_source(folder)
    with tempfile.TemporaryDirectory(prefix="kenlm-") as scratch:
        boost = bundled_boost()
        log.info("compiling KenLM %s with Boost of %s", VERSION, boost or "the system")
        programs = compile_programs(source, Path(scratch), boost, threads)
        for library in boost_libraries(boost) if boost else ():
            copy_program(library, folder / library.name)
        for program, target in zip(programs, (lmplz, build_binary), strict=True):
            copy_program(program, target)
    try_programs(lmplz, build_binary)
    write_meta(
        meta,
        rule="build_kenlm",
        cfg=cfg,
        code=code,
        inputs=[],
        outputs={"program/1": lmplz, "program/2": build_binary},
        seconds=watch.seconds(),
        extra={"kenlm": VERSION, "source_sha256": SHA256, "boost": str(boost) if boost else "system"},
    )


def get_source(folder: Path) -> Path:
    """The source package in `folder`, fetched if it is not there.

    Raises:
        UserError: it cannot be fetched, or its checksum is another.
    """
    source = folder / SOURCE
    if not source.is_file():
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.resolve()) as scratch:
            _fetch(Path(scratch))
            (Path(scratch) / SOURCE).replace(source)
    found = file_sha256(source)
    if found != SHA256:
        raise UserError(
            f"sha256 is {found}, expected {SHA256}", where=str(source), fix="delete the file and start again"
        )
    return source


def _fetch(folder: Path) -> None:
    """Ask pip for the source package: it knows proxies and mirrors."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"kenlm=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--require-hashes", "--no-deps", "--no-binary", "kenlm", "--no-build-isolation", "--dest", folder, "-r", wanted,
    ]  # fmt: skip
    log.info("fetching %s", SOURCE)
    trouble = run_program(command, folder)
    if trouble or not (folder / SOURCE).is_file():
        raise UserError(
            f"cannot fetch KenLM's source package with pip:\n{trouble or f'no {SOURCE}'}",
            fix=f"check network and proxy; or fetch it elsewhere (pip download kenlm=={VERSION} --no-binary kenlm "
            f"--no-deps) and put {SOURCE} into {folder.parent}; {HAVE_IT}",
        )


def bundled_boost() -> Path | None:
    """Where the package `cmeel-boost` has put Boost; None where it is not installed."""
    prefix = Path(sysconfig.get_paths()["purelib"]) / "cmeel.prefix"
    return prefix if (prefix / "include" / "boost" / "version.hpp").is_file() else None


def boost_libraries(boost: Path) -> Iterator[Path]:
    """The shared libraries that the programs can need."""
    for name in ("program_options", "thread", "system", "chrono", "atomic"):
        yield from sorted((boost / "lib").glob(f"libboost_{name}.so.*"))


def compile_programs(source: Path, scratch: Path, boost: Path | None, threads: int) -> tuple[Path, Path]:
    """Unpack and compile below `scratch`; the programs, which look for libraries in their own folder.

    Raises:
        UserError: no cmake, no compiler, no Boost, or the compilation fails.
    """
    cmake, ninja = find_tools()
    shutil.unpack_archive(source, scratch)
    build = scratch / "build"
    options = [
        "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_POLICY_VERSION_MINIMUM=3.5",
        "-DCMAKE_INSTALL_RPATH=$ORIGIN", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    ]  # fmt: skip
    if ninja:
        options += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if boost:
        options += [f"-DBOOST_ROOT={boost}", "-DBoost_NO_SYSTEM_PATHS=ON", "-DCMAKE_POLICY_DEFAULT_CMP0074=NEW"]
    if trouble := run_program([cmake, "-S", scratch / f"kenlm-{VERSION}", "-B", build, *options], scratch):
        if "Boost" in trouble:
            raise UserError(f"KenLM does not find Boost:\n{trouble}", fix=f"{GET_BOOST}; {HAVE_IT}")
        raise UserError(f"KenLM cannot be configured:\n{trouble}", fix=f"see what is missing, {HAVE_IT}")
    if trouble := run_program([cmake, "--build", build, "--parallel", threads, "--target", *PROGRAMS], scratch):
        raise UserError(f"KenLM cannot be compiled:\n{trouble}", fix=f"see what is missing, {HAVE_IT}")
    return build / "bin" / PROGRAMS[0], build / "bin" / PROGRAMS[1]


def find_tools() -> tuple[str, str | None]:
    """The programs cmake and ninja; without ninja, make does its work.

    Raises:
        UserError: no cmake, no C++ compiler, or neither ninja nor make.
    """
    cmake, ninja = find_program("cmake"), find_program("ninja")
    if cmake is None:
        raise UserError("no cmake found, KenLM needs it", fix=f"pip install cmake, {HAVE_IT}")
    if find_program(os.environ.get("CXX", "c++"), "g++", "clang++") is None:
        raise UserError("no C++ compiler found, KenLM needs one", fix=f"Debian: apt-get install g++; {HAVE_IT}")
    if ninja is None and find_program("make") is None:
        raise UserError("neither ninja nor make found, KenLM needs one", fix=f"pip install ninja, {HAVE_IT}")
    return cmake, ninja


def copy_program(source: Path, target: Path) -> None:
    """Copy a program or library whole, executable."""
    with atomic_writer(target, "wb") as handle, source.open("rb") as original:
        shutil.copyfileobj(original, handle)
    target.chmod(0o755)


def try_programs(lmplz: Path, build_binary: Path) -> None:
    """Train a tiny model.

    Raises:
        UserError: a program does not run.
    """
    with tempfile.TemporaryDirectory(prefix="kenlm-") as scratch:
        folder = Path(scratch)
        (folder / "text").write_text(TRIED_TEXT, encoding="utf-8")
        train = [
            lmplz.resolve(),
            "-o",
            "2",
            "--discount_fallback",
            "-S",
            "50M",
            "-T",
            folder,
            "--text",
            "text",
            "--arpa",
            "arpa",
        ]
        pack = [build_binary.resolve(), "probing", "arpa", "binary"]
        for command in (train, pack):
            if trouble := run_program(command, folder):
                raise UserError(
                    f"{command[0]} does not run:\n{trouble}", fix=f"delete that file and start again, {HAVE_IT}"
                )
