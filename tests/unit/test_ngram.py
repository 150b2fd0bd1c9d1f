"""KenLM's programs built from source, and n-grams trained with them."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from utterflow.config.beams import Ngram
from utterflow.errors import UserError
from utterflow.files import file_sha256
from utterflow.ngram import build
from utterflow.ngram.build import build_kenlm, compile_programs, get_source
from utterflow.ngram.train import Counts, clean_sentences, train_ngram

LINES = [
    "Turn on the light.",
    "turn off the light",
    "turn on the radio please",
    "is the light on",
    "please turn it off",
]
CMAKE = """cmake_minimum_required(VERSION 3.10)
project(kenlm)
{boost}
add_executable(lmplz main.cc)
add_executable(build_binary main.cc)
set_target_properties(lmplz build_binary PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${{PROJECT_BINARY_DIR}}/bin)
"""


@pytest.fixture(scope="session")
def kenlm_bin(repository: Path) -> Path:
    """KenLM's programs: those that `KENLM_BIN` names, that this checkout has built, or that are on the path."""
    found = shutil.which("lmplz")
    places = [os.environ.get("KENLM_BIN"), repository / "data/tools/kenlm", found and Path(found).parent]
    for place in places:
        if place and all((Path(place) / name).is_file() for name in build.PROGRAMS):
            return Path(place)
    pytest.skip("KenLM's programs are not built: `snakemake --cores 2 data/tools/kenlm/lmplz` does it")


def ngram(*texts: Path, **keys) -> Ngram:
    return Ngram.model_validate({"texts": list(map(str, texts)), "order": 3, **keys})


def train(folder: Path, out: Path, cfg: Ngram, mem_mb: int = 500) -> dict:
    train_ngram(
        texts=list(map(Path, cfg.texts)),
        lmplz=folder / "lmplz",
        build_binary=folder / "build_binary",
        cfg=cfg,
        code="code",
        mem_mb=mem_mb,
        arpa=out / "lm.arpa",
        binary=out / "lm.binary",
        meta=out / "lm.meta.json",
    )
    return json.loads((out / "lm.meta.json").read_text())


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(LINES) + "\n...\n")
    return path


@pytest.mark.parametrize("structure", ["probing", "trie"])
def test_a_model_is_trained_from_normalised_texts(kenlm_bin, texts, tmp_path, structure):
    import kenlm

    meta = train(kenlm_bin, tmp_path, ngram(texts, structure=structure))
    words = " ".join(LINES).lower().replace(".", "").split()
    assert (meta["sentences"], meta["words"], meta["types"]) == (5, len(words), len(set(words)))
    assert meta["rows"] == {"in": 6, "out": 5, "rejected": 1}
    assert len(meta["ngrams"]) == 3 and meta["ngrams"][0] == len(set(words)) + 3
    models = [kenlm.Model(str(tmp_path / name)) for name in ("lm.arpa", "lm.binary")]
    assert models[0].order == 3 and "light" in models[0] and "Turn" not in models[0]
    for text in ("turn on the light", "light the on turn", "unknown words"):
        assert models[0].score(text) == pytest.approx(models[1].score(text), abs=1e-5)
    assert models[0].score("turn on the light") > models[0].score("light the on turn") + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm.arpa", "lm.binary", "lm.meta.json", "texts.txt"]


