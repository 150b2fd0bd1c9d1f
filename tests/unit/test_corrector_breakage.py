"""What users get wrong between recordings and corrections: one run of the workflow meets it all and says it plainly."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import workspace
import yaml
from tiny_lm import save_tiny_lm

from utterflow.config.load import load_config
from utterflow.errors import UserError
from utterflow.files import read_json, read_jsonl, write_jsonl
from utterflow.ngram import build

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO: dict[str, Any] = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
PHONES = ("-", "AA", "N", "F", "|")

# (file that is asked for, log of the job that must fail, what it says)
FAULTS = [
    pytest.param(
        "results/encoders/text/full/model.safetensors",
        "train_ctc/text/full.log",
        ["given/recordings.hdf5", "hdf5 file"],
        id="recordings that are text",
    ),
    pytest.param(
        "results/logits/pickled/test/shards/0-of-1.trials.jsonl",
        "index_logits/pickled/test/0-of-1.log",
        ["given/evil.pkl", "this pickle is not read: it would run posix.system"],
        id="a pickle that would run something",
    ),
    pytest.param(
        "results/beams/unknown/test/shards/0-of-1.jsonl",
        "dump_beams/unknown/test/0-of-1.log",
        ["'ZZ'", "given/unknown.txt, line 2"],
        id="a phone that is no token",
    ),
    pytest.param(
        "results/beams/narrow/test/shards/0-of-1.jsonl",
        "dump_beams/narrow/test/0-of-1.log",
        ["3 of 3 rows were rejected", "the logits have 3, the tokens are 5"],
        id="logits of other classes",
    ),
    pytest.param(
        "results/sft/braces/train.jsonl",
        "build_corrector_data/braces/train.log",
        ["given/template.txt", "{candidates}"],
        id="a template without candidates",
    ),
    pytest.param(
        "results/sft/absent/train.jsonl",
        "missing_file/given/absent.jsonl.log",
        ["file not found", "given/absent.jsonl", "datasets.absent.train.0.lists"],
        id="a missing file",
    ),
    pytest.param(
        "results/finetune/jinja/metrics.json",
        "finetune/jinja.log",
        ["given/broken.jinja", "template"],
        id="a broken chat template",
    ),
    pytest.param(
        "results/generate/schema/predictions.jsonl",
        "generate/schema/0-of-1.log",
        ["given/schema.json", "JSON"],
        id="a schema that is none",
    ),
    pytest.param(
        "results/generate/torn/predictions.jsonl",
        "generate/torn/0-of-1.log",
        ["given/torn", "model.safetensors"],
        id="a model without weights",
    ),
    pytest.param(
        "results/generate/nowhere/predictions.jsonl",
        "generate/nowhere/0-of-1.log",
        ["model folder not found", "given/nowhere"],
        id="a model folder that is not there",
    ),
]
GOOD = "results/generate/good/predictions.jsonl"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil-was-here",)


def stored(file: str) -> dict[str, str]:
    return {"logits": file, "transcripts": "given/texts.txt"}


def prediction(model: str, **keys: Any) -> dict[str, Any]:
    return {"dataset": "good", "model": model, "max_new_tokens": 3, **keys}


CONFIG: dict[str, Any] = {
    "name": "broken",
    "recordings": {"text": {"source": "hdf5", "train": ["given/recordings.hdf5"]}},
    "encoders": {"text": {"recordings": "text", "tokens": "given/tokens.txt", "steps": 2}},
    "logits": {
        "good": {"source": "npz", "test": stored("given/logits.npz")},
        "pickled": {"source": "npz", "test": {"logits": "given/logits.npz", "transcripts": "given/evil.pkl"}},
        "narrow": {"source": "npz", "test": stored("given/narrow.npz")},
    },
    "beams": {
        "unknown": {"logits": "good", "tokens": "given/tokens.txt", "lexicon": "given/unknown.txt"},
        "narrow": {"logits": "narrow", "tokens": "given/tokens.txt", "lexicon": "given/lexicon.txt"},
    },
    "models": {
        "nano": {"model": "./given/model"},
        "jinja": {"model": "./given/model", "chat_template": "given/broken.jinja"},
        "torn": {"model": "./given/torn"},
        "nowhere": {"model": "./given/nowhere"},
    },
    "datasets": {
        "good": {
            "builder": "corrector",
            "train": [{"lists": "given/lists.jsonl"}],
            "test": [{"lists": "given/lists.jsonl"}],
        },
        "braces": {
            "builder": "corrector",
            "train": [{"lists": "given/lists.jsonl"}],
            "instruction": "given/template.txt",
        },
        "absent": {"builder": "corrector", "train": [{"lists": "given/absent.jsonl"}]},
    },
    "trainings": {"jinja": {"model": "jinja", "train": [{"dataset": "good"}], "max_steps": 1}},
    "predictions": {
        "good": prediction("nano"),
        "schema": prediction("nano", json_schema="given/schema.json"),
        "torn": prediction("torn"),
        "nowhere": prediction("nowhere"),
    },
    "corrections": {"good": {"prediction": "good"}},
    "scoring": {"default": {}},
    "runs": [{"corrections": ["good"], "scoring": ["default"]}],
}


def write_files(given: Path) -> None:
    given.mkdir()
    (given / "recordings.hdf5").write_text("this is no recording\n")
    (given / "tokens.txt").write_text("".join(f"{name}\n" for name in PHONES))
    (given / "lexicon.txt").write_text("on AA N |\noff AA F |\n")
    (given / "unknown.txt").write_text("on AA N |\nzoo ZZ |\n")
    (given / "texts.txt").write_text("on\noff\non off\n")
    (given / "evil.pkl").write_bytes(pickle.dumps(["on", "off", Evil()]))
    draw = np.random.default_rng(0)
    np.savez(given / "logits.npz", *(draw.normal(size=(12, len(PHONES))).astype(np.float32) for _ in range(3)))
    np.savez(given / "narrow.npz", *(draw.normal(size=(12, 3)).astype(np.float32) for _ in range(3)))
    (given / "template.txt").write_text("Which one of {n} is right?\n")
    (given / "broken.jinja").write_text("{% for message in messages %}{{ message")
    (given / "schema.json").write_text('{"type": "object", ')
    lists = [{"id": str(n), "input": [f"turn {n} on", f"turn {n} off"], "output": f"turn {n} on"} for n in range(12)]
    write_jsonl(given / "lists.jsonl", lists)
    save_tiny_lm(given / "model")
    shutil.copytree(given / "model", given / "torn", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of everything, as far as each job comes (`--keep-going`)."""
    folder = tmp_path_factory.mktemp("broken")
    workspace.copy_workflow(folder)
    workspace.copy_kernels(folder)
    write_files(folder / "given")
    (folder / "broken.yaml").write_text(yaml.safe_dump(CONFIG))
    wanted = [str(fault.values[0]) for fault in FAULTS]
    return folder, workspace.snakemake(folder, "--keep-going", GOOD, *wanted, "--configfile", "broken.yaml")


