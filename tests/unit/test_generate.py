"""The stage generate: prompts, batches, sampling, adapters, the journal, rejected rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import chisquare
from tiny_lm import save_tiny_lm, tiny_tokenizer

from utterflow.config.language_models import LanguageModel
from utterflow.config.models import Config
from utterflow.config.prediction import Prediction
from utterflow.errors import UserError
from utterflow.files import seed_of, write_jsonl
from utterflow.gather import Shard
from utterflow.generate import predict as stage
from utterflow.generate.gather import gather_predictions
from utterflow.generate.inputs import Sources, answering_model, pretrained_files, sources_of, text_files, trained_files
from utterflow.generate.predict import NOT_IN_MODEL, NOT_IN_RESULT, Machine, context_length, end_tokens, generate
from utterflow.llm import transformers_backend
from utterflow.llm.requests import Decoding, Request, answer_of, cut_at_end
from utterflow.llm.transformers_backend import NextToken, answers, load_for_answers
from utterflow.models.text import load_tokenizer
from utterflow.records import Message, PredictionRow, RejectedRow, SftRow, read_records
from utterflow.sft.tokenize import encode_prompt

WORDS = "the quick brown fox jumps over the lazy dog"
LENGTHS = (3, 1, 7, 2, 9, 4, 1, 6, 5, 8, 2)
CPU = torch.device("cpu")


def sft_rows() -> list[SftRow]:
    return [
        SftRow(
            id=f"row{index}",
            task="corrector",
            messages=[Message(role="user", content=f"{index}: " + f"{WORDS} " * length)],
            target=f"answer {index}",
        )
        for index, length in enumerate(LENGTHS)
    ]


def write_sft(path: Path, rows: list[SftRow]) -> Path:
    write_jsonl(path, (row.row() for row in rows))
    return path


def save_lively_lm(folder: Path, architecture: Literal["llama", "qwen3"] = "qwen3", *, hidden_size: int = 32) -> Path:
    """A tiny model with larger weights than at initialisation: its answers depend on all of the prompt."""
    torch.set_num_threads(1)
    save_tiny_lm(folder, architecture, hidden_size=hidden_size)
    weights = load_file(folder / "model.safetensors")
    grown = {name: value * (6 if value.ndim == 2 else 1) for name, value in weights.items()}
    save_file(grown, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_lively_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    return write_sft(tmp_path_factory.mktemp("sft") / "test.jsonl", sft_rows())


def language_model(folder: Path, **keys) -> LanguageModel:
    return LanguageModel.model_validate({"model": f"{folder}/", **keys})


def prediction(**keys) -> Prediction:
    return Prediction.model_validate({"dataset": "d", "model": "m", "max_new_tokens": 12, "batch_size": 4, **keys})


def run(
    sft: Path,
    out: Path,
    folder: Path,
    cfg: Prediction,
    *,
    shards: int = 1,
    adapter: Path | None = None,
    state: Path | None = None,
    model_cfg: LanguageModel | None = None,
    vllm_python: str = "absent/python",
) -> Path:
    """All shards and the gather; the gathered file."""
    parts = [out / f"{index}-of-{shards}.jsonl" for index in range(shards)]
    for index, part in enumerate(parts):
        generate(
            sft=sft,
            shard=Shard(index, shards),
            sources=Sources(folder, adapter),
            cfg=cfg,
            model_cfg=model_cfg or language_model(folder),
            code="code",
            state=state or out / "state",
            machine=Machine(threads=1, gpus=0, vllm_python=vllm_python),
            predictions=part,
            rejected=part.with_suffix(".rejected.jsonl"),
            meta=part.with_suffix(".meta.json"),
        )
    gather_predictions(
        sft=sft,
        shards=parts,
        rejected_shards=[part.with_suffix(".rejected.jsonl") for part in parts],
        cfg={},
        code="code",
        predictions=out / "predictions.jsonl",
        rejected=out / "predictions.rejected.jsonl",
        meta=out / "predictions.meta.json",
    )
    return out / "predictions.jsonl"


def rows_of(path: Path) -> list[PredictionRow]:
    return list(read_records(path, PredictionRow))


def reasons(path: Path) -> dict[str, str]:
    return {row.id: row.reason for row in read_records(path.with_suffix(".rejected.jsonl"), RejectedRow)}


def greedy_by_hand(model, prompt: list[int], ends: tuple[int, ...], limit: int) -> list[int]:
    """The most likely tokens one by one, without padding, cache or library."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + limit:
        with torch.inference_mode():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_greedy_answers_are_those_without_padding_or_batches(architecture, sft, tmp_path):
    folder = save_lively_lm(tmp_path / "lm", architecture)
    found = rows_of(run(sft, tmp_path, folder, prediction()))
    cfg = language_model(folder)
    tokenizer, model = load_tokenizer(folder, cfg), load_for_answers(folder, None, cfg, CPU)
    assert [row.id for row in found] == [f"row{index}" for index in range(len(LENGTHS))]
    for row, source in zip(found, sft_rows(), strict=True):
        prompt = encode_prompt(tokenizer, source.messages)
        expected = greedy_by_hand(model, prompt, end_tokens(folder, tokenizer), 12)
        assert row.raw == [tokenizer.decode(expected)]
        assert row.prompt_tokens == len(prompt) and row.output_tokens == [len(expected)]
        assert row.target == source.target and row.task == "corrector" and row.parsed is None
    assert len({row.raw[0] for row in found}) > 5


