"""The doctor sees what is missing, says how to get it, and never shows a secret."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from utterflow import doctor
from utterflow.config.load import load_config
from utterflow.config.servers import Server
from utterflow.doctor import Finding

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RAW: dict[str, Any] = {
    "name": "small",
    "downloads": {
        "data/corpus/dev.jsonl": {"url": "https://example.org/dev.jsonl"},
        "data/corpus/audio.tar.gz": {
            "url": "https://example.org/audio.tar.gz",
            "unpack_to": "data/corpus/audio",
        },
    },
    "corpora": {
        "fetched": {
            "adapter": "slurp",
            "annotations": "data/corpus/dev.jsonl",
            "audio_dir": "data/corpus/audio/real",
        },
        "own": {"adapter": "manifest", "path": "mine/list.csv", "audio_dir": "mine/audio"},
        "unused": {"adapter": "manifest", "path": "nowhere.csv"},
    },
    "asr": {
        "local": {"model": "./models/tiny"},
        "hub": {"model": "org/whisper", "revision": COMMIT},
        "unused": {"model": "./nowhere"},
    },
    "scoring": {"plain": {}},
    "runs": [{"corpora": ["fetched", "own"], "asr": ["local", "hub"], "scoring": ["plain"]}],
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)


def config_findings(raw: dict[str, Any] = RAW) -> list[Finding]:
    return list(doctor.config_findings(load_config(raw), "--configfile mine.yaml"))


def of(found: list[Finding], subject: str) -> list[Finding]:
    return [finding for finding in found if finding.subject == subject]


def make_all_present() -> None:
    from utterflow.fetch import model_folder

    for file in (
        "data/corpus/dev.jsonl",
        "data/corpus/audio/real/a.flac",
        "mine/list.csv",
        "mine/audio/a.wav",
    ):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    for folder in (Path("models/tiny"), model_folder("org/whisper", COMMIT)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        (folder / "model.safetensors").touch()


def test_all_there() -> None:
    make_all_present()
    found = config_findings()
    assert {finding.status for finding in found} == {"ok"}
    assert doctor.exit_code(found, strict=True) == 0


def test_what_is_missing_comes_with_how_to_get_it() -> None:
    found = config_findings()
    fetch = "snakemake fetch --cores 1 --configfile mine.yaml"
    assert [(finding.status, finding.text, finding.fix) for finding in of(found, "corpus fetched")] == [
        ("FAIL", "missing: data/corpus/dev.jsonl", fetch),
        ("FAIL", "missing: data/corpus/audio/real", fetch),
    ]
    assert [finding.text for finding in of(found, "corpus own")] == [
        "missing: mine/list.csv",
        "missing: mine/audio",
    ]
    assert all("corpora.own" in str(finding.fix) for finding in of(found, "corpus own"))
    (local,) = of(found, "model asr.local")
    assert "asr.local.model" in str(local.fix)
    (hub,) = of(found, "model asr.hub")
    assert (hub.status, hub.fix) == ("FAIL", fetch)
    assert doctor.exit_code(found, strict=False) == 1


def test_what_no_run_uses_is_not_asked_for() -> None:
    assert not any("unused" in finding.subject for finding in config_findings())


@pytest.mark.parametrize(
    ("removed", "says"),
    [("config.json", "has no config.json"), ("model.safetensors", "has no model.safetensors")],
)
def test_an_incomplete_model(removed: str, says: str) -> None:
    make_all_present()
    Path("models/tiny", removed).unlink()
    (finding,) = of(config_findings(), "model asr.local")
    assert finding.status == "FAIL"
    assert says in finding.text


def test_a_sharded_checkpoint_is_complete() -> None:
    make_all_present()
    Path("models/tiny/model.safetensors").rename("models/tiny/model.safetensors.index.json")
    (finding,) = of(config_findings(), "model asr.local")
    assert finding.status == "ok"


def test_a_speaker_tree_without_speakers() -> None:
    Path("tree/Dev").mkdir(parents=True)
    tree = {"adapter": "speaker_tree", "root": "tree", "split": "Dev"}
    raw = RAW | {
        "corpora": {"tree": tree},
        "runs": [{"corpora": ["tree"], "asr": ["local"], "scoring": ["plain"]}],
    }
    (finding,) = of(config_findings(raw), "corpus tree")
    assert finding.status == "FAIL"
    assert "no annotation files" in finding.text


@pytest.mark.parametrize(
    ("keys", "gpu", "slurm", "status"),
    [
        ({"device": "cuda", "gpus": 1}, False, False, "FAIL"),
        ({"device": "auto", "gpus": 1}, False, False, "warn"),
        ({"device": "auto", "gpus": 1}, False, True, "ok"),
        ({"device": "cuda", "gpus": 0}, True, False, "warn"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], gpu: bool, slurm: bool, status: str) -> None:
    monkeypatch.setattr(doctor, "_gpu_here", lambda: gpu)
    monkeypatch.setattr(doctor.shutil, "which", lambda program: "/usr/bin/sbatch" if slurm else None)
    raw = RAW | {"asr": RAW["asr"] | {"local": {"model": "./models/tiny"} | keys}}
    (finding,) = of(config_findings(raw), "device local")
    assert finding.status == status


def test_a_gpu_that_is_there_needs_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gpu_here", lambda: True)
    raw = RAW | {"asr": RAW["asr"] | {"local": {"model": "./models/tiny", "device": "cuda", "gpus": 1}}}
    assert of(config_findings(raw), "device local") == []


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 1), "FAIL"), ((3, 11, 7), "ok"), ((3, 12, 0), "warn"), ((3, 13, 0), "FAIL")],
)
def test_python(version: tuple[int, ...], status: str) -> None:
    assert doctor.python_finding(version).status == status


def test_packages_against_pins(tmp_path: Path) -> None:
    from importlib.metadata import version

    pins = tmp_path / "main.txt"
    good = f"pydantic=={version('pydantic')}"
    pins.write_text(f"# comment\n--extra-index-url https://example.org\n{good}  # why\n")
    (finding,) = doctor.package_findings(pins)
    assert (finding.status, finding.text) == ("ok", f"all 1 as pinned in {pins}")

    pins.write_text(f"{good}\nno-such-package-here==1\nPyYAML==0.1\nabsent==1; python_version < '3'\n")
    missing, other = doctor.package_findings(pins)
    assert (missing.status, missing.text) == ("FAIL", "missing: no-such-package-here==1")
    assert other.status == "warn"
    assert "PyYAML" in other.text
    assert "==0.1" in other.text


def test_a_local_version_fits_its_pin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.13.0+cpu")
    (tmp_path / "main.txt").write_text("torch==2.13.0\n")
    (finding,) = doctor.package_findings(tmp_path / "main.txt")
    assert finding.status == "ok"


def test_packages_without_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = doctor.package_findings(tmp_path / "none.txt")
    assert finding.status == "ok"
    monkeypatch.setattr(doctor, "_installed", lambda name: None)
    (finding,) = doctor.package_findings(tmp_path / "none.txt")
    assert finding.status == "FAIL"


def test_other_plugin_versions_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "slurm.txt"
    pins.write_text("snakemake-executor-plugin-slurm==2.8.0\n")
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.9.0")
    assert [finding.status for finding in doctor.snakemake_findings(pins)] == ["ok", "warn"]
    monkeypatch.setattr(doctor, "_installed", lambda name: "2.8.0")
    assert [finding.status for finding in doctor.snakemake_findings(pins)] == ["ok"]


def test_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.slurm_finding().status == "ok"

    answers = {
        "returncode": 0,
        "stdout": "SLURM_VERSION = 22.05.8\nAccountingStorageType = (null)\n",
        "stderr": "",
    }
    monkeypatch.setattr(doctor.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(doctor.subprocess, "run", lambda args, **_: subprocess.CompletedProcess(args, **answers))
    finding = doctor.slurm_finding()
    assert finding.status == "ok"
    assert "version 22.05.8, no accounting" in finding.text

    answers |= {"stdout": "AccountingStorageType = accounting_storage/slurmdbd\n"}
    assert "with accounting" in doctor.slurm_finding().text

    answers |= {"returncode": 1, "stderr": "slurm_load_ctl_conf error\nmore\n"}
    finding = doctor.slurm_finding()
    assert finding.status == "warn"
    assert finding.text.endswith("slurm_load_ctl_conf error")

    monkeypatch.setattr(doctor.shutil, "which", lambda program: "x" if program == "sbatch" else None)
    assert "squeue" in doctor.slurm_finding().text


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results" / "deep"
    usage = doctor.shutil.disk_usage(tmp_path)
    for free, status in ((100 * doctor.GIB, "ok"), (5 * doctor.GIB, "warn"), (0, "FAIL")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        assert [finding.status for finding in doctor.disk_findings(folder)] == [status]
    assert not (tmp_path / "results").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    last = list(doctor.disk_findings(tmp_path))[-1]
    assert last.status == "FAIL"
    assert "Permission denied" in last.text


def doctor_says(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *arguments])
    return int(args.func(args)), capsys.readouterr().out


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "machine_findings", lambda: iter([Finding("ok", "machine", "fit")]))
    Path("mine.yaml").write_text(yaml.safe_dump(RAW))
    code, out = doctor_says(capsys, "--configfile", "mine.yaml")
    assert code == 1
    assert "FAIL  corpus fetched" in out
    assert "do: snakemake fetch --cores 1 --configfile mine.yaml" in out
    assert "not fit to run" in out
    starts = {line.index("missing: ") for line in out.splitlines() if "missing: " in line}
    assert len(starts) == 1

    make_all_present()
    code, out = doctor_says(capsys, "--configfile", "mine.yaml")
    assert code == 0
    assert out.rstrip().endswith("FAIL 0")


def test_a_wrong_configuration_is_a_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "machine_findings", lambda: iter([]))
    Path("mine.yaml").write_text(yaml.safe_dump(RAW | {"titel": "x"}))
    code, out = doctor_says(capsys, "--configfile", "mine.yaml")
    assert code == 1
    assert "FAIL  config" in out
    assert "did you mean `title`?" in out


def test_strict_counts_warnings() -> None:
    found = [Finding("ok", "a", "x"), Finding("warn", "b", "y")]
    assert doctor.exit_code(found, strict=False) == 0
    assert doctor.exit_code(found, strict=True) == 1


def test_secrets_are_never_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    report = doctor.report(list(doctor.machine_findings()))
    assert "hf_verysecret" not in report
    assert "HF_TOKEN set" in report
    assert "DEEPSEEK_API_KEY not set" in report


def test_a_server_without_its_key_is_a_failure():
    server = Server(model="m", base_url="https://example.org", base_url_env=("OTHER",), key_env="A_KEY")
    missing = doctor.server_finding("paid", server, {"OTHER": "https://secret.example"})
    assert (missing.status, missing.text) == ("FAIL", "address from OTHER; its key A_KEY is not set")
    there = doctor.server_finding("paid", server, {"A_KEY": "sk-123"})
    assert (there.status, there.text) == ("ok", "https://example.org; A_KEY is set")
