"""The real vLLM in its own environment, on a tiny model: greedy, sampled, with an adapter, with a JSON schema."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from unit.test_generate import prediction, reasons, rows_of, run, save_adapter, save_lively_lm, sft_rows, write_sft

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("UTTERFLOW_VLLM_PYTHON", REPOSITORY / ".venv-vllm/bin/python"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON.is_file(), reason=f"no vLLM: {PYTHON} is missing (`make setup-vllm` makes it)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Heads of 32 dimensions: vLLM's attention on CPUs takes few other sizes."""
    torch.set_num_threads(1)
    return save_lively_lm(tmp_path_factory.mktemp("lm"), hidden_size=128)


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    return write_sft(tmp_path_factory.mktemp("sft") / "test.jsonl", sft_rows())


def ask(sft: Path, out: Path, folder: Path, adapter: Path | None = None, **keys) -> Path:
    cfg = prediction(**{"backend": "vllm", "device": "cpu", **keys})
    return run(sft, out, folder, cfg, adapter=adapter, vllm_python=str(PYTHON))


def assert_same_answers(left: Path, right: Path) -> None:
    """Rows equal; near ties may fall otherwise, since sums are made in another order."""
    pairs = list(zip(rows_of(left), rows_of(right), strict=True))
    assert [one.id for one, _ in pairs] == [row.id for row in sft_rows()] == [other.id for _, other in pairs]
    assert sum(one == other for one, other in pairs) >= len(pairs) - 1


def test_greedy_answers_are_those_of_transformers(folder, sft, tmp_path):
    found = ask(sft, tmp_path / "vllm", folder)
    assert_same_answers(found, run(sft, tmp_path / "transformers", folder, prediction(device="cpu")))
    meta = json.loads((tmp_path / "vllm/0-of-1.meta.json").read_text())
    assert meta["backend"]["name"] == "vllm" and meta["backend"]["vllm"] and meta["device"] == "cpu"


def test_an_adapter_changes_answers_as_in_transformers(folder, sft, tmp_path):
    adapter = save_adapter(folder, tmp_path) / "adapter"
    found = ask(sft, tmp_path / "vllm", folder, adapter)
    other = run(sft, tmp_path / "transformers", folder, prediction(device="cpu"), adapter=adapter)
    plain = run(sft, tmp_path / "plain", folder, prediction(device="cpu"))
    assert_same_answers(found, other)
    assert all(one.raw != two.raw for one, two in zip(rows_of(found), rows_of(plain), strict=True))


def test_sampled_answers_repeat_whatever_is_in_the_batch(folder, sft, tmp_path):
    keys = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "num_outputs": 3}
    first = ask(sft, tmp_path / "first", folder, **keys)
    second = ask(sft, tmp_path / "second", folder, **keys, batch_size=16)
    assert_same_answers(first, second)
    assert sum(len(set(row.raw)) == 3 for row in rows_of(first)) > 8


def test_answers_follow_the_schema_and_are_those_of_transformers(folder, sft, tmp_path):
    schema = tmp_path / "schema.json"
    properties = {"choice": {"enum": ["first", "second"]}, "rank": {"type": "integer", "minimum": 0, "maximum": 99}}
    schema.write_text(json.dumps({"type": "object", "properties": properties, "required": [*properties]}))
    schema.write_text(schema.read_text()[:-1] + ', "additionalProperties": false}')
    keys = {"json_schema": str(schema), "max_new_tokens": 60}
    found = ask(sft, tmp_path / "vllm", folder, **keys)
    for row in rows_of(found):
        assert row.finish == ["stop"] and row.parsed == [json.loads(row.outputs[0])]
        assert set(row.parsed[0]) == {"choice", "rank"}
    assert_same_answers(found, run(sft, tmp_path / "transformers", folder, prediction(device="cpu", **keys)))


def test_values_that_are_no_numbers_reject_the_row(folder, sft, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    for file in folder.iterdir():
        (tmp_path / "lm").mkdir(exist_ok=True)
        (tmp_path / "lm" / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "lm/model.safetensors", {"format": "pt"})
    found = ask(sft, tmp_path / "out", tmp_path / "lm", max_rejected=1)
    assert len(reasons(found)) == len(sft_rows())
    assert all("not numbers" in reason for reason in reasons(found).values())
