"""`utterflow doctor`: are this machine, configuration and data fit to run; what is missing, how to get it."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import InvalidRequirement, Requirement

from utterflow import targets
from utterflow.config.asr import AsrVariant
from utterflow.config.commands import add_configfile, config_of
from utterflow.config.corpora import AnyCorpus, Download
from utterflow.config.models import Config
from utterflow.config.servers import Server
from utterflow.errors import UserError
from utterflow.models.folders import PretrainedModel, model_folder_of
from utterflow.provenance import PACKAGES

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

Status = Literal["ok", "warn", "FAIL"]

PYTHON_TESTED = (3, 11)
PYTHON_TOO_NEW = (3, 13)
PINS = Path("requirements/main.txt")
PLUGIN_PINS = Path("requirements/slurm.txt")
SLURM_PLUGINS = ("snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep")
RESULTS = Path("results")
GIB = 1024**3
FREE_LITTLE, FREE_TOO_LITTLE = 10 * GIB, 1 * GIB
SECRETS = ("HF_TOKEN", "DEEPSEEK_API_KEY", "OPENAI_API_KEY")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Finding:
    """One line of the report. `FAIL` stands in the way of running the configuration; `warn` may."""

    status: Status
    subject: str
    text: str
    fix: str | None = None


def add_parser(subparsers: Subparsers) -> None:
    """Add `doctor`; `func` returns 1 when something is in the way of running the configuration."""
    parser = subparsers.add_parser("doctor", help="is this machine, config and data fit to run?")
    add_configfile(parser)
    parser.add_argument("--strict", action="store_true", help="warnings count as failures")
    parser.set_defaults(func=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    found = list(machine_findings())
    try:
        config = config_of(args)
    except UserError as error:
        found.append(
            Finding("FAIL", "config", str(error), "mend it, then ask again: corpora and models are not checked")
        )
    else:
        files = " ".join(map(str, args.configfile))
        found += config_findings(config, f"--configfile {files}" if files else "")
    print(report(found))
    return exit_code(found, strict=args.strict)


def report(found: Sequence[Finding]) -> str:
    """The findings as aligned lines, each with what to do, and a last line that sums them up."""
    width = max(len(finding.subject) for finding in found)
    lines = []
    for finding in found:
        first, *rest = finding.text.splitlines()
        lines.append(f"{finding.status:<4}  {finding.subject:<{width}}  {first}")
        lines += [f"{'':<{width + 8}}{line}".rstrip() for line in rest]
        if finding.fix:
            lines.append(f"{'':<{width + 8}}do: {finding.fix}")
    count = {status: sum(finding.status == status for finding in found) for status in ("ok", "warn", "FAIL")}
    verdict = "not fit to run this configuration" if count["FAIL"] else "fit to run this configuration"
    lines.append(f"\n{verdict}: ok {count['ok']}, warn {count['warn']}, FAIL {count['FAIL']}")
    return "\n".join(lines)


def exit_code(found: Sequence[Finding], *, strict: bool) -> int:
    """1 where something failed, or where `strict` and something is doubtful; else 0."""
    bad = {"FAIL", "warn"} if strict else {"FAIL"}
    return int(any(finding.status in bad for finding in found))


def machine_findings() -> Iterator[Finding]:
    """What does not depend on the configuration."""
    yield python_finding(sys.version_info[:3])
    yield from package_findings(PINS)
    yield from torch_findings()
    yield from snakemake_findings(PLUGIN_PINS)
    yield slurm_finding()
    yield from disk_findings(RESULTS)
    yield Finding("ok", "secrets", ", ".join(f"{name} {_set_or_not(name)}" for name in SECRETS))


def config_findings(config: Config, options: str) -> Iterator[Finding]:
    """What the runs of a configuration need: corpora, models, devices.

    Args:
        options: the `--configfile ...` that `snakemake` must be given too.
    """
    fetch = f"snakemake fetch --cores 1 {options}".strip()
    yield Finding("ok", "config", f"{config.name}: {len(targets.all_scores(config))} results")
    lists = targets.used_lists(config)
    for name in dict.fromkeys(corpus for corpus, _ in lists):
        yield from corpus_findings(name, config.corpora[name], config.downloads, fetch)
    for name in dict.fromkeys(asr for _, asr in lists):
        yield from model_findings(f"asr.{name}", config.asr[name], fetch)
        yield from device_findings(name, config.asr[name])
    for name in targets.used_models(config):
        yield from model_findings(f"models.{name}", config.models[name], fetch)
    for name in targets.used_servers(config):
        yield server_finding(name, config.servers[name], os.environ)
    yield from given_file_findings(targets.given_files(config))
    yield from tool_findings(config)


def python_finding(version: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, version))
    if version[:2] < PYTHON_TESTED or version[:2] >= PYTHON_TOO_NEW:
        return Finding("FAIL", "python", f"{text} is not supported", "make the environment with Python 3.11")
    if version[:2] != PYTHON_TESTED:
        return Finding("warn", "python", f"{text}; the pinned environment is tested with 3.11")
    return Finding("ok", "python", text)


def package_findings(pins: Path) -> Iterator[Finding]:
    """The installed packages against the pins; without a file of pins, whether the core ones are there."""
    if not pins.is_file():
        missing = [name for name in PACKAGES if _installed(name) is None]
        if missing:
            yield Finding("FAIL", "packages", f"missing: {', '.join(missing)}", "pip install them, or run `make setup`")
        else:
            yield Finding("ok", "packages", f"core packages are installed ({pins} is not here to compare versions)")
        return
    wanted = list(pinned(pins))
    lost = [str(item) for item in wanted if _installed(item.name) is None]
    other = _other_versions(wanted)
    fix = f"pip install -r {pins}"
    if lost:
        yield Finding("FAIL", "packages", f"missing: {', '.join(lost)}", fix)
    if other:
        yield Finding("warn", "packages", f"other versions than pinned: {'; '.join(other)}", fix)
    if not lost and not other:
        yield Finding("ok", "packages", f"all {len(wanted)} as pinned in {pins}")


def _other_versions(wanted: Sequence[Requirement]) -> list[str]:
    return [
        f"{item.name} {version} instead of {item.specifier}"
        for item in wanted
        if (version := _installed(item.name)) is not None and not item.specifier.contains(version, prereleases=True)
    ]


def pinned(pins: Path) -> Iterator[Requirement]:
    """The requirements of a pip file that hold on this machine; options and nested files are passed over."""
    for line in pins.read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip().rstrip("\\").strip()
        if not text or text.startswith(("#", "-")):
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            yield requirement


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_findings() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("FAIL", "torch", f"cannot be imported: {error}", f"pip install -r {PINS}")
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {cores} cores usable")
    if not torch.cuda.is_available():
        yield Finding("ok", "gpu", "none seen here; models run on the CPU in float32")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        bf16 = "bfloat16" if device.major >= 8 else "no bfloat16: set `dtype: float16`"
        text = f"{device.name}, {device.total_memory / GIB:.0f} GiB, {bf16}"
        yield Finding("ok" if device.major >= 8 else "warn", f"gpu {index}", text)


def snakemake_findings(plugin_pins: Path) -> Iterator[Finding]:
    """Snakemake and the plugins that a cluster needs; their behaviour shifts between minor versions."""
    version = _installed("snakemake")
    if version is None:
        yield Finding("FAIL", "snakemake", "not installed", f"pip install -r {PINS}")
        return
    plugins = {name: _installed(name) for name in SLURM_PLUGINS}
    shown = [f"{name.removeprefix('snakemake-executor-plugin-')} {found}" for name, found in plugins.items() if found]
    yield Finding("ok", "snakemake", ", ".join([version, *shown]))
    fix = f"pip install --no-deps -r {plugin_pins}"
    missing = [name for name, found in plugins.items() if found is None]
    if missing and shutil.which("sbatch"):
        yield Finding("warn", "slurm plugins", f"missing: {', '.join(missing)}", fix)
    if plugin_pins.is_file() and (other := _other_versions(list(pinned(plugin_pins)))):
        yield Finding("warn", "slurm plugins", f"other versions than tested: {'; '.join(other)}", fix)


def slurm_finding() -> Finding:
    """Whether jobs can be submitted from here, and how their state can be asked for."""
    if shutil.which("sbatch") is None:
        return Finding("ok", "slurm", "no sbatch here; needed only for --profile profiles/slurm")
    if shutil.which("squeue") is None:
        fix = "install Slurm's client programs: profiles/slurm asks squeue for the state of jobs"
        return Finding("warn", "slurm", "sbatch is here, squeue is not", fix)
    try:
        command = ["scontrol", "show", "config"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        said = answer.stderr.strip() if answer.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        said = str(error)
    if said:
        text = f"sbatch is here, but the controller does not answer: {said.splitlines()[0]}"
        return Finding("warn", "slurm", text, "start slurmctld, or ask who runs the cluster")
    return Finding("ok", "slurm", slurm_text(answer.stdout))


def slurm_text(settings: str) -> str:
    """Version and accounting, from what `scontrol show config` prints."""
    pairs = (line.partition("=") for line in settings.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    storage = found.get("AccountingStorageType", "")
    accounting = "no accounting" if storage in ("", "(null)", "accounting_storage/none") else "with accounting"
    return f"version {found.get('SLURM_VERSION', 'unknown')}, {accounting}; the state of jobs comes from squeue"


def disk_findings(folder: Path) -> Iterator[Finding]:
    """Free space under a folder that may not exist yet, and whether it can be written to."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    status: Status = "FAIL" if free < FREE_TOO_LITTLE else "warn" if free < FREE_LITTLE else "ok"
    fix = None if status == "ok" else "make room, or link the folder to a larger disk"
    yield Finding(status, "disk", f"{free / GIB:.0f} GiB free for {folder}/", fix)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding("FAIL", "disk", f"cannot write to {place}: {error.strerror}", "run where you may write")


