"""Entries about SLU that name each other and do not go together are refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import stubbed
from reruns import changed

from utterflow.config.load import load_config
from utterflow.errors import UserError

GOLD_MADE = {"rationale": "paid", "k": 1}
GOLD_FREE = {"rationale": "local", "k": 5}


def other(*changes: tuple[str, Any]) -> dict[str, Any]:
    config = stubbed.slu_config()
    for where, value in changes:
        config = changed(config, where, value)
    return config


def test_the_whole_configuration_is_valid():
    load_config(stubbed.slu_config())


IN_PROMPT = ("datasets/mixed/rationale_in_prompt", True)
SCORED_VALIDATION = ("predictions/mixed/split", "validation")
WRITTEN = [{"gold_text": "written.jsonl"}]
SLURP = {"adapter": "slurp", "annotations": "data/slurp/test.jsonl", "audio_dir": "audio"}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (other(("datasets/mixed/train/0/k", 3)), "rationales.paid has no list length 3"),
        (
            other(IN_PROMPT, ("datasets/mixed/test", [GOLD_MADE])),
            "rationales.paid were made with the gold labels in sight: they must not be in test-time prompts",
        ),
        (
            other(IN_PROMPT, ("predictions/mixed/split", "train")),
            "understandings.mixed: the prompts of mixed/train hold rationales.paid, which were made with the gold",
        ),
        (
            other(("rationales/paid/evidence", "audio"), ("rationales/paid/nbest_values", [1])),
            "rationales.paid: servers.paid takes no audio: it would answer from text alone",
        ),
        (other(("rationales/local/evidence", "audio")), "evidence audio needs a model of kind audio, models.lm is not"),
        (other(("datasets/spelt/audio", True)), "trainings.spelt: dataset spelt has recordings in its prompts"),
        (other(("trainings/spelt/adapter", {"projector": True})), "has no audio encoder or projector to train"),
        (other(("trainings/mixed/packing", True)), "trainings.mixed: only text is packed"),
        (other(("predictions/mixed/backend", "vllm")), "predictions.mixed: backend vllm answers text only"),
        (
            other(("corrections", {"wrong": {"prediction": "mixed"}})),
            "corrections.wrong: prediction mixed answers a dataset of builder slu, not corrector",
        ),
        (
            other(
                ("datasets/spelt/test", [{"gold_text": "train2.jsonl"}]),
                ("datasets/spelt/train", [{"gold_text": "./train2.jsonl"}]),
                ("understandings/spelt/bootstrap_samples", 0),
            ),
            "trainings.spelt: spelt/train holds rows of ./train2.jsonl, on which understandings.spelt is scored",
        ),
        (other(("rationales/paid/thinking", True)), "`thinking` and `gpus` are about local models"),
        (other(("rationales/paid/server", None)), "backend api needs `server`"),
        (other(("rationales/local/server", "paid")), "backend transformers needs `model`"),
        (other(("rationales/paid/nbest_values", [1, 1])), "different list lengths"),
        (
            other(("rationales/paid/evidence", "audio"), ("servers/paid/accepts", ["audio"])),
            "a recording has no list length",
        ),
        (other(("rationales/paid/asr", None)), "write `corpus` and `asr`, or `lists`"),
        (other(("datasets/spelt/lexicon", None)), "`lexicon` goes with input_format ipa or arp"),
        (other(("datasets/mixed/candidates", 0)), "a prompt needs `audio`, `candidates`, or both"),
        (other(("datasets/mixed/train/2/agreeing", True)), "`agreeing` is about rationales"),
        (
            other(("datasets/mixed/test", [{**GOLD_FREE, "agreeing": True}])),
            "would choose the test set by its gold labels",
        ),
        (
            other(("datasets/mixed/validation", [{**GOLD_FREE, "agreeing": True}]), SCORED_VALIDATION),
            "understandings.mixed: `agreeing` chooses the rows of mixed/validation by their gold labels",
        ),
        (
            other(("datasets/mixed/test", WRITTEN), ("datasets/mixed/labels", ["a.jsonl", "./written.jsonl"])),
            "datasets.mixed.labels: ./written.jsonl annotates the test set of datasets.mixed",
        ),
        (
            other(("corpora/more", SLURP), ("rationales/paid/labels", ["data/slurp/test.jsonl"])),
            "rationales.paid.labels: data/slurp/test.jsonl annotates the test set of datasets.mixed",
        ),
        (
            other(("datasets/mixed/test", WRITTEN)),
            "mixed/test has sentences as written and no recording; write `by: slurp_id`",
        ),
        (
            other(("datasets/mixed/test", WRITTEN), ("understandings/mixed/bootstrap_unit", "speaker")),
            "mixed/test has no speakers; write `bootstrap_unit: utterance`",
        ),
        (
            other(("rationales/local/backend", "vllm"), ("rationales/local/model", "ears")),
            "rationales.local: backend vllm answers text only",
        ),
        (other(("servers/paid/base_url_env", ["MY URL"])), "'MY URL' is no name of an environment variable"),
        (other(("servers/paid/extra", {"api_key": "hidden"})), "a key never stands in a configuration"),
        (other(("datasets/mixed/rationale_slu", False)), "sources with rationales give no row"),
        (other(("datasets/mixed/train/0/corpus", "more")), "a source is one of"),
        (other(("servers/paid/base_url", "https://me:secret@example.org")), "a key never stands in an address"),
        (other(("servers/paid/base_url", "example.org")), "write an address such as"),
        (other(("servers/paid/extra", {"temperature": 1})), "`temperature` is set by the workflow"),
        (other(("servers/paid/prices", None), ("servers/paid/budget", 1.0)), "`budget` needs `prices`"),
    ],
)
def test_what_does_not_fit(config: dict[str, Any], says: str):
    with pytest.raises(UserError) as error:
        load_config(config)
    assert says in str(error.value)


def test_gold_free_rationales_may_stand_in_test_prompts():
    load_config(other(IN_PROMPT, ("datasets/mixed/test", [GOLD_FREE])))


def test_a_secret_in_an_address_is_not_repeated():
    with pytest.raises(UserError) as error:
        load_config(other(("servers/paid/base_url", "https://me:secret@example.org")))
    assert "secret" not in str(error.value)


def test_a_key_in_the_place_of_its_variable_is_not_repeated():
    with pytest.raises(UserError) as error:
        load_config(other(("servers/paid/key_env", "sk-123-secret")))
    assert "key_env" in str(error.value) and "secret" not in str(error.value)
