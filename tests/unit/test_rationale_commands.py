"""`utterflow preview rationale`, where jobs ask, and the scripts with a model of this machine."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from scripted_llm import ScriptedModel, always_good, record, write_jsonl, write_labels

from utterflow import cli
from utterflow.config.load import load_config
from utterflow.files import read_json
from utterflow.rationale import backends, inputs
from utterflow.rationale.settings import settings_of
from utterflow.records import RationaleRow, read_records

SERVER = {
    "model": "big",
    "base_url": "https://example.com/v1",
    "base_url_env": ["MY_URL", "OTHER_URL"],
    "key_env": "MY_KEY",
    "prices": {"input": 1.0, "output": 2.0},
    "budget": 6.0,
    "requests_per_minute": 60,
    "timeout": 7.5,
}


def configured(folder: Path, **changes: Any) -> dict[str, Any]:
    """A configuration with one rationale of an own file of lists."""
    rationale = {
        "lists": str(folder / "lists.jsonl"),
        "labels": [str(folder / "labels.jsonl")],
        "server": "far",
        "nbest_values": [2, 1],
        **changes,
    }
    return {
        "name": "test",
        "servers": {"far": SERVER},
        "models": {"near": {"model": "./nano"}},
        "asr": {"main": {"model": "./whisper"}},
        "corpora": {"spoken": {"adapter": "manifest", "path": "words.tsv", "audio_dir": "."}},
        "rationales": {"mine": rationale},
        "runs": [{"rationales": ["mine"]}],
    }


@pytest.fixture
def folder(repository, tmp_path, monkeypatch) -> Path:
    """A run folder with lists, labels and the shipped prompts."""
    write_jsonl(tmp_path / "lists.jsonl", [record(0), record(1), record(2, scenario=None), record(3)])
    write_labels(tmp_path / "labels.jsonl")
    (tmp_path / "workflow").symlink_to(repository / "workflow")
    (tmp_path / "resources").symlink_to(repository / "resources")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def preview(config: dict[str, Any], *arguments: str) -> int:
    Path("c.yaml").write_text(yaml.safe_dump(config))
    return cli.main(["preview", "rationale", "mine", "--config", "c.yaml", *arguments])


@pytest.fixture
def model(monkeypatch) -> ScriptedModel:
    scripted = ScriptedModel(always_good)
    monkeypatch.setattr(backends, "open_backend", lambda settings, machine: scripted)
    return scripted


def test_preview_shows_prompts_and_answers_of_all_questions(folder, model, capsys):
    assert preview(configured(folder, stages="two"), "--rows", "1") == 0
    shown = capsys.readouterr().out
    for name in ("intent_candidates", "slot_candidates", "intent_pruning", "slot_grounding"):
        assert f"=== slurp-0: {name} ===" in shown
    assert shown.count("--- answer 1: passed its checks ---") == 4
    assert "2. make me at nine pm to day 0" in shown and "=== slurp-0: the rationale ===\nIntent: alarm_set." in shown
    assert "slurp-1" not in shown and len(model.turns) == 4


def test_preview_pays_once(folder, model, capsys):
    for _ in range(2):
        assert preview(configured(folder), "--rows", "2") == 0
    assert len(model.turns) == 2
    assert list((folder / "results/.state/llm").glob("*/*.jsonl"))


def test_preview_as_json(folder, model, capsys):
    assert preview(configured(folder), "--json", "--k", "1") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["slurp-0", "slurp-1", "slurp-2"]
    assert RationaleRow.model_validate(rows[0]["row"]).nbest_k == 1
    assert rows[0]["questions"][0]["question"] == "one_stage"
    assert rows[2]["rejected"].startswith("no labels") and rows[2]["questions"] == []


def test_preview_of_prompts_asks_nothing(folder, model, capsys, monkeypatch):
    for stages, prompts in (("one", 1), ("two", 4)):
        assert preview(configured(folder, stages=stages), "--prompts-only", "--rows", "1") == 0
        shown = capsys.readouterr().out
        assert shown.count("=== slurp-0: ") == prompts and "--- answer" not in shown and "[user]" in shown
    assert "Proposed intents: alarm_query, alarm_set, calendar_set, lists_remove, music_play" in shown
    assert model.turns == [] and not (folder / "results").exists()
    assert preview(configured(folder), "--prompts-only", "--json", "--rows", "1") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["questions"][0]["messages"][0]["role"] == "system" and "row" not in row


def test_preview_without_lists_says_how_to_make_them(folder, capsys):
    made = configured(folder, lists=None, corpus="spoken", asr="main")
    assert preview(made) == 2
    said = capsys.readouterr().err
    assert "the n-best lists are not there yet" in said
    assert "snakemake --cores all results/asr/spoken/main/nbest.jsonl --configfile c.yaml" in said
    assert preview(configured(folder, lists="gone.jsonl")) == 2
    assert "correct `rationales.mine.lists`" in capsys.readouterr().err


def test_preview_may_be_interrupted(folder, capsys, monkeypatch):
    def asked(turn):
        if turn.id.startswith("slurp-1/"):
            raise KeyboardInterrupt
        return always_good(turn)

    for script, code, asks in ((asked, 130, 2), (always_good, 0, 1)):
        model = ScriptedModel(script)
        monkeypatch.setattr(backends, "open_backend", lambda settings, machine, model=model: model)
        assert preview(configured(folder), "--rows", "2") == code
        assert ("answers that came are in the journal" in capsys.readouterr().err) == (code == 130)
        assert len(model.turns) == asks and model.closed


def test_preview_of_an_unknown_name(folder, capsys):
    Path("c.yaml").write_text(yaml.safe_dump(configured(folder)))
    assert cli.main(["preview", "rationale", "other", "--configfile", "c.yaml"]) == 2
    assert "take one of these: mine" in capsys.readouterr().err


def test_where_a_server_is_asked_is_no_part_of_the_settings(folder):
    config = load_config(configured(folder, shards=3))
    cfg, placed = inputs.settings(config, "mine"), inputs.placement(config, "mine")
    assert not {"base_url", "key_env", "budget", "concurrency", "timeout"} & cfg["server"].keys()
    assert not {"nbest_values", "shards", "mem_mb"} & cfg["rationale"].keys()
    assert set(placed) == set(inputs.PLACEMENT) and {type(value) for value in placed.values()} <= {str, int}
    assert placed["base_url_env"] == "MY_URL OTHER_URL" and placed["tokens_per_minute"] == ""
    assert float(placed["job_budget"]) == pytest.approx(1.0), "six jobs: two list lengths in three shards"
    assert json.loads(json.dumps(cfg)) == cfg
    server = settings_of(cfg, placed).server
    assert server == config.servers["far"].model_copy(update={"budget": None})
    assert backends.machine_of(placed, 2, 0).budget == pytest.approx(1.0)


def test_a_local_model_has_no_server(folder):
    config = load_config(configured(folder, server=None, backend="vllm", model="near"))
    placed = inputs.placement(config, "mine")
    assert {name for name, value in placed.items() if value} == {"vllm_python"}
    settings = settings_of(inputs.settings(config, "mine"), placed)
    assert settings.server is None and settings.model.model == "./nano"
    assert inputs.text_files(config, "mine") == inputs.prompt_files(config.rationales["mine"])


NANO_PROMPTS = {
    "system": "",
    "intent_candidates": "{{ intents | join(', ') }}\n{{ hypotheses }}\n{{ reference.intent if reference }}",
    "slot_candidates": "{{ slot_types | join(', ') }}\n{{ hypotheses }}",
    "intent_pruning": "{{ topk_intents | join(', ') }}\n{{ hypotheses }}",
    "slot_grounding": "{{ topk_slot_types | join(', ') }}\n{{ hypotheses }}",
}


def test_scripts_with_a_model_of_this_machine(repository, folder, monkeypatch):
    """The bundled nano model, which has never seen such a question: forms hold by rule or by constrained decoding."""
    (folder / "prompts").mkdir()
    for name, text in NANO_PROMPTS.items():
        (folder / f"prompts/{name}.txt").write_text(text)
    write_jsonl(folder / "lists.jsonl", [record(0), record(1)])
    changes = {
        "server": None, "backend": "transformers", "model": "near", "prompts": "prompts", "few_shot": False,
        "stages": "two", "output_mode": "full", "max_new_tokens": 150, "format_retries": 0, "device": "cpu",
    }  # fmt: skip
    raw = configured(folder, **changes)
    raw["models"]["near"]["model"] = "./resources/demo/models/nano-llm"
    config = load_config(raw)
    out = Path("results/rationale/mine/k2")
    shard = {name: f"{out}/shards/0-of-1{suffix}" for name, suffix in SUFFIXES.items()}
    run_script(
        repository / "workflow/scripts/generate_rationale.py",
        input={"lists": inputs.lists_file(config, "mine")},
        output=shard,
        wildcards={"rationale": "mine", "k": "2", "shard": "0", "shards": "1"},
        cfg=inputs.settings(config, "mine"),
        resources=inputs.placement(config, "mine"),
    )
    run_script(
        repository / "workflow/scripts/gather_rationales.py",
        input={
            "lists": inputs.lists_file(config, "mine"),
            "shards": [shard["rationales"]],
            "rejected_shards": [shard["rejected"]],
        },
        output={name: f"{out}/rationale{suffix}" for name, suffix in {**SUFFIXES, "metrics": ".metrics.json"}.items()},
        wildcards={"rationale": "mine", "k": "2"},
        cfg=inputs.gather_settings(config, "mine"),
        resources={},
    )
    rows = list(read_records(out / "rationale.jsonl", RationaleRow))
    assert [row.id for row in rows] == ["slurp-0", "slurp-1"]
    for row in rows:
        assert row.rationale_text and len(row.rationale["topk_intents"]) == 5
        assert "alarm_set" in row.rationale["topk_intents"]
        assert [asked["question"] for asked in row.asked] == list(NANO_PROMPTS)[1:]
        assert row.fallback_used == any(asked["tries"][-1]["problem"] for asked in row.asked)
    metrics = read_json(out / "rationale.metrics.json")
    assert metrics["rows"] == {"in": 2, "out": 2, "rejected": 0} and metrics["tries"] == 8
    assert metrics["output_tokens"] > 0 and metrics["cost"] is None
    assert read_json(out / "rationale.meta.json")["device"] == "cpu"


SUFFIXES = {"rationales": ".jsonl", "rejected": ".rejected.jsonl", "meta": ".meta.json"}


class Named(SimpleNamespace):
    """As Snakemake's: values by name, and `get`."""

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def run_script(script: Path, *, input: Any, output: Any, wildcards: Any, cfg: Any, resources: Any) -> None:
    """A rule's script as Snakemake runs it, in this process."""
    job = SimpleNamespace(
        input=Named(**input),
        output=Named(**output),
        wildcards=Named(**wildcards),
        params=Named(cfg=cfg, code="c"),
        resources=Named(**resources),
        threads=1,
        log=["job.log"],
    )
    runpy.run_path(str(script), init_globals={"snakemake": job}, run_name="__main__")


def test_help_does_not_load_heavy_packages(repository):
    """The command line starts quickly: what answers is imported when it is asked."""
    heavy = ("torch", "openai", "transformers", "jinja2")
    code = f"import sys, utterflow.cli; print([name for name in {heavy} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(repository / "workflow")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