def corpus_findings(name: str, corpus: AnyCorpus, downloads: Mapping[str, Download], fetch: str) -> Iterator[Finding]:
    """Whether a corpus's annotation files and audio are there, and how to get what is not."""
    from utterflow.corpora.adapters import source_files
    from utterflow.corpora.inputs import audio_folder

    subject = f"corpus {name}"
    annotations, audio = [str(path) for path in source_files(corpus)], audio_folder(corpus)
    missing = [path for path in dict.fromkeys([*annotations, audio]) if not Path(path).exists()]
    for path in missing:
        comes_from = download_of(path, downloads)
        mend = f"put it there, or set the path in corpora.{name}; no entry of `downloads` brings it"
        yield Finding("FAIL", subject, f"missing: {path}", fetch if comes_from else mend)
    if not annotations and not missing:
        yield Finding("FAIL", subject, f"no annotation files under {audio}", f"check the paths in corpora.{name}")
    elif not missing:
        files = annotations[0] if len(annotations) == 1 else f"{len(annotations)} annotation files"
        yield Finding("ok", subject, f"{files}, audio in {audio}")


def download_of(path: str, downloads: Mapping[str, Download]) -> str | None:
    """The entry of `downloads` that stores `path` or unpacks an archive above it."""
    target = Path(os.path.normpath(path))
    for stored, item in downloads.items():
        if target == Path(stored) or (item.unpack_to and target.is_relative_to(os.path.normpath(item.unpack_to))):
            return stored
    return None


