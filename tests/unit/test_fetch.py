"""Downloads from a local server that resumes or not, breaks off, lies or refuses; archives; models."""

from __future__ import annotations

import hashlib
import io
import logging
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from utterflow import fetch
from utterflow.errors import UserError
from utterflow.fetch import BLOCK, fetch_file, fetch_model, model_folder, model_listing, unpack_archive
from utterflow.files import read_json

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@dataclass
class Server:
    """What the server does, and what it was asked for."""

    url: str = ""
    content: bytes = CONTENT
    etag: str | None = '"v1"'
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    lie_about_range: bool = False
    sent: int = 0


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            if state.refusals:
                self.send_error(state.refusals.pop(0))
                return
            offset = 0
            same = self.headers.get("If-Range") in (None, state.etag)
            if wanted and state.ranges and same:
                offset = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if offset >= len(state.content):
                    self.send_error(416)
                    return
                place = 0 if state.lie_about_range else offset
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {place}-{len(state.content) - 1}/{len(state.content)}")
            else:
                self.send_response(200)
            if state.etag:
                self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(len(state.content) - offset))
            self.end_headers()
            body = state.content[offset:]
            if state.breaks:
                body = body[: state.breaks.pop(0)]
            state.sent += len(body)
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/a.bin"
    yield state
    http.shutdown()
    thread.join()
    http.server_close()


def get(server: Server, folder: Path, sha256: str | None = SHA256, md5: str | None = None) -> Path:
    destination = folder / "deep" / "a.bin"
    fetch_file(server.url, destination, sha256, md5, pause=0.001)
    assert [path.name for path in destination.parent.iterdir()] == ["a.bin"]
    return destination


def test_download_with_checksums(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path, SHA256, MD5).read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_file_with_the_right_checksum_is_kept(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    get(server, tmp_path)
    get(server, tmp_path, None, MD5)
    assert len(server.asked) == 1
    (tmp_path / "deep" / "a.bin").write_bytes(b"other")
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_without_a_checksum_the_log_says_what_it_was(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("utterflow").propagate = True
    get(server, tmp_path, None)
    assert SHA256 in caplog.text


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.breaks = [BLOCK, 2 * BLOCK]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={BLOCK}-", f"bytes={3 * BLOCK}-"]
    assert server.sent == len(CONTENT)


def test_a_later_run_goes_on_where_an_earlier_one_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    server.breaks = [2 * BLOCK]
    with pytest.raises(UserError, match="goes on where it stopped"):
        get(server, tmp_path)
    assert (tmp_path / "deep" / "a.bin.part").stat().st_size == 2 * BLOCK
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_server_that_ignores_range_starts_over(server: Server, tmp_path: Path) -> None:
    server.breaks, server.ranges = [BLOCK], False
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.sent == BLOCK + len(CONTENT)


def test_a_server_without_etag_or_date_is_not_resumed(server: Server, tmp_path: Path) -> None:
    server.breaks, server.etag = [BLOCK], None
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, None]


@pytest.mark.parametrize("breaks", [[], [50_000]])
def test_a_file_that_changed_in_between_starts_over(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: list[int]
) -> None:
    server.breaks, server.content, server.etag = [BLOCK], CONTENT[::-1], '"v0"'
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    with pytest.raises(UserError):
        get(server, tmp_path)
    monkeypatch.setattr(fetch, "ATTEMPTS", 6)
    server.content, server.etag, server.breaks = CONTENT, '"v1"', breaks
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_another_address_is_not_a_continuation(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ATTEMPTS", 1)
    server.breaks = [BLOCK]
    with pytest.raises(UserError):
        get(server, tmp_path)
    server.url += "?mirror=2"
    get(server, tmp_path)
    assert server.asked == [None, None]


def test_a_server_that_resumes_elsewhere_starts_over(server: Server, tmp_path: Path) -> None:
    server.breaks, server.lie_about_range = [BLOCK], True
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={BLOCK}-", None]


def test_a_whole_part_that_was_not_renamed_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.bin.part").write_bytes(CONTENT)
    (tmp_path / "deep" / "a.bin.part.json").write_text(f'{{"url": "{server.url}", "validator": "\\"v1\\""}}')
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=300000-", None]


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.refusals = [503, 429, 500]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 4


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final(server: Server, tmp_path: Path, status: int) -> None:
    server.refusals = [status]
    with pytest.raises(UserError, match=f"the server says {status}"):
        get(server, tmp_path)
    assert len(server.asked) == 1


def test_a_server_that_stays_busy_is_given_up(server: Server, tmp_path: Path) -> None:
    server.refusals = [503] * 100
    with pytest.raises(UserError, match="503"):
        get(server, tmp_path)
    assert len(server.asked) == fetch.ATTEMPTS


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.bin", "http://"])
def test_no_such_server(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(UserError, match="download failed"):
        fetch_file(url, tmp_path / "a.bin", pause=0.001)
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize(("sha256", "md5"), [("0" * 64, None), (None, "0" * 32), (SHA256, "0" * 32)])
def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path, sha256: str | None, md5: str | None) -> None:
    with pytest.raises(UserError) as caught:
        get(server, tmp_path, sha256, md5)
    assert "expected 0000" in str(caught.value)
    assert (MD5 if md5 else SHA256) in str(caught.value)
    assert list((tmp_path / "deep").iterdir()) == []


# archives


def tar(path: Path, *members: tarfile.TarInfo | str) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            data = f"content of {info.name}".encode() if info.isfile() else b""
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, f"content of {name}")
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_unpack_lists_the_files(tmp_path: Path, name: str) -> None:
    make: Callable[..., Path] = zipped if name.endswith("zip") else tar
    archive, folder, listing = tmp_path / name, tmp_path / "out", tmp_path / f"{name}.contents.tsv"
    make(archive, "b/c.wav", "a.txt")
    for _ in range(2):
        unpack_archive(archive, folder, listing)
        assert listing.read_text() == f"path\tbytes\n{folder}/a.txt\t16\n{folder}/b/c.wav\t18\n"
        assert (folder / "b" / "c.wav").read_text() == "content of b/c.wav"


EVIL: dict[str, Callable[[Path], Path]] = {
    "tar up": lambda path: tar(path, "../evil.txt"),
    "tar up inside": lambda path: tar(path, "a/../../evil.txt"),
    "tar absolute": lambda path: tar(path, str(path.parent / "evil.txt")),
    "tar link out": lambda path: tar(path, special("link", tarfile.SYMTYPE, ".."), "link/evil.txt"),
    "tar hard link": lambda path: tar(path, special("evil.txt", tarfile.LNKTYPE, "../secret.txt")),
    "tar device": lambda path: tar(path, special("evil.txt", tarfile.FIFOTYPE)),
    "zip up": lambda path: zipped(path, "good.txt", "../evil.txt"),
    "zip absolute": lambda path: zipped(path, "/evil.txt"),
    "zip backslash": lambda path: zipped(path, "..\\evil.txt"),
    "zip link": lambda path: zip_with_link(path),
}


def zip_with_link(path: Path) -> Path:
    info = zipfile.ZipInfo("evil.txt")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return path


@pytest.mark.parametrize("kind", sorted(EVIL))
@pytest.mark.parametrize("filters", [True, False])
def test_nothing_lands_outside(tmp_path: Path, kind: str, filters: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not filters:
        monkeypatch.setattr(fetch, "SAFE_TARFILE", False)
    (tmp_path / "secret.txt").write_text("secret")
    archive = EVIL[kind](tmp_path / "a.archive")
    with pytest.raises(UserError, match="unsafe archive"):
        unpack_archive(archive, tmp_path / "out", tmp_path / "listing.tsv")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path / "listing.tsv").exists()


@pytest.mark.skipif(sys.version_info < (3, 11, 4), reason="tarfile has no filters before Python 3.11.4")
def test_links_within_the_archive_are_fine(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", "a.txt", special("b.txt", tarfile.SYMTYPE, "a.txt"))
    unpack_archive(tmp_path / "a.tar", tmp_path / "out", tmp_path / "listing.tsv")
    assert (tmp_path / "out" / "b.txt").read_text() == "content of a.txt"


def test_broken_archives(tmp_path: Path) -> None:
    names = [f"{number}.txt" for number in range(200)]
    for archive in (tar(tmp_path / "a.tar.gz", *names), zipped(tmp_path / "a.zip", *names)):
        data = archive.read_bytes()
        archive.write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match=r"broken archive|neither a tar nor a zip"):
            unpack_archive(archive, tmp_path / "out", tmp_path / "listing.tsv")
        middle = len(data) // 2
        archive.write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])
        with pytest.raises(UserError, match="broken archive"):
            unpack_archive(archive, tmp_path / "out", tmp_path / "listing.tsv")
    (tmp_path / "a.txt").write_text("no archive")
    with pytest.raises(UserError, match="neither a tar nor a zip"):
        unpack_archive(tmp_path / "a.txt", tmp_path / "out", tmp_path / "listing.tsv")