@pytest.mark.parametrize(
    "keys",
    [{}, {"temperature": 1.0, "num_outputs": 3}, {"temperature": 0.7, "top_p": 0.9, "top_k": 40, "num_outputs": 2}],
    ids=["greedy", "sampled", "truncated"],
)
def test_answers_do_not_depend_on_shards_and_batches(keys, folder, sft, tmp_path):
    whole = run(sft, tmp_path / "whole", folder, prediction(batch_size=16, **keys))
    alone = run(sft, tmp_path / "alone", folder, prediction(batch_size=1, **keys))
    parts = run(sft, tmp_path / "parts", folder, prediction(**keys), shards=3)
    assert whole.read_bytes() == alone.read_bytes() == parts.read_bytes()
    assert len({text for row in rows_of(whole) for text in row.raw}) > 5


def test_seeds_and_numbers_of_answers(folder, sft, tmp_path):
    """The k-th answer is the same however many there are; another seed gives others; answers of a row differ."""
    one = rows_of(run(sft, tmp_path / "one", folder, prediction(temperature=1.0)))
    three = rows_of(run(sft, tmp_path / "three", folder, prediction(temperature=1.0, num_outputs=3)))
    other = rows_of(run(sft, tmp_path / "other", folder, prediction(temperature=1.0, seed=1)))
    assert [row.raw[0] for row in one] == [row.raw[0] for row in three]
    assert all(len(set(row.raw)) == 3 for row in three)
    assert not {row.raw[0] for row in one} & {row.raw[0] for row in other}


def test_sliding_windows_and_prompts_that_answers_share(sft, tmp_path):
    """Padding, the shared part of prompts and layers that see the last eight tokens only go together."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = tiny_tokenizer()
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
    layers = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tokenizer), **sizes, **heads, **layers))
    for value in model.parameters():
        value.data *= 6 if value.ndim == 2 else 1
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    found = {
        (outputs, size): rows_of(
            run(
                *(sft, tmp_path / f"{outputs}-{size}", tmp_path / "lm"),
                prediction(temperature=1.0, num_outputs=outputs, batch_size=size),
            )
        )
        for outputs in (1, 3)
        for size in (1, 16)
    }
    assert found[1, 1] == found[1, 16] and found[3, 1] == found[3, 16]
    assert [row.raw[0] for row in found[3, 16]] == [row.raw[0] for row in found[1, 1]]
    assert len({row.raw[0] for row in found[1, 1]}) == len(LENGTHS)


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -torch.inf, 1.5])


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 4, 1.0), (1.0, 0, 0.75), (0.8, 5, 0.9)]
)
def test_draws_have_the_distribution_of_the_warped_logits(temperature, top_k, top_p):
    decoding = Decoding(1, temperature, top_p, top_k, 4, (99,), None)
    requests = [Request(str(index), (0,), seed_of(7, str(index))) for index in range(2500)]
    chooser = NextToken(requests, 1, decoding, None)
    scores = chooser(torch.zeros(10_000, 1, dtype=torch.long), LOGITS.expand(10_000, -1))
    counts = np.bincount(scores.argmax(1).numpy(), minlength=len(LOGITS))
    expected = warped(LOGITS.double().numpy(), temperature, top_k, top_p)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] * 10_000).pvalue > 0.001


def warped(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities after temperature, the k most likely, and the fewest of them that hold `top_p` of the mass."""
    weights = np.exp(logits / temperature)
    order = np.argsort(-weights)
    if top_k:
        weights[order[top_k:]] = 0
    share = np.cumsum(weights[order]) / weights.sum()
    weights[order[1:][share[:-1] >= top_p]] = 0
    return weights / weights.sum()