@pytest.mark.parametrize(("wanted", "log", "said"), FAULTS)
def test_each_fault_is_named_in_its_log_and_on_the_screen(
    broken: tuple[Path, subprocess.CompletedProcess[str]], wanted: str, log: str, said: list[str]
) -> None:
    folder, run = broken
    text = (folder / "results/logs" / log).read_text()
    error = text[text.index(" ERROR ") :]
    assert [words for words in said if words not in (text if "rejected" in words else error)] == [], text
    assert "Traceback" not in text and "please report" not in text
    first = error.split(" ERROR ", 1)[1].splitlines()[0]
    assert f"error: {first}" in run.stdout
    assert not (folder / wanted).exists()


def test_the_screen_has_no_traceback_and_the_run_fails(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert broken[1].returncode == 1 and "Traceback" not in broken[1].stdout, broken[1].stdout


def test_the_pickle_did_not_run(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert not list(broken[0].rglob("evil-was-here"))


def test_what_is_sound_is_done_beside_the_faults(broken: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert len(list(read_jsonl(broken[0] / GOOD))) == 12
    rows = read_json(broken[0] / GOOD.replace(".jsonl", ".meta.json"))["rows"]
    assert rows == {"in": 12, "out": 12, "rejected": 0}
    assert json.loads((broken[0] / "results/sft/good/train.stats.json").read_text())["rows"]["out"] == 12


# configuration: what names each other and does not go together


def demo_with(section: str, name: str, **keys: Any) -> dict[str, Any]:
    return {**DEMO, section: {**DEMO[section], name: {**DEMO[section].get(name, {}), **keys}}}


def without(raw: Mapping[str, Any], section: str, name: str, key: str) -> dict[str, Any]:
    entry = {known: value for known, value in raw[section][name].items() if known != key}
    return {**raw, section: {**raw[section], name: entry}}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (without(DEMO, "datasets", "heard", "test"), "predictions.heard: dataset heard has no split test"),
        (without(DEMO, "datasets", "heard", "validation"), "trainings.heard: dataset heard has no split validation"),
        (
            {
                **demo_with("logits", "stored", source="npz", val={"logits": "a.npz"}),
                "beams": {"phones": {**DEMO["beams"]["phones"], "logits": "stored"}},
            },
            "datasets.decoded.train: phones has no partition train",
        ),
        (
            demo_with("trainings", "heard", adapter={"kind": "none"})
            | {"predictions": {**DEMO["predictions"], "heard": {**DEMO["predictions"]["heard"], "merged": True}}},
            "predictions.heard: training heard has no adapter to merge",
        ),
        (demo_with("encoders", "phones", folds=1), "folds 1 leaves nothing to train on"),
        (demo_with("beams", "phones", lexicon=None), "decoder lexicon needs `lexicon: <file>`"),
        (demo_with("predictions", "heard", model="nano_llm"), "write either `model` (as it is) or `training`"),
        (demo_with("datasets", "heard", tokenizer=None), "`tokenizer` and `max_prompt_tokens` go together"),
    ],
)
def test_entries_that_do_not_go_together(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(raw)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("section", "name", "keys", "written"),
    [
        ("beams", "phones", {"ngram": "comands"}, {"beams": {"phones": {"ngram": "commands"}}}),
        ("trainings", "heard", {"model": "nano"}, {"trainings": {"heard": {"model": "nano_llm"}}}),
        ("corrections", "heard", {"prediction": "herd"}, {"corrections": {"heard": {"prediction": "heard"}}}),
    ],
)
def test_what_is_proposed_for_a_misspelt_name_can_be_written(
    section: str, name: str, keys: dict[str, str], written: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as refused:
        load_config(demo_with(section, name, **keys))
    proposal = str(refused.value).split("  write:\n", 1)[1].split("\n\n", 1)[0]
    assert yaml.safe_load(proposal) == written
    load_config(demo_with(section, name, **written[section][name]))


# tools


def test_kenlms_source_is_fetched_into_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the rule calls it. pip looks for its list of packages in a folder of its own, where it does find it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    folder = Path("data/tools/kenlm")
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="No matching distribution found for kenlm") as refused:
        build.get_source(folder)
    assert "requirements file" not in str(refused.value)
