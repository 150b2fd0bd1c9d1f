"""The vLLM back end and its worker process, with a stand-in for the package vllm (the real one: tests/real)."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_lm import save_tiny_lm
from unit.test_generate import language_model, prediction, reasons, rows_of, run, sft_rows, write_sft

from utterflow.errors import UserError
from utterflow.llm import vllm_backend as backend
from utterflow.llm.requests import Decoding
from utterflow.llm.vllm_worker import lora_rank
from utterflow.models.text import load_tokenizer
from utterflow.sft.tokenize import encode_prompt

# Answers with the prompt's first tokens plus the number of the answer; tells what it was given on its standard error.
VLLM = """
import json, os, sys
from types import SimpleNamespace as Namespace
__version__ = "0.0.stub"
print("a line on standard output, as vLLM's programs print them")
TOLD = {told!r}
def tell(**what):
    with open(TOLD, "a") as handle:
        handle.write(json.dumps(what) + "\\n")
class SamplingParams:
    def __init__(self, **keys):
        self.__dict__.update(keys)
class LLM:
    def __init__(self, **engine):
        tell(engine=engine, environment=dict(os.environ), path=sys.path)
        if "{fault}" == "load":
            print("no room for the model", file=sys.stderr)
            raise ValueError("KV cache too small")
        self.batches = 0
    def generate(self, prompts, sampling, lora_request, use_tqdm):
        self.batches += 1
        if "{fault}" == "second batch" and self.batches == 2:
            os.write(2, b"terminated by the system\\n")
            os._exit(9)
        tell(sampling=[dict(item.__dict__, structured_outputs=item.structured_outputs and item.structured_outputs.json)
                       for item in sampling],
             lora=lora_request and lora_request.__dict__)
        print("Processed prompts: 100%")
        return [Namespace(outputs=[answer(prompt["prompt_token_ids"], item, n) for n in range(item.n)])
                for prompt, item in zip(prompts, sampling)]
def answer(prompt, item, n):
    tokens = prompt[4:6 + n] + item.stop_token_ids[:1]
    value = float("nan") if len(prompt) > 60 else -1.0
    return Namespace(token_ids=tokens, logprobs=[{{token: Namespace(logprob=value)}} for token in tokens])
"""
MODULES = {
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": """
        class LoRARequest:
            def __init__(self, name, number, path):
                self.path = path
        """,
    "vllm/platforms.py": """
        class current_platform:
            device_type = "cpu"
            get_device_name = staticmethod(lambda: "stub processor")
        """,
    "vllm/sampling_params.py": """
        class StructuredOutputsParams:
            def __init__(self, json):
                self.json = json
        """,
    "torch.py": "__version__ = 'stub'",
    "transformers.py": "__version__ = 'stub'",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def sft(tmp_path) -> Path:
    return write_sft(tmp_path / "test.jsonl", sft_rows())


def environment_with(place: Path, fault: str = "", package: bool = True) -> Path:
    """A program like an environment's Python, which finds the stand-in (or no vllm at all); what it is told: told."""
    modules = place / "modules"
    (modules / "vllm/lora").mkdir(parents=True)
    for name, text in MODULES.items():
        (modules / name).write_text(textwrap.dedent(text))
    (modules / "vllm/__init__.py").write_text(VLLM.format(told=str(place / "told"), fault=fault))
    program = place / "python"
    found = modules if package else place / "nothing"
    program.write_text(f'#!/bin/sh\nexport PYTHONPATH="{found}:$PYTHONPATH"\nexec {sys.executable} -S "$@"\n')
    program.chmod(0o755)
    return program


def told(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "told").read_text().splitlines()]


def test_answers_come_back_through_the_worker(folder, sft, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    program = environment_with(tmp_path)
    cfg = prediction(backend="vllm", temperature=0.5, top_p=0.9, top_k=7, num_outputs=2, max_rejected=1)
    found = run(sft, tmp_path / "out", folder, cfg, vllm_python=str(program))
    tokenizer = load_tokenizer(folder, language_model(folder))
    rows = {row.id: row for row in rows_of(found)}
    assert reasons(found) and all("not numbers" in reason for reason in reasons(found).values())
    assert len(rows) + len(reasons(found)) == len(sft_rows()) and len(rows) > 5
    for source in sft_rows():
        if source.id in rows:
            prompt = tokenizer.apply_chat_template(
                [message.row() for message in source.messages], add_generation_prompt=True, return_dict=False
            )
            row = rows[source.id]
            assert row.raw == [
                tokenizer.decode(prompt[4:6]) + "<|im_end|>",
                tokenizer.decode(prompt[4:7]) + "<|im_end|>",
            ]
            assert row.output_tokens == [3, 4] and row.finish == ["stop", "stop"]
    meta = json.loads((tmp_path / "out/0-of-1.meta.json").read_text())
    assert meta["device"] == "stub processor"
    assert meta["backend"] == {"name": "vllm", "vllm": "0.0.stub", "torch": "stub", "transformers": "stub"}
    start, *batches = told(tmp_path)
    assert start["engine"]["model"] == str(folder) and start["engine"]["generation_config"] == "vllm"
    assert start["engine"]["dtype"] == "float32" and start["engine"]["tensor_parallel_size"] == 1
    longest = max(len(encode_prompt(tokenizer, source.messages)) for source in sft_rows())
    assert start["engine"]["max_model_len"] == longest + 12
    assert "enable_lora" not in start["engine"] and "structured_outputs_config" not in start["engine"]
    assert "/somewhere/else" not in start["environment"]["PYTHONPATH"]
    assert [len(batch["sampling"]) for batch in batches] == [4, 4, 3]
    params = [item for batch in batches for item in batch["sampling"]]
    assert len({item["seed"] for item in params}) == len(params)
    for item in params:
        assert (item["n"], item["temperature"], item["top_p"], item["top_k"], item["max_tokens"]) == (
            2,
            0.5,
            0.9,
            7,
            12,
        )
        assert item["stop_token_ids"] == [tokenizer.eos_token_id] and item["structured_outputs"] is None


def test_adapter_and_schema_reach_vllm(folder, sft, tmp_path):
    program = environment_with(tmp_path)
    adapter, schema = tmp_path / "adapter", tmp_path / "schema.json"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 12}')
    schema.write_text('{"type": "object"}')
    cfg = prediction(backend="vllm", json_schema=str(schema), max_rejected=1)
    found = run(sft, tmp_path / "out", folder, cfg, adapter=adapter, vllm_python=str(program))
    start, first, *_ = told(tmp_path)
    assert start["engine"]["enable_lora"] and start["engine"]["max_lora_rank"] == 16
    assert start["engine"]["structured_outputs_config"] == {"backend": "guidance"}
    assert first["lora"] == {"path": str(adapter)}
    assert first["sampling"][0]["structured_outputs"]["type"] == "object"
    meta = json.loads(found.with_suffix(".meta.json").read_text())
    assert meta["invalid_json"] == meta["answers"] > 0, "the stand-in follows no schema, which is noticed"


