"""A copy of the workflow with tiny corpora and a tiny model, in a folder of its own, and dry runs in it."""

from __future__ import annotations

import functools
import http.server
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from tiny_whisper import save_tiny_whisper

from utterflow.codedigest import code_digest
from utterflow.rationale.inputs import PLACEMENT

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORTED_LATE = ("nbformat", "requests", "smart_open")  # by Snakemake, in each run
SIZES = ("gpu", "nodes", "mem_mb", "runtime")
COPIED = ("Snakefile", "rules", "workflow", "config", "profiles", "envs")


@dataclass(frozen=True)
class Job:
    """What a dry run says of one job."""

    rule: str
    wildcards: tuple[tuple[str, str], ...]
    needed: bool
    params: Mapping[str, Any]
    resources: Mapping[str, Any]
    threads: int
    output: tuple[str, ...]
    input: tuple[str, ...]
    scripted: bool
    documented: bool  # has a log, a benchmark and an environment

    @property
    def name(self) -> str:
        return " ".join([self.rule, *(f"{key}={value}" for key, value in sorted(self.wildcards))])


def copy_workflow(folder: Path, *more: str) -> None:
    """The workflow's own files, without results or caches."""
    for name in (*COPIED, *more):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, folder / name)


def copy_kernels(folder: Path) -> None:
    """The decoder's machine code, as far as this checkout has compiled it: a copy's first job does not have to."""
    kernels = Path("workflow/utterflow/beams/__pycache__")
    (folder / kernels).mkdir(exist_ok=True)
    for path in (REPOSITORY / kernels).glob("*.nb?"):
        shutil.copy2(path, folder / kernels)


def copy_tools(folder: Path) -> None:
    """KenLM's programs, as this checkout has built them, or those in `KENLM_BIN`; and the decoder's machine code.

    Skips the test where there are no programs: to build them takes minutes and the network.
    """
    copy_kernels(folder)
    for place in filter(None, [os.environ.get("KENLM_BIN"), REPOSITORY / "data/tools/kenlm"]):
        if all((Path(place) / name).is_file() for name in ("lmplz", "build_binary", "kenlm.meta.json")):
            shutil.copytree(place, folder / "data/tools/kenlm")
            return
    pytest.skip("KenLM's programs are not built: `snakemake --cores 2 data/tools/kenlm/lmplz` does it")


def copy_results(folder: Path, *arguments: str) -> bool:
    """Add to a copy of the workflow what this checkout has computed, times kept; journals and states stay behind.

    Whether that is everything: a dry run in the copy, with these arguments, finds nothing to do.
    """
    results, records = REPOSITORY / "results", REPOSITORY / ".snakemake"
    if not (results.is_dir() and (records / "metadata").is_dir()) or any((records / "locks").glob("*")):
        return False  # nothing has been run, or a run goes on
    shutil.copytree(results, folder / results.name, ignore=shutil.ignore_patterns(".state"))
    shutil.copytree(records, folder / records.name, ignore=shutil.ignore_patterns("locks", "log"))
    done = snakemake(folder, "--dry-run", *arguments)
    return done.returncode == 0 and "Nothing to be done" in done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1"}


def snakemake(folder: Path, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in a folder; stdout and stderr together."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
    )


def kill_when(folder: Path, ready: Callable[[], bool], *arguments: str, timeout: float = 200) -> None:
    """Run Snakemake in a folder and kill it with all its jobs (SIGKILL) as soon as `ready` holds; then unlock."""
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + timeout
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    in_time = process.poll() is None and ready()
    os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    assert in_time and status == -signal.SIGKILL, f"it ended with {status} before it was to be killed"
    unlocked = snakemake(folder, "--unlock", *arguments)
    assert unlocked.returncode == 0, unlocked.stdout[-2000:]