def given_file_findings(given: Mapping[str, str], shown: int = 5) -> Iterator[Finding]:
    """Whether the files that the user provides are there.

    Args:
        given: path -> the config key that names it.
        shown: of so many missing files at most, each is named.
    """
    if not given:
        return
    missing = [path for path in given if not Path(path).exists()]
    for path in missing[:shown]:
        yield Finding("warn", f"file {path}", "not found", f"put it there, or correct {given[path]}")
    if len(missing) > shown:
        more = f"{len(missing) - shown} more are not found"
        yield Finding("warn", "files", more, "`snakemake -n` shows as missing_file those that the runs need")
    if not missing:
        yield Finding("ok", "files", f"all {len(given)} that the configuration names are there")


def tool_findings(config: Config) -> Iterator[Finding]:
    """Programs outside of the main environment: KenLM's and vLLM's."""
    if targets.KENLM_LISTING in targets.fetched_files(config) and not Path(targets.KENLM_LISTING).is_file():
        yield Finding("ok", "kenlm", "lmplz is built from its source package when it is first needed")
    if any(config.predictions[name].backend == "vllm" for name in targets.predictions(config)):
        python = Path(config.tools.vllm_python)
        if python.exists():
            yield Finding("ok", "vllm", str(python))
        else:
            yield Finding("FAIL", "vllm", f"no {python}", "make setup-vllm (VLLM=gpu where there are GPUs)")


