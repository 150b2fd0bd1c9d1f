"""Answers that follow a JSON schema: the file, the grammar, the check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_lm import save_tiny_lm

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.llm import transformers_backend
from utterflow.llm.requests import Answer, Decoding, Request
from utterflow.llm.structured import grammar_of, json_value, read_schema
from utterflow.models.text import load_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "choice": {"enum": ["first", "second"]},
        "ranks": {"type": "array", "items": {"$ref": "#/$defs/rank"}, "minItems": 1, "maxItems": 3},
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["choice", "ranks", "note"],
    "additionalProperties": False,
    "$defs": {"rank": {"type": "integer", "minimum": 0, "maximum": 99}},
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    torch.set_num_threads(1)
    folder = save_tiny_lm(tmp_path_factory.mktemp("lm"))
    cfg = LanguageModel(model=f"{folder}/")
    model = transformers_backend.load_for_answers(folder, None, cfg, torch.device("cpu"))
    return model, load_tokenizer(folder, cfg)


def ask(lm, count: int, **keys) -> list[Answer]:
    model, tokenizer = lm
    settings = {"max_new_tokens": 80, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "num_outputs": 1, "schema": SCHEMA}
    decoding = Decoding(**{**settings, "end_tokens": (tokenizer.eos_token_id,), **keys})
    requests = [Request(str(i), tuple(tokenizer("the fox " * (i + 1))["input_ids"]), seed=i) for i in range(count)]
    return next(transformers_backend.answers([requests], model, tokenizer, decoding, "schema.json"))


def write(folder: Path, text: str) -> Path:
    path = folder / "schema.json"
    path.write_text(text)
    return path


def test_a_good_schema_is_read(tmp_path):
    assert read_schema(write(tmp_path, json.dumps(SCHEMA))) == SCHEMA


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON schema is an object"),
        ('{"properties": {"a": {"type": "strin"}}}', "at properties/a/type"),
        ('{"properties": {"a": {"$ref": "https://example.org/a.json"}}}', "at properties/a"),
        ('{"$ref": "#/$defs/absent"}', "leads nowhere"),
    ],
)
def test_a_bad_schema_says_what_and_where(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        read_schema(write(tmp_path, text))
    assert said in str(error.value) and "schema.json" in str(error.value)


def test_a_missing_schema(tmp_path):
    with pytest.raises(UserError, match="file not found"):
        read_schema(tmp_path / "absent.json")


def test_a_schema_that_cannot_be_followed_is_refused():
    with pytest.raises(UserError, match="cannot follow this JSON schema") as error:
        grammar_of({"type": "array", "uniqueItems": True}, "my.json")
    assert "my.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ('{"choice": "first", "ranks": [1, 2], "note": ""}', True),
        ('{"choice": "first", "ranks": [1, 2], "note": ', False),
        ('{"choice": "third", "ranks": [1], "note": ""}', False),
        ('{"choice": "first", "ranks": [100], "note": ""}', False),
        ("NaN", False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_values_are_checked_against_the_schema(text, valid):
    found = json_value(text, SCHEMA)
    assert found == (json.loads(text) if valid else None)


def test_sampled_answers_follow_the_schema_and_vary(lm):
    answers = ask(lm, 6, num_outputs=3)
    texts = [text for answer in answers for text in answer.texts]
    assert {finish for answer in answers for finish in answer.finish} == {"stop"}
    assert all(json_value(text, SCHEMA) is not None for text in texts)
    assert len(set(texts)) > 12
    for text in texts:
        assert text == json.dumps(json.loads(text), ensure_ascii=False) or "\\" in text, "written as json.dumps writes"


def test_greedy_answers_follow_the_schema(lm):
    for answer in ask(lm, 3, temperature=0.0):
        assert json_value(answer.texts[0], SCHEMA) is not None


def test_batches_do_not_change_structured_answers(lm):
    model, tokenizer = lm
    together = ask(lm, 4)
    decoding = Decoding(80, 1.0, 1.0, 0, 1, (tokenizer.eos_token_id,), SCHEMA)
    for index, expected in enumerate(together):
        request = Request(str(index), tuple(tokenizer("the fox " * (index + 1))["input_ids"]), seed=index)
        (alone,) = next(transformers_backend.answers([[request]], model, tokenizer, decoding))
        assert alone == expected


def test_an_answer_that_is_cut_off_has_no_value(lm):
    (answer,) = ask(lm, 1, max_new_tokens=5)
    assert answer.finish == ("length",) and answer.output_tokens == (5,)
    assert answer.texts[0].startswith("{") and json_value(answer.texts[0], SCHEMA) is None