# models

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_where_a_model_goes() -> None:
    assert model_folder("openai/whisper-tiny", COMMIT) == Path(f"data/models/openai--whisper-tiny/{COMMIT}")
    listing = Path(f"data/models/openai--whisper-tiny/{COMMIT}.files.json")
    assert model_listing("openai/whisper-tiny", COMMIT) == listing


def fake_hub(files: dict[str, str]) -> Callable[..., str]:
    def snapshot_download(
        model: str, *, revision: str, local_dir: Path, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        assert revision == COMMIT
        kept = huggingface_hub.utils.filter_repo_objects(
            files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in [*kept, ".cache/huggingface/x.json"]:
            path = local_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files.get(name, ""))
        return str(local_dir)

    return snapshot_download


def test_model_files_are_listed_and_pickles_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = dict.fromkeys(
        ["pytorch_model.bin", "a.pt", "flax_model.msgpack", "model.fp32-00001-of-00002.safetensors"], "x"
    )
    good = {"config.json": "{}", "model.safetensors": "weights", "merges.txt": "", "chat_template.jinja": "x"}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_hub(files | good))
    listing = tmp_path / "m.files.json"
    fetch_model("org/m", COMMIT, listing, tmp_path / "m")
    found = read_json(listing)
    assert (found["model"], found["revision"]) == ("org/m", COMMIT)
    assert [entry["file"] for entry in found["files"]] == sorted(good)
    weights = found["files"][3]
    assert weights == {
        "file": "model.safetensors",
        "bytes": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }


def test_a_model_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake_hub({"config.json": "{}", "a.bin": "x"}))
    with pytest.raises(UserError, match="no safetensors"):
        fetch_model("org/m", COMMIT, tmp_path / "m.files.json", tmp_path / "m")
    assert not (tmp_path / "m.files.json").exists()


def test_a_branch_is_not_pinned(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a commit"):
        fetch_model("org/m", "main", tmp_path / "m.files.json")


def test_no_network_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        fetch_model("org/m", COMMIT, tmp_path / "m.files.json", tmp_path / "m")