def server_finding(name: str, server: Server, environment: Mapping[str, str]) -> Finding:
    """Whether the environment has a server's key, and which address holds; nothing is sent."""
    from_variable = next((variable for variable in server.base_url_env if environment.get(variable)), None)
    address = f"address from {from_variable}" if from_variable else server.base_url
    if server.key_env and not environment.get(server.key_env):
        fix = f"export {server.key_env}=... (on a cluster too: sbatch hands the environment on)"
        return Finding("FAIL", f"servers.{name}", f"{address}; its key {server.key_env} is not set", fix)
    return Finding("ok", f"servers.{name}", f"{address}; {f'{server.key_env} is set' if server.key_env else 'no key'}")


def model_findings(key: str, variant: PretrainedModel, fetch: str) -> Iterator[Finding]:
    """Whether the checkpoint of a config entry is there and complete."""
    folder = model_folder_of(variant)
    subject = f"model {key}"
    if not folder.is_dir():
        fix = fetch if variant.is_hub_model else f"put a checkpoint there, or set {key}.model"
        yield Finding("FAIL", subject, f"{variant.model}: no folder {folder}", fix)
        return
    lost = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / file).is_file() for file in WEIGHTS):
        lost.append(WEIGHTS[0])
    if lost:
        fix = fetch if variant.is_hub_model else "save the model with transformers' save_pretrained"
        yield Finding("FAIL", subject, f"{folder} has no {' and no '.join(lost)}", fix)
    else:
        yield Finding("ok", subject, str(folder))


def device_findings(name: str, variant: AsrVariant) -> Iterator[Finding]:
    """Whether the GPU that a variant asks for can be had."""
    if variant.device != "cuda" and variant.gpus == 0:
        return
    subject = f"device {name}"
    if variant.device == "cuda" and variant.gpus == 0:
        fix = f"set asr.{name}.gpus: 1"
        yield Finding("warn", subject, "`device: cuda` without `gpus: 1`: a cluster gives the job no GPU", fix)
    if _gpu_here():
        return
    if shutil.which("sbatch"):
        yield Finding("ok", subject, "no GPU here; its jobs must go to the cluster: --profile profiles/slurm")
    elif variant.device == "cuda":
        fix = f"run on a machine with a GPU, or set asr.{name}.device: auto and gpus: 0"
        yield Finding("FAIL", subject, "`device: cuda`, but there is no GPU and no Slurm here", fix)
    else:
        fix = f"run on a machine with a GPU, or set asr.{name}.gpus: 0"
        yield Finding("warn", subject, "asks for a GPU, but there is none and no Slurm here", fix)


def _gpu_here() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _set_or_not(variable: str) -> str:
    return "set" if os.environ.get(variable) else "not set"
