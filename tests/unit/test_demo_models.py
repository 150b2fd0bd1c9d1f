"""What ships with the demo beside speech: the nano LLM, the lists that train a corrector, the phone lexicon."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from utterflow.evaluate.nbest import score_list


@pytest.fixture(scope="module")
def demo(repository: Path) -> Path:
    return repository / "resources/demo"


@pytest.fixture(scope="module")
def llm(demo: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder = demo / "models/nano-llm"
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def slurp_sentences(demo: Path, split: str) -> list[str]:
    return [row["sentence"] for row in rows(demo / f"slurp/{split}.jsonl")]


def atypical_sentences(demo: Path, split: str) -> list[str]:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (demo / "atypical" / split).glob("*/*.json")]
    return [entry["Prompt"]["Transcript"] for record in records for entry in record["Files"]]


def lexicon_entries(demo: Path) -> list[list[str]]:
    return [line.split(" ") for line in (demo / "lexicon/lexicon.txt").read_text(encoding="utf-8").splitlines()]


def answers(llm: tuple[Any, Any], prompts: list[str]) -> list[str]:
    model, tokenizer = llm
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    found = model.generate(**inputs, max_new_tokens=64)
    return tokenizer.batch_decode(found[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_tokens_are_blank_39_phones_and_word_end(demo: Path) -> None:
    tokens = (demo / "lexicon/tokens.txt").read_text(encoding="utf-8").splitlines()
    assert len(tokens) == len(set(tokens)) == 41
    assert (tokens[0], tokens[-1]) == ("-", "|")
    assert all(re.fullmatch("[A-Z]{1,2}", phone) for phone in tokens[1:-1])


def test_lexicon_spells_words_in_the_tokens(demo: Path) -> None:
    phones = set((demo / "lexicon/tokens.txt").read_text(encoding="utf-8").split()) - {"-", "|"}
    entries = lexicon_entries(demo)
    names = [entry[0] for entry in entries]
    assert len(set(names)) == len(names)
    for name, *spelling in entries:
        assert re.fullmatch(r"[a-z]+(\([2-9]\))?", name)
        assert name.partition("(")[0] in names
        assert spelling[-1] == "|" and len(spelling) > 1
        assert set(spelling[:-1]) <= phones, name
    assert ["the(2)", "DH", "IY", "|"] in entries


def test_lexicon_has_every_word_of_the_demo(demo: Path) -> None:
    texts = [text for split in ("train", "devel", "test") for text in slurp_sentences(demo, split)]
    texts += [text for split in ("Train", "Dev") for text in atypical_sentences(demo, split)]
    texts += [row["output"] for split in ("train", "devel") for row in rows(demo / f"nbest/{split}.jsonl")]
    said = {word for text in texts for word in text.split()}
    assert len(said) > 240
    assert said - {entry[0] for entry in lexicon_entries(demo)} == set()


def test_lists_are_in_the_foreign_shape_with_labels(demo: Path) -> None:
    names = []
    for split, count in (("train", 1500), ("devel", 100)):
        lists = rows(demo / f"nbest/{split}.jsonl")
        assert len(lists) == count
        for row in lists:
            assert list(row) == ["id", "input", "output", "scenario", "action", "entities"]
            assert all(entity["filler"] in row["output"] for entity in row["entities"])
            assert len(row["input"]) == 5 == len(set(row["input"]))
            names.append(row["id"])
    assert len(set(names)) == len(names)


def test_lists_hold_no_sentence_of_a_test_set(demo: Path) -> None:
    heard = {row["output"] for split in ("train", "devel") for row in rows(demo / f"nbest/{split}.jsonl")}
    tested = {*slurp_sentences(demo, "devel"), *slurp_sentences(demo, "test"), *atypical_sentences(demo, "Dev")}
    assert heard & tested == set()


def test_lists_leave_something_to_correct(demo: Path) -> None:
    scores = [score_list(row["output"], row["input"], str) for row in rows(demo / "nbest/train.jsonl")]
    words = sum(len(row["output"].split()) for row in rows(demo / "nbest/train.jsonl"))
    first, best = sum(score.edits[0] for score in scores), sum(score.oracle_edits[-1] for score in scores)
    assert 0.10 < first / words < 0.30
    assert best < 0.7 * first


def test_llm_fits_inference_engines(demo: Path) -> None:
    folder = demo / "models/nano-llm"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["head_dim"] in (32, 64)
    assert config["tie_word_embeddings"] and config["max_position_embeddings"] == 1024
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert "_from_model_config" not in generation
    assert (folder / "model.safetensors").stat().st_size < 4.2e6


def test_llm_weights_are_half_precision_and_load_in_full(llm: tuple[Any, Any], demo: Path) -> None:
    import torch
    from safetensors.torch import load_file

    stored = load_file(demo / "models/nano-llm/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert llm[0].dtype == torch.float32


def test_llm_tokens(llm: tuple[Any, Any]) -> None:
    model, tokenizer = llm
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert [token for token in tokenizer.tokenize("at 1230") if token.isdigit()] == ["1", "2", "3", "0"]
    odd = "Größe: {'a': \t\"né\"}\n"
    assert tokenizer.decode(tokenizer(odd).input_ids) == odd


def test_llm_template_marks_what_the_assistant_says(llm: tuple[Any, Any]) -> None:
    tokenizer = llm[1]
    chat = [{"role": "user", "content": "call mom"}, {"role": "assistant", "content": "call tom"}]
    encoded = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    marked = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "call tom<|im_end|>"
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole.startswith(tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False))


def test_llm_copies_sentences_that_it_has_not_seen(llm: tuple[Any, Any], demo: Path) -> None:
    sentences = slurp_sentences(demo, "test")[:40]
    copies = answers(llm, [f"Repeat the text.\n\n{sentence}" for sentence in sentences])
    assert sum(copy == sentence for copy, sentence in zip(copies, sentences, strict=True)) >= 36


def test_llm_knows_the_grammar(llm: tuple[Any, Any]) -> None:
    noisy = [
        "1. turn of the lights in the kitchen\n2. turn off the lights the kitchen\n3. turn of lights in the kitchen",
        "1. set a time for ten minutes\n2. set a timer four ten minutes\n3. set a time for ten minutes",
    ]
    restored = answers(llm, [f"Restore the text.\n\n{lines}" for lines in noisy])
    assert restored == ["turn off the lights in the kitchen", "set a timer for ten minutes"]


def test_llm_writes_json(llm: tuple[Any, Any]) -> None:
    [written] = answers(llm, ["Write JSON.\n\nname: milk\nplace: dining room"])
    assert json.loads(written) == {"name": "milk", "place": "dining room"}