def test_the_same_texts_give_the_same_bytes(kenlm_bin, tmp_path):
    words = [f"w{i}" for i in range(300)]
    texts = tmp_path / "many.txt"
    texts.write_text("".join(" ".join(words[(i * j) % 300] for j in range(2, 9)) + "\n" for i in range(4000)))
    for name, memory in (("one", 500), ("two", 60)):
        train(kenlm_bin, tmp_path / name, ngram(texts, order=4, prune=[0, 0, 1]), memory)
    for name in ("lm.arpa", "lm.binary"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_pruning_drops_rare_ngrams(kenlm_bin, texts, tmp_path):
    whole = train(kenlm_bin, tmp_path / "whole", ngram(texts))
    pruned = train(kenlm_bin, tmp_path / "pruned", ngram(texts, prune=[0, 1]))
    assert pruned["ngrams"][0] == whole["ngrams"][0] and pruned["ngrams"][2] < whole["ngrams"][2]


def test_small_texts_need_the_fallback(kenlm_bin, texts, tmp_path):
    with pytest.raises(UserError, match=r"BadDiscount[\s\S]*discount_fallback: true"):
        train(kenlm_bin, tmp_path, ngram(texts, discount_fallback=False))
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_jsonl_and_txt_go_together(kenlm_bin, texts, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"sentence": "Good\\nmorning", "id": 1}\n{"sentence": "", "id": 2}\n')
    meta = train(kenlm_bin, tmp_path, ngram(texts, rows))
    assert meta["sentences"] == 6 and meta["rows"]["rejected"] == 2
    assert len(meta["inputs"]) == 4 and str(rows) in meta["inputs"]


def test_words_that_models_reserve_are_left_out(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("<s> a b </s>\n<unk>\na\t<unk>\u00a0b\0c\n")
    counts = Counts()
    assert list(clean_sentences([path], "sentence", str, counts)) == ["a b", "a b c"]
    assert counts == Counts(read=3, sentences=2, words=5, symbols=4) and counts.empty == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, r"file not found[\s\S]*a\.txt"),
        ("a.txt", "...\n\n", r"no sentence left of 1[\s\S]*a\.txt[\s\S]*brain2text"),
        ("a.txt", "", "no sentence left of 0"),
        ("a.jsonl", '{"sentence": "a"}\n{"sentenc": "b"}\n', r"`sentence`[\s\S]*sentenc[\s\S]*a\.jsonl, line 2"),
        ("a.jsonl", '{"sentence": "a"}\n{"sentence": 5}\n', r"no text: 5[\s\S]*line 2"),
        ("a.jsonl", '{"sentence": "a"}\nnonsense\n', r"not valid JSON[\s\S]*line 2"),
        ("a.csv", "a\n", r"\.txt or \.jsonl[\s\S]*a\.csv"),
    ],
)
def test_texts_that_cannot_be_used_are_plain_errors(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    script(tmp_path / "bin/lmplz", "cat > arpa")
    with pytest.raises(UserError, match=message):
        train(tmp_path / "bin", tmp_path / "out", ngram(tmp_path / name))
    assert list((tmp_path / "out").iterdir()) == []


def test_failures_of_the_programs_are_plain_errors(texts, tmp_path):
    texts.write_text("a b c\n" * 100_000)  # more than a pipe holds
    script(tmp_path / "bin/lmplz", "echo 'util: No space left on device'; exit 3")
    with pytest.raises(UserError, match=r"lmplz failed:\nutil: No space left[\s\S]*free disk space"):
        train(tmp_path / "bin", tmp_path, ngram(texts))
    script(tmp_path / "bin/lmplz", "cat > /dev/null; printf '\\\\data\\\\\\nngram 1=5\\n' > arpa")
    script(tmp_path / "bin/build_binary", "echo 'at least a bigram model' >&2; exit 1")
    with pytest.raises(UserError, match=r"build_binary failed:\nat least a bigram"):
        train(tmp_path / "bin", tmp_path, ngram(texts))
    assert not (tmp_path / "lm.arpa").exists()


def fake_source(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str = "int main() {}", boost: str = "") -> Path:
    """A source package of the same form that compiles in seconds."""
    source = folder / f"kenlm-{build.VERSION}"
    source.mkdir(parents=True)
    (source / "CMakeLists.txt").write_text(CMAKE.format(boost=boost))
    (source / "main.cc").write_text(code)
    archive = folder / build.SOURCE
    with tarfile.open(archive, "w:gz") as handle:
        handle.add(source, source.name)
    monkeypatch.setattr(build, "SHA256", file_sha256(archive))
    return archive


def test_programs_are_built_from_the_source_package_that_is_there(tmp_path, monkeypatch):
    fake_source(tmp_path / "made", monkeypatch)
    folder = tmp_path / "tools"
    folder.mkdir()
    shutil.copy(tmp_path / "made" / build.SOURCE, folder)
    monkeypatch.setattr(build, "_fetch", lambda *_: pytest.fail("fetched again"))
    build_kenlm(
        lmplz=folder / "lmplz",
        build_binary=folder / "build_binary",
        meta=folder / "kenlm.meta.json",
        cfg={},
        code="code",
        threads=1,
    )
    for name in build.PROGRAMS:
        assert subprocess.run([folder / name], check=True).returncode == 0
    meta = json.loads((folder / "kenlm.meta.json").read_text())
    assert meta["outputs"].keys() == set(build.PROGRAMS) and meta["kenlm"] == "0.3.0"
    if build.bundled_boost():
        assert list(folder.glob("libboost_thread.so.*"))


def test_another_source_package_is_refused(tmp_path):
    (tmp_path / build.SOURCE).write_bytes(b"something else")
    with pytest.raises(UserError, match=r"sha256 is [0-9a-f]{64}, expected c4628bb9"):
        get_source(tmp_path)


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(
        UserError, match=r"cannot fetch[\s\S]*kenlm[\s\S]*put kenlm-0\.3\.0\.tar\.gz into[\s\S]*kenlm_bin"
    ):
        get_source(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_tools_are_plain_errors(tmp_path, monkeypatch):
    archive = fake_source(tmp_path / "made", monkeypatch, boost="find_package(Boost 1.41.0 REQUIRED)")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"does not find Boost[\s\S]*pip install cmeel-boost[\s\S]*kenlm_bin"):
        compile_programs(archive, tmp_path / "one", tmp_path / "nothing", 1)
    find = build.find_program
    for program, message in (("cmake", "no cmake"), ("g++", "no C\\+\\+ compiler"), ("make", "neither ninja nor make")):
        hidden = {program, "ninja"}
        monkeypatch.setattr(
            build, "find_program", lambda *names, hidden=hidden: None if hidden & {*names} else find(*names)
        )
        with pytest.raises(UserError, match=message):
            compile_programs(archive, tmp_path / "two", None, 1)


def test_code_that_does_not_compile_is_a_plain_error(tmp_path, monkeypatch):
    archive = fake_source(tmp_path / "made", monkeypatch, code="int main() { return nonsense; }")
    with pytest.raises(UserError, match=r"cannot be compiled[\s\S]*nonsense"):
        compile_programs(archive, tmp_path / "one", None, 1)


@pytest.mark.slow
def test_the_true_source_package_compiles(kenlm_bin, tmp_path):
    source = kenlm_bin / build.SOURCE
    if not source.is_file():
        pytest.skip(f"no source package: `snakemake --cores 2 data/tools/kenlm/lmplz` fetches it to {source}")
    shutil.copy(source, tmp_path)
    programs = {"lmplz": tmp_path / "lmplz", "build_binary": tmp_path / "build_binary"}
    build_kenlm(**programs, meta=tmp_path / "kenlm.meta.json", cfg={}, code="code", threads=2)
    linked = subprocess.run(["ldd", programs["lmplz"]], text=True, stdout=subprocess.PIPE, check=True).stdout
    boost = [line for line in linked.splitlines() if "boost" in line]
    assert all(str(tmp_path) in line for line in boost) or not build.bundled_boost()