def test_ranks_that_vllm_can_hold():
    assert [lora_rank(rank) for rank in (1, 4, 8, 9, 64, 65, 257, 512)] == [1, 8, 8, 16, 64, 128, 320, 512]


def test_a_fault_at_loading_shows_vllms_last_lines(folder, sft, tmp_path):
    program = environment_with(tmp_path, fault="load")
    with pytest.raises(UserError) as error:
        run(sft, tmp_path / "out", folder, prediction(backend="vllm"), vllm_python=str(program))
    assert "no room for the model" in str(error.value) and "KV cache too small" in str(error.value)
    assert "status 1" in str(error.value) and str(program) in str(error.value)


def test_when_vllm_dies_finished_batches_are_kept(folder, sft, tmp_path):
    dying = environment_with(tmp_path / "dying", fault="second batch")
    state = tmp_path / "state"
    cfg = prediction(backend="vllm", max_rejected=1)
    with pytest.raises(UserError, match="terminated by the system"):
        run(sft, tmp_path / "out", folder, cfg, vllm_python=str(dying), state=state)
    well = environment_with(tmp_path / "well")
    run(sft, tmp_path / "out", folder, cfg, vllm_python=str(well), state=state)
    assert json.loads((tmp_path / "out/0-of-1.meta.json").read_text())["rows"]["from_journal"] == 4
    assert [len(batch["sampling"]) for batch in told(tmp_path / "well")[1:]] == [4, 3]


def test_without_an_environment_it_says_how_to_make_one(folder, sft, tmp_path):
    for python in (str(tmp_path / "absent/python"), str(sft)):
        with pytest.raises(UserError, match="make setup-vllm") as error:
            run(sft, tmp_path / "out", folder, prediction(backend="vllm"), vllm_python=python)
        assert python in str(error.value)
    without = environment_with(tmp_path, package=False)
    with pytest.raises(UserError, match="make setup-vllm"):
        run(sft, tmp_path / "out", folder, prediction(backend="vllm"), vllm_python=str(without))


def test_a_vllm_for_other_devices_is_refused(folder, sft, tmp_path):
    program = environment_with(tmp_path)
    cfg = prediction(backend="vllm", device="cuda")
    with pytest.raises(UserError, match="built for cpu, but the job is to run on cuda"):
        run(sft, tmp_path / "out", folder, cfg, vllm_python=str(program))


def test_when_the_job_breaks_the_worker_ends(folder, tmp_path):
    program = environment_with(tmp_path)
    engine = backend.Engine(str(program), folder, None, False, "float32", "cpu", 0, 1, 64, 0)
    decoding = Decoding(8, 0.0, 1.0, 0, 1, (2,), None)
    with pytest.raises(KeyboardInterrupt), backend.running(engine, decoding) as worker:
        assert worker.process.poll() is None
        raise KeyboardInterrupt
    assert worker.process.poll() is not None


def test_the_workers_environment():
    found = backend.worker_environment({"PYTHONHOME": "x", "PYTHONPATH": "y", "HOME": "/h", "OMP_NUM_THREADS": "9"}, 3)
    assert found["HOME"] == "/h" and "PYTHONHOME" not in found
    assert Path(found["PYTHONPATH"], "utterflow/llm/vllm_worker.py").is_file() and os.pathsep not in found["PYTHONPATH"]
    assert found["OMP_NUM_THREADS"] == "3" and found["VLLM_NO_USAGE_STATS"] == "1" and found["HF_HUB_OFFLINE"] == "1"
    assert backend.worker_environment({"VLLM_CPU_KVCACHE_SPACE": "40"}, 1)["VLLM_CPU_KVCACHE_SPACE"] == "40"
