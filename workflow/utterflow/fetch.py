"""Public files and models from the network, pinned and checked.

Proxies come from the environment (`https_proxy`, `no_proxy`, ...), a token for gated models from `HF_TOKEN`.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import lzma
import re
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import requests

from utterflow.errors import UserError
from utterflow.files import atomic_writer, file_sha256, read_json, write_json
from utterflow.jobs import Progress, log

BLOCK = 1 << 16  # what a broken connection can lose
ATTEMPTS = 6
TIMEOUT = (30, 60)
LONGEST_PAUSE = 60.0
RETRIED = {408, 425, 429, 500, 502, 503, 504}
MODELS = Path("data/models")
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
# Second copies of the weights in another precision.
LEFT_OUT = ("*.fp32*", "*.fp16*")
# Python before 3.11.4 has no extraction filters.
SAFE_TARFILE = hasattr(tarfile, "data_filter")
UNSAFE_ARCHIVE = (tarfile.FilterError, ValueError) if SAFE_TARFILE else (ValueError,)
BROKEN_ARCHIVE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
)
COMMIT = re.compile(r"[0-9a-f]{40}")


class Partial(NamedTuple):
    """A download that is not finished: its bytes, and a note of what they are the beginning of."""

    data: Path
    note: Path

    def clear(self) -> None:
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def size(self) -> int:
        return self.data.stat().st_size if self.data.is_file() else 0


class InterruptedDownloadError(Exception):
    """A download ended early; another attempt may go on from there."""


RETRIED_ERRORS = (
    InterruptedDownloadError,
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)


def fetch_file(
    url: str, destination: Path, sha256: str | None = None, md5: str | None = None, pause: float = 1.0
) -> None:
    """Download a file.

    The bytes go to `<name>.part`, and an interrupted download goes on there, also in a later run, unless the
    server cannot resume or says (ETag or Last-Modified, through If-Range) that the file is another by now.
    After `ATTEMPTS` attempts in a row that brought nothing it gives up. A file that is there already and has
    the right checksum is kept.

    Args:
        sha256, md5: checksums in hex; without one the log says what the SHA-256 was.
        pause: seconds before the second attempt; doubles with each further one.

    Raises:
        UserError: the server refuses, cannot be reached, or the checksum is another.
    """
    if (sha256 or md5) and destination.is_file() and not _wrong_sums(destination, sha256, md5):
        log.info("%s is there and has the right checksum", destination)
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = Partial(Path(f"{destination}.part"), Path(f"{destination}.part.json"))
    _download(url, part, pause)
    if wrong := _wrong_sums(part.data, sha256, md5):
        part.clear()
        raise UserError(
            f"checksum of the downloaded file is wrong: {wrong}",
            where=url,
            fix="try again; if it stays so, the publisher changed the file: check it",
        )
    if not (sha256 or md5):
        log.warning("no checksum is configured for %s; its sha256 is %s", destination, file_sha256(part.data))
    part.data.replace(destination)
    part.clear()
    log.info("%s: %d bytes", destination, destination.stat().st_size)


def unpack_archive(archive: Path, folder: Path, listing: Path) -> None:
    """Unpack a tar (plain, gz, bz2, xz) or zip archive and list what it held: TSV with the columns `path`,
    `bytes`.

    Nothing lands outside of `folder`: absolute paths, `..`, devices and links that lead out are refused
    (tarfile's `data` filter, PEP 706). In a zip archive, and under a Python without that filter, links are
    refused altogether.

    Raises:
        UserError: the archive is broken, of another kind, or has such a member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            names = sorted(set(_unzip(archive, folder)))
        elif tarfile.is_tarfile(archive):
            names = sorted(set(_untar(archive, folder)))
        else:
            raise UserError("neither a tar nor a zip archive", where=str(archive), fix="remove its `unpack_to`")
    except UNSAFE_ARCHIVE as error:
        raise UserError(f"unsafe archive: {error}", where=str(archive), fix="do not use it") from None
    except BROKEN_ARCHIVE as error:
        raise UserError(
            f"broken archive: {error}", where=str(archive), fix="delete it, fetch it again, with a checksum"
        ) from None
    except OSError as error:
        raise UserError(f"cannot unpack: {error}", where=str(archive)) from None
    with atomic_writer(listing) as handle:
        writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
        writer.writerow(["path", "bytes"])
        writer.writerows([str(folder / name), (folder / name).stat().st_size] for name in names)
    log.info("%s: %d files to %s", archive, len(names), folder)


def model_folder(model: str, revision: str) -> Path:
    """Where `fetch_model` puts a hub model."""
    return MODELS / model.replace("/", "--") / revision


def model_listing(model: str, revision: str) -> Path:
    """The listing that `fetch_model` writes beside the model's folder: the file that other rules wait for."""
    folder = model_folder(model, revision)
    return folder.with_name(f"{folder.name}.files.json")


def fetch_model(model: str, revision: str, listing: Path, folder: Path | None = None) -> None:
    """Download one commit of a Hugging Face model: safetensors weights, configuration and tokenizer; no
    pickles.

    Args:
        listing: JSON with `model`, `revision`, and `files`: `file`, `bytes` and `sha256` of each.
        folder: default: `model_folder(model, revision)`.

    Raises:
        UserError: no network, no such model or commit, no access, or no safetensors.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if not COMMIT.fullmatch(revision):
        raise UserError(
            f"revision {revision!r} of {model} is not a commit",
            fix=f"write the 40 hex digits that https://huggingface.co/{model}/commits/main shows",
        )
    folder = folder or model_folder(model, revision)
    log.info("fetching %s at %s to %s", model, revision, folder)
    try:
        snapshot_download(
            model,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(MODEL_FILES),
            ignore_patterns=list(LEFT_OUT),
        )
    except errors.GatedRepoError:
        raise UserError(
            f"no access to the gated model {model}",
            fix=f"accept its terms at https://huggingface.co/{model} and set HF_TOKEN in the environment",
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(
            f"no such model or commit: {model} at {revision} ({type(error).__name__})",
            fix="correct `model` and `revision`; a private model needs the environment variable HF_TOKEN",
        ) from None
    except (HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"cannot fetch {model}: {_first_line(error)}",
            fix="check network, proxy, HF_ENDPOINT and HF_HUB_OFFLINE; or fetch it elsewhere and copy"
            f" {folder} and {listing} here",
        ) from None
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(
            f"{model} at {revision} has no safetensors weights",
            fix="choose a commit with safetensors; pickled weights can run code and are not fetched",
        )
    described = [
        {"file": str(path.relative_to(folder)), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    ]
    write_json(listing, {"model": model, "revision": revision, "files": described})


def _download(url: str, part: Partial, pause: float) -> None:
    failures = 0
    while True:
        before = part.size()
        try:
            _attempt(url, part)
        except RETRIED_ERRORS as error:
            failures = 1 if part.size() > before else failures + 1
            if failures >= ATTEMPTS:
                raise UserError(
                    f"download failed: {_first_line(error)}",
                    where=url,
                    fix="check network and proxy (https_proxy); run it again, it goes on where it stopped",
                ) from None
            wait = min(pause * 2 ** (failures - 1), LONGEST_PAUSE)
            log.warning("%s; attempt %d in %.0f s", _first_line(error), failures + 1, wait)
            time.sleep(wait)
        except requests.RequestException as error:
            raise UserError(f"download failed: {_first_line(error)}", where=url, fix="correct the address") from None
        except OSError as error:
            raise UserError(f"cannot write the download: {error}", where=str(part.data)) from None
        else:
            return


def _attempt(url: str, part: Partial) -> None:
    """One request: the rest of the file, or all of it.

    Raises:
        InterruptedDownloadError: worth another attempt.
        UserError: the server refuses.
    """
    offset, validator = _resume_point(url, part)
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code in RETRIED:
            raise InterruptedDownloadError(f"the server says {answer.status_code} {answer.reason}")
        if answer.status_code == 416 and offset:
            part.clear()
            raise InterruptedDownloadError("the server has no more bytes than those at hand: starting over")
        if answer.status_code not in (200, 206):
            raise UserError(
                f"the server says {answer.status_code} {answer.reason}", where=url, fix="correct the address"
            )
        resumed_at = answer.headers.get("Content-Range", "")
        if answer.status_code == 206 and not resumed_at.startswith(f"bytes {offset}-"):
            part.clear()
            raise InterruptedDownloadError("the server resumed at another place: starting over")
        if answer.status_code == 200:
            offset = 0
            part.clear()
            write_json(part.note, {"url": url, "validator": _validator(answer)})
        total = offset + int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        _store(answer, part, offset, total)
    if total is not None and part.size() < total:
        raise InterruptedDownloadError(f"the connection ended after {part.size()} of {total} bytes")


def _store(answer: requests.Response, part: Partial, offset: int, total: int | None) -> None:
    progress = Progress((total or 0) >> 20, "MiB")
    progress.advance(offset >> 20)
    with part.data.open("ab" if offset else "wb") as handle:
        for block in answer.iter_content(BLOCK):
            before = handle.tell() >> 20
            handle.write(block)
            if total and (gained := (handle.tell() >> 20) - before):
                progress.advance(gained)


def _resume_point(url: str, part: Partial) -> tuple[int, str]:
    """(bytes at hand, what If-Range has to say); (0, "") where the download starts from the beginning."""
    with suppress(UserError, AttributeError):
        note = read_json(part.note)
        if note.get("url") == url and note.get("validator"):
            return part.size(), str(note["validator"])
    return 0, ""


def _validator(answer: requests.Response) -> str | None:
    """What names this very version of the file: a strong ETag, or else the time of its last change."""
    etag = answer.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")


def _wrong_sums(path: Path, sha256: str | None, md5: str | None) -> str | None:
    """How a file's checksums differ from those that are asked for; None where they agree."""
    for name, wanted in (("sha256", sha256), ("md5", md5)):
        if wanted:
            with path.open("rb") as handle:
                found = hashlib.file_digest(handle, name).hexdigest()
            if found != wanted:
                return f"{name} is {found}, expected {wanted}"
    return None


def _untar(archive: Path, folder: Path) -> Iterator[str]:
    with tarfile.open(archive) as handle:
        for member in handle:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{member.name!r} would land outside of the folder")
            if SAFE_TARFILE:
                handle.extract(member, folder, filter="data")
            elif member.isfile() or member.isdir():
                handle.extract(member, folder, set_attrs=False)
            else:
                raise ValueError(f"{member.name!r} is neither a file nor a folder")
            if member.isfile():
                yield str(path)
        # tarfile stops silently at a damaged header; reading on also checks a compressed file's checksum.
        while handle.fileobj and (rest := handle.fileobj.read(BLOCK)):
            if any(rest):
                raise tarfile.ReadError("a member's header is damaged")


def _unzip(archive: Path, folder: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as handle:
        for member in handle.infolist():
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
                raise ValueError(f"{member.filename!r} would land outside of the folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{member.filename!r} is a link")
        for member in handle.infolist():
            handle.extract(member, folder)
            if not member.is_dir():
                yield str(PurePosixPath(member.filename))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