def test_successive_draws_of_a_row_are_independent():
    decoding = Decoding(2, 1.0, 1.0, 0, 1, (99,), None)
    chooser = NextToken([Request(str(i), (0,), seed_of(3, str(i))) for i in range(6000)], 1, decoding, None)
    flat, ids = torch.zeros(6000, 3), torch.zeros(6000, 1, dtype=torch.long)
    first, second = (chooser(ids, flat).argmax(1).numpy() for _ in range(2))
    pairs = Counter(zip(first.tolist(), second.tolist(), strict=True))
    assert chisquare([pairs[i, j] for i in range(3) for j in range(3)]).pvalue > 0.001


def test_the_checkpoints_decoding_defaults_do_not_count(folder, sft, tmp_path):
    plain = run(sft, tmp_path / "plain", folder, prediction())
    biased = tmp_path / "biased"
    shutil.copytree(folder, biased)
    first = rows_of(plain)[0].raw[0]
    common = load_tokenizer(folder, language_model(folder))(first)["input_ids"]
    (biased / "generation_config.json").write_text(
        json.dumps(
            {
                **{"do_sample": True, "temperature": 1.7, "top_p": 0.5, "top_k": 3, "repetition_penalty": 5.0},
                **{"no_repeat_ngram_size": 1, "suppress_tokens": common, "min_new_tokens": 12, "num_beams": 3},
                **{"max_length": 5, "begin_suppress_tokens": common, "renormalize_logits": True},
            }
        )
    )
    assert run(sft, tmp_path / "again", biased, prediction()).read_bytes() == plain.read_bytes()