@functools.cache
def _prepare_dry_runs(folder: Path) -> None:
    """Import what each dry run in a folder would import, and digest the folder's scripts: once, for all its forks."""
    import snakemake.cli

    from utterflow import targets  # noqa: F401
    from utterflow.config.load import load_config

    for name in IMPORTED_LATE:
        importlib.import_module(name)
    snakemake.cli.get_argument_parser()
    load_config(yaml.safe_load((REPOSITORY / "config/config.yaml").read_text()))
    for script in (folder / "workflow/scripts").glob("*.py"):
        code_digest(script)


def dry_run(folder: Path, *arguments: str) -> list[Job]:
    """The jobs of a dry run, from Snakemake's own objects; in a forked process, so that its imports are paid once.

    The code is that of the first dry run in this folder: its digests are kept.
    """
    import snakemake.cli
    import snakemake.workflow

    _prepare_dry_runs(folder)

    receive, send = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        os.chdir(folder)
        log = (folder / "dry-run.log").open("w")
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        made: list[Any] = []
        original = snakemake.workflow.Workflow.__init__ if hasattr(snakemake.workflow.Workflow, "__init__") else None

        def remember(self: Any, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            original(self, *args, **kwargs)

        snakemake.workflow.Workflow.__init__ = remember
        status: Any = 0
        try:
            snakemake.cli.main(["--dry-run", "--cores", "2", *arguments])
        except SystemExit as ended:
            status = ended.code
        jobs = [] if status else [_describe(job, made[-1].dag) for job in made[-1].dag.jobs]
        send.send_bytes(json.dumps([status, jobs]).encode())
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    send.close()
    try:
        status, jobs = json.loads(receive.recv_bytes())
    except EOFError:
        status, jobs = "the dry run died", []
    process.join()
    if status:
        raise AssertionError(f"dry run failed: {status}\n{(folder / 'dry-run.log').read_text()}")
    return [
        Job(
            **{
                **job,
                "wildcards": tuple(map(tuple, job["wildcards"])),
                "output": tuple(job["output"]),
                "input": tuple(job["input"]),
            }
        )
        for job in jobs
    ]


def _describe(job: Any, dag: Any) -> dict[str, Any]:
    return {
        "rule": job.rule.name,
        "wildcards": sorted((job.wildcards_dict or {}).items()),
        "needed": bool(dag.needrun(job)),
        "params": dict(job.params.items()) | {"": list(job.params)[len(job.params.keys()) :]},
        "resources": {name: str(job.resources.get(name)) for name in (*SIZES, *PLACEMENT)},
        "threads": int(job.threads),
        "output": [str(path) for path in job.output],
        "input": [str(path) for path in job.input],
        "scripted": job.rule.script is not None,
        "documented": bool(job.rule.log and job.rule.benchmark and job.rule.conda_env),
    }


def speak(path: Path, seed: int, seconds: float = 0.6) -> None:
    """A short noise: the tiny model makes something of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.2, int(seconds * 16000)), 16000)


def write_corpora(folder: Path) -> None:
    """One tiny corpus for each adapter, below `folder`/corpora, and what a server offers below `folder`/served."""
    root = folder / "corpora"
    sentences = []
    metadata: dict[str, Any] = {}
    for index in range(3):
        files = [f"s{index}-a.wav", f"s{index}-b-headset.wav"]
        for place, file in enumerate(files):
            speak(root / "spoken" / "audio" / file, 10 * index + place, 0.4 + 0.2 * index)
        recordings = [
            {"file": file, "wer": 0.5 - place / 2, "ent_wer": 0.0, "status": "correct"}
            for place, file in enumerate(files)
        ]
        sentences.append(
            {"slurp_id": index, "sentence": "a b c", "scenario": "s", "action": "t", "recordings": recordings}
        )
        entries = {file: {"usrid": f"u{index}", "gender": "male", "native": "yes"} for file in files}
        metadata[str(index)] = {"recordings": entries}
    for name in ("test", "devel"):
        (root / "spoken" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sentences))
    for name in ("metadata", "metadata2"):
        (root / "spoken" / f"{name}.json").write_text(json.dumps(metadata))
    shutil.copytree(root / "spoken" / "audio", root / "spoken" / "audio2")
    for copy in ("ocean", "ocean2"):
        for split, speaker in (("train", "0001"), ("test", "0002")):
            utterance = f"{speaker}1"
            speak(root / copy / "WAVE" / f"{utterance}.wav", int(speaker))
            part = root / copy / split
            part.mkdir(parents=True)
            (part / "wav.scp").write_text(f"{utterance}\tWAVE/{utterance}.wav\n")
            (part / "text").write_text(f"{utterance}\tA B\n")
            (part / "utt2spk").write_text(f"{utterance} {speaker}\n")
            (part / "spk2gender").write_text(f"{speaker} m\n")
            (part / "spk2age").write_text(f"{speaker} 20\n")
        (root / copy / "resource").mkdir()
        scores = {f"{speaker}1": {"text": "A B", "accuracy": 8, "words": []} for speaker in ("0001", "0002")}
        (root / copy / "resource" / "scores.json").write_text(json.dumps(scores))
    for copy in ("tree", "tree2"):
        for split in ("Train", "Dev"):
            speak(root / copy / split / "p1" / "x.wav", 5)
            entry = {"Etiology": "e", "Files": [{"Filename": "x.wav", "Prompt": {"Transcript": "a b"}}]}
            (root / copy / split / "p1" / "p1.json").write_text(json.dumps(entry))
    served = folder / "served"
    served.mkdir()
    header = "id\taudio\ttext\tid2\taudio2\ttext2\tspeaker2\tgroup2\n"
    table = header + "".join(f"r{i}\tr{i}.wav\ta b\tq{i}\tr{i}.wav\tc\tp\tg\n" for i in range(2))
    (served / "words.tsv").write_text(table)
    (root / "words2.tsv").write_text(table)
    for index in range(2):
        speak(served / "audio" / f"r{index}.wav", 70 + index)
    with tarfile.open(served / "words.tar", "w") as archive:
        for index in range(2):
            archive.add(served / "audio" / f"r{index}.wav", f"r{index}.wav")
    shutil.copytree(served / "audio", root / "words2")


def base_config(url: str) -> dict[str, Any]:
    """A configuration that uses every section and every adapter."""
    return {
        "name": "workspace",
        "downloads": {
            "data/words.tsv": {"url": f"{url}/words.tsv"},
            "data/words.tar": {"url": f"{url}/words.tar", "unpack_to": "data/words"},
        },
        "corpora": {
            "spoken": {
                "adapter": "slurp",
                "annotations": "corpora/spoken/test.jsonl",
                "audio_dir": "corpora/spoken/audio",
                "metadata": "corpora/spoken/metadata.json",
                "noise": {"snr_db": [10, 20]},
                "sample": {"method": "random", "percent": 100},
            },
            "ocean": {"adapter": "speechocean762", "root": "corpora/ocean"},
            "tree": {"adapter": "speaker_tree", "root": "corpora/tree", "split": "Dev"},
            "table": {"adapter": "manifest", "path": "data/words.tsv", "audio_dir": "data/words"},
        },
        "asr": {
            "main": {
                "model": "./model",
                "max_new_tokens": 6,
                "num_beams": 4,
                "num_hypotheses": 2,
                "num_beam_groups": 2,
            }
        },
        "scoring": {"main": {"normalizer": "basic", "bootstrap": {"samples": 20}}},
        "runs": [{"corpora": ["spoken", "ocean", "tree", "table"], "asr": ["main"], "scoring": ["main"]}],
    }


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """A local HTTP server of a folder; its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def write_config(folder: Path, config: Mapping[str, Any], name: str = "workspace.yaml") -> str:
    (folder / name).write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return name


def make_workspace(folder: Path) -> dict[str, Any]:
    """Copy the workflow, write corpora and model, and compute everything once; the configuration."""
    copy_workflow(folder)
    write_corpora(folder)
    save_tiny_whisper(folder / "model")
    shutil.copytree(folder / "model", folder / "model2")
    with serve(folder / "served") as url:
        config = base_config(url)
        done = snakemake(folder, "all", "--configfile", write_config(folder, config))
    if done.returncode:
        raise AssertionError(done.stdout[-6000:])
    return config