def test_every_end_token_ends_an_answer(folder, tmp_path):
    copied = tmp_path / "lm"
    shutil.copytree(folder, copied)
    cfg = language_model(copied)
    tokenizer = load_tokenizer(copied, cfg)
    tokenizer.eos_token = "<|endoftext|>"
    named = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|eot_id|>"])
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [named[1], named[2]]}))
    assert end_tokens(copied, tokenizer) == tuple(named), "of the template, of the tokenizer, of the checkpoint"
    decoding = Decoding(300, 1.0, 1.0, 0, 8, tuple(named), None)
    asked = [[Request(str(i), tuple(tokenizer(WORDS)["input_ids"]), i) for i in range(4)]]
    (made,) = answers(asked, load_for_answers(copied, None, cfg, CPU), tokenizer, decoding)
    seen = Counter()
    for answer in made:
        for text, raw, finish, count in zip(answer.texts, answer.raw, answer.finish, answer.output_tokens, strict=True):
            last = next((end for end in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>") if raw.endswith(end)), None)
            assert (last is not None) == (finish == "stop") and (finish == "stop" or count == 300)
            assert raw.count("<|im_end|>") + raw.count("<|endoftext|>") + raw.count("<|eot_id|>") == (last is not None)
            assert "<|" not in text and text == text.strip()
            seen[last] += 1
    assert all(seen[end] for end in ("<|im_end|>", "<|endoftext|>", "<|eot_id|>"))


def test_where_an_answer_ends():
    assert cut_at_end([5, 6, 9, 0, 0], (9, 8)) == ([5, 6, 9], "stop")
    assert cut_at_end([9], (9,)) == ([9], "stop")
    assert cut_at_end([5, 6], (9,)) == ([5, 6], "length")
    tokenizer = tiny_tokenizer()
    end = tokenizer.eos_token_id
    answer = answer_of(tokenizer, [[*tokenizer(" fox ")["input_ids"], end, 0], [end]], [end])
    assert answer.texts == ("fox", "") and answer.raw == (" fox <|im_end|>", "<|im_end|>")
    assert answer.finish == ("stop", "stop") and answer.output_tokens[1] == 1


def test_rows_that_cannot_be_answered_are_rejected_with_their_reason(folder, tmp_path):
    part = [{"type": "audio", "path": "a.wav"}]
    rows = [
        *sft_rows()[:2],
        SftRow(id="long", task="t", messages=[Message(role="user", content="x " * 1012)], target=None),
        SftRow(id="sound", task="t", messages=[Message(role="user", content=part)], target=None),
        SftRow(id="answered", task="t", messages=[Message(role="assistant", content="a")], target=None),
        sft_rows()[2],
    ]
    file = write_sft(tmp_path / "test.jsonl", rows)
    found = run(file, tmp_path, folder, prediction(max_rejected=0.6))
    assert [row.id for row in rows_of(found)] == ["row0", "row1", "row2"]
    said = reasons(found)
    assert list(said) == ["long", "sound", "answered"]
    assert said["long"].startswith("too long: ") and "more than 1012" in said["long"]
    assert said["sound"].startswith("not text: ")
    lost = list(read_records(found.with_suffix(".rejected.jsonl"), RejectedRow))
    assert lost[0].where == f"{file}, line 3"
    meta = json.loads(found.with_suffix(".meta.json").read_text())
    assert meta["rows"] == {"in": 6, "out": 3, "rejected": 3}
    with pytest.raises(UserError, match="3 of 6 rows were rejected"):
        run(file, tmp_path, folder, prediction(max_rejected=0.4))


def test_a_prompt_that_just_fits_is_answered(folder, tmp_path):
    tokenizer = load_tokenizer(folder, language_model(folder))
    row = SftRow(id="a", task="t", messages=[Message(role="user", content="x")], target=None)
    room = 1024 - len(encode_prompt(tokenizer, row.messages)) - 12
    fitting = row.model_copy(update={"messages": [Message(role="user", content="x" * (room + 1))]})
    over = row.model_copy(update={"id": "b", "messages": [Message(role="user", content="x" * (room + 2))]})
    found = run(write_sft(tmp_path / "t.jsonl", [fitting, over]), tmp_path, folder, prediction(max_rejected=1))
    assert [(row.id, row.prompt_tokens) for row in rows_of(found)] == [("a", 1012)]
    assert list(reasons(found)) == ["b"]


def test_the_side_file_counts_tokens_and_answers_that_were_cut_off(folder, sft, tmp_path):
    found = run(sft, tmp_path, folder, prediction(temperature=1.0, num_outputs=2, max_new_tokens=60), shards=2)
    rows, meta = rows_of(found), json.loads(found.with_suffix(".meta.json").read_text())
    assert meta["prompt_tokens"] == sum(row.prompt_tokens for row in rows)
    assert meta["output_tokens"] == sum(sum(row.output_tokens) for row in rows)
    assert meta["answers"] == 22 and meta["invalid_json"] == 0
    assert 0 < meta["cut_off"] == sum(row.finish.count("length") for row in rows) < 22
    part = json.loads((tmp_path / "0-of-2.meta.json").read_text())
    assert part["output_tokens_per_second"] > 0 and part["device"] == "cpu" and part["dtype"] == "float32"
    assert part["backend"]["name"] == "transformers" and part["backend"]["peft"]
    assert len(part["model_digest"]) == 64 and part["adapter"] is None


def test_answers_that_do_not_follow_the_schema_are_counted_and_kept(folder, sft, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["first", "second"]}, "minItems": 1, "maxItems": 40}')
    cfg = prediction(temperature=1.0, json_schema=str(schema), max_new_tokens=60, num_outputs=4)
    found = run(sft, tmp_path, folder, cfg)
    rows, meta = rows_of(found), json.loads(found.with_suffix(".meta.json").read_text())
    assert len(rows) == len(LENGTHS)
    values = [value for row in rows for value in row.parsed or []]
    assert 0 < values.count(None) < len(values) and values.count(None) == meta["invalid_json"]
    for row in rows:
        ended = [finish == "stop" for finish in row.finish]
        assert row.parsed == [json.loads(text) if end else None for text, end in zip(row.outputs, ended, strict=True)]
    schema.write_text('{"enum": ["first", "second"]}')
    again = run(sft, tmp_path, folder, cfg)
    assert {row.outputs[0] for row in rows_of(again)} <= {'"first"', '"second"'}, "the schema's text counts"


def save_adapter(folder: Path, to: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    from utterflow.models.text import load_model

    torch.manual_seed(5)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(folder, language_model(folder), CPU), lora)
    adapted.save_pretrained(to / "adapter")
    tokenizer = load_tokenizer(folder, language_model(folder))
    adapted.merge_and_unload().save_pretrained(to / "merged")
    tokenizer.save_pretrained(to / "merged")
    return to


def test_an_adapter_answers_as_the_merged_model(folder, sft, tmp_path):
    trained = save_adapter(folder, tmp_path)
    state = tmp_path / "state"
    base = rows_of(run(sft, tmp_path / "base", folder, prediction(), state=state))
    adapted = rows_of(run(sft, tmp_path / "a", folder, prediction(), adapter=trained / "adapter", state=state))
    merged = rows_of(run(sft, tmp_path / "b", trained / "merged", prediction(), state=state))
    assert adapted == merged
    assert all(left.raw != right.raw for left, right in zip(base, adapted, strict=True))
    weights = trained / "adapter/adapter_model.safetensors"
    save_file({name: -value for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    other = rows_of(run(sft, tmp_path / "c", folder, prediction(), adapter=trained / "adapter", state=state))
    assert other == adapted, "(-B)(-A) is BA: read anew, and the same"
    meta = json.loads((tmp_path / "c/0-of-1.meta.json").read_text())
    assert meta["rows"]["from_journal"] == 0 and meta["adapter"] == str(trained / "adapter")


def test_an_adapter_without_weights_or_of_another_model(folder, sft, tmp_path):
    trained = save_adapter(folder, tmp_path)
    wider = save_tiny_lm(tmp_path / "wider", hidden_size=64)
    with pytest.raises(UserError, match="the adapter does not fit the model"):
        run(sft, tmp_path, wider, prediction(), adapter=trained / "adapter")
    (trained / "adapter/adapter_model.safetensors").rename(trained / "adapter/adapter_model.bin")
    with pytest.raises(UserError, match=r"lacks adapter_model\.safetensors"):
        run(sft, tmp_path, folder, prediction(), adapter=trained / "adapter")


def test_values_that_are_no_numbers_reject_their_row_alone(folder, sft, tmp_path):
    """A token whose embedding is broken stands in one prompt only; the row is in a batch with good ones."""
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tokenizer = load_tokenizer(folder, language_model(folder))
    (token,) = tokenizer("~")["input_ids"]
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    rows = sft_rows()
    rows[4] = rows[4].model_copy(update={"messages": [Message(role="user", content="the fox ~")]})
    file = write_sft(tmp_path / "test.jsonl", rows)
    found = run(file, tmp_path / "out", broken, prediction(batch_size=16, max_rejected=0.1))
    assert list(reasons(found)) == ["row4"] and "not numbers" in reasons(found)["row4"]
    plain = {row.id: row for row in rows_of(run(sft, tmp_path / "plain", folder, prediction()))}
    assert rows_of(found) == [plain[row.id] for row in rows if row.id != "row4"]
    again = run(file, tmp_path / "out", broken, prediction(batch_size=16, max_rejected=0.1))
    assert reasons(again) == reasons(found)
    assert json.loads((tmp_path / "out/0-of-1.meta.json").read_text())["rows"]["from_journal"] == 11


def test_too_little_memory_names_the_key(folder, sft, tmp_path, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers_backend, "_answer_batch", full)
    with pytest.raises(UserError, match="lower `batch_size`"):
        run(sft, tmp_path, folder, prediction())


def count_loads(monkeypatch) -> list[Path]:
    loaded: list[Path] = []
    true = transformers_backend.load_for_answers
    monkeypatch.setattr(transformers_backend, "load_for_answers", lambda *args: loaded.append(args[0]) or true(*args))
    return loaded


def test_the_journal_answers_what_was_asked_before(folder, sft, tmp_path, monkeypatch):
    state = tmp_path / "state"
    first = run(sft, tmp_path / "first", folder, prediction(temperature=1.0), state=state)
    loaded = count_loads(monkeypatch)
    again = run(
        *(sft, tmp_path / "again", folder),
        prediction(temperature=1.0, batch_size=2, dataset="other", max_rejected=0.5, threads=2),
        shards=2,
        state=state,
    )
    assert again.read_bytes() == first.read_bytes() and loaded == []
    more = [*sft_rows(), SftRow(id="new", task="t", messages=[Message(role="user", content="x")], target=None)]
    file = write_sft(tmp_path / "more.jsonl", more)
    run(file, tmp_path / "more", folder, prediction(temperature=1.0), state=state)
    assert len(loaded) == 1
    assert json.loads((tmp_path / "more/0-of-1.meta.json").read_text())["rows"]["from_journal"] == len(LENGTHS)


@pytest.mark.parametrize(
    "keys",
    [{"temperature": 0.9}, {"seed": 1}, {"max_new_tokens": 13}, {"top_k": 5}, {"top_p": 0.5}, {"num_outputs": 2}],
    ids=str,
)
def test_keys_that_change_answers_are_asked_anew(keys, folder, sft, tmp_path):
    state = tmp_path / "state"
    run(sft, tmp_path / "first", folder, prediction(temperature=1.0), state=state)
    run(sft, tmp_path / "second", folder, prediction(**{"temperature": 1.0, **keys}), state=state)
    meta = json.loads((tmp_path / "second/0-of-1.meta.json").read_text())
    assert meta["rows"]["from_journal"] == 0


def test_model_keys_that_change_answers_are_asked_anew(folder, sft, tmp_path):
    state, template = tmp_path / "state", tmp_path / "t.jinja"
    template.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    run(sft, tmp_path / "first", folder, prediction(), state=state)
    for place, keys in enumerate([{"dtype": "bfloat16"}, {"attention": "eager"}, {"chat_template": str(template)}]):
        out = tmp_path / str(place)
        run(sft, out, folder, prediction(), state=state, model_cfg=language_model(folder, **keys))
        assert json.loads((out / "0-of-1.meta.json").read_text())["rows"]["from_journal"] == 0, keys


def test_names_left_out_of_the_journals_digest_are_keys():
    assert set(Prediction.model_fields) > NOT_IN_RESULT and set(LanguageModel.model_fields) > NOT_IN_MODEL


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.test_generate import prediction, run
from utterflow.llm import transformers_backend as backend
true = backend._answer_batch
def slow(*args):
    time.sleep(0.3)
    return true(*args)
backend._answer_batch = slow
run(Path({sft!r}), Path({out!r}), Path({model!r}), prediction(temperature=1.0, num_outputs=2, batch_size=2))
"""


def test_killed_in_the_middle_it_resumes_with_the_same_bytes(folder, sft, tmp_path, monkeypatch):
    cfg = prediction(temperature=1.0, num_outputs=2, batch_size=2)
    undisturbed = run(sft, tmp_path / "undisturbed", folder, cfg)
    out = tmp_path / "killed"
    tests = str(Path(__file__).parents[1])
    program = KILLED.format(tests=tests, sft=str(sft), out=str(out), model=str(folder))
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and sum(path.stat().st_size for path in out.glob("state/*/*/*.jsonl")) == 0:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "predictions.jsonl").exists()
    computed: list[int] = []
    true = transformers_backend._answer_batch
    monkeypatch.setattr(
        transformers_backend, "_answer_batch", lambda *args: computed.append(len(args[0])) or true(*args)
    )
    resumed = run(sft, out, folder, cfg)
    assert 0 < sum(computed) < len(LENGTHS)
    assert resumed.read_bytes() == undisturbed.read_bytes()


def test_bad_rows_of_the_dataset_name_their_line(folder, tmp_path):
    file = tmp_path / "test.jsonl"
    file.write_text(json.dumps(sft_rows()[0].row()) + '\n{"id": "x"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl, line 2"):
        run(file, tmp_path, folder, prediction())


def test_models_of_other_kinds_are_refused_plainly(folder, sft, tmp_path):
    with pytest.raises(UserError, match="kind audio"):
        run(sft, tmp_path, folder, prediction(), model_cfg=language_model(folder, kind="audio"))


def test_batches_are_formed_of_prompts_of_like_length(folder, sft):
    tokenizer = load_tokenizer(folder, language_model(folder))
    items = stage.read_items(sft, Shard(0, 1), tokenizer, None)
    sizes = [[len(item.prompt) for item in batch] for batch in stage.make_batches(items, 4)]
    assert [len(batch) for batch in sizes] == [4, 4, 3]
    flat = [size for batch in sizes for size in batch]
    assert flat == sorted(flat, reverse=True)


def test_the_context_of_a_model(tmp_path):
    for config, expected in (
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 32}, 32),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
        ({}, None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert context_length(tmp_path) == expected


def test_an_answer_longer_than_the_context_is_a_fault_of_the_configuration(folder, sft, tmp_path):
    with pytest.raises(UserError, match="max_new_tokens 1024 leaves no room"):
        run(sft, tmp_path, folder, prediction(max_new_tokens=1024))


def config_of(folder: Path) -> Config:
    parts = [{"dataset": "d"}]
    predictions = {
        "plain": {"model": "m"},
        "tuned": {"training": "lora", "json_schema": "s.json"},
        "merged": {"training": "lora", "merged": True},
        "full": {"training": "full"},
    }
    return Config.model_validate(
        {
            "name": "t",
            "models": {"m": {"model": f"{folder}/", "chat_template": "t.jinja"}},
            "datasets": {
                "d": {"builder": "corrector", **{split: [{"lists": "l.jsonl"}] for split in ("train", "test")}}
            },
            "trainings": {
                "lora": {"model": "m", "train": parts},
                "full": {"model": "m", "train": parts, "adapter": {"kind": "none"}},
            },
            "predictions": {name: {"dataset": "d", **keys} for name, keys in predictions.items()},
            "corrections": {"c": {"prediction": "plain"}},
            "scoring": {"s": {}},
            "runs": [{"corrections": ["c"], "scoring": ["s"]}],
        }
    )


def test_inputs_and_sources_of_each_kind_of_prediction(folder):
    config = config_of(folder)
    weights = str(folder / "model.safetensors")
    for name, trained, base, sources in (
        ("plain", [], True, Sources(folder, None)),
        ("tuned", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json"], True, "lora/adapter"),
        ("merged", ["merged/model.safetensors", "merged/config.json"], False, "lora/merged"),
        ("full", ["model/model.safetensors", "model/config.json"], False, "full/model"),
    ):
        cfg = config.predictions[name]
        files = trained_files(config, cfg)
        assert files == [f"results/finetune/{cfg.training}/{file}" for file in trained]
        assert (weights in pretrained_files(config, cfg)) == base
        found = sources_of(answering_model(config, cfg), [Path(file) for file in files])
        place = Path(f"results/finetune/{sources}")
        if name == "tuned":
            assert found == Sources(folder, place)
        else:
            assert found == (sources if isinstance(sources, Sources) else Sources(place, None))
        assert text_files(config, cfg) == (["t.jinja", "s.json"] if name == "tuned" else ["t.jinja"])
