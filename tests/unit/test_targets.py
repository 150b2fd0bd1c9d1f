"""Which files a configuration asks for: each once, and none that no run needs."""

from __future__ import annotations

from typing import Any

from utterflow import targets
from utterflow.config.load import load_config
from utterflow.config.models import Config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = {"path": "data/texts.jsonl"}
LEXICON = {"tokens": "given/tokens.txt", "lexicon": "given/lexicon.txt"}
RAW: dict[str, Any] = {
    "name": "targets",
    "downloads": {
        "data/texts.jsonl": {"url": "https://example.org/texts.jsonl"},
        "data/audio.tar": {"url": "https://example.org/audio.tar", "unpack_to": "data/audio"},
    },
    "corpora": {
        name: {"adapter": "manifest", "path": f"given/{name}.tsv"} for name in ("spoken", "trained_on", "unused")
    },
    "asr": {
        "hub": {"model": "org/whisper", "revision": COMMIT},
        "local": {"model": "./models/whisper"},
    },
    "recordings": {"simulated": {"source": "simulated", "train": TEXT, "val": TEXT, "test": TEXT, **LEXICON}},
    "encoders": {"phones": {"recordings": "simulated", "tokens": "given/tokens.txt"}},
    "logits": {"phones": {"source": "encoder", "encoder": "phones"}},
    "ngrams": {"commands": {"texts": ["given/sentences.txt", "data/texts.jsonl"]}},
    "beams": {"phones": {"logits": "phones", "ngram": "commands", **LEXICON}},
    "models": {
        "small": {"model": "org/small", "revision": COMMIT},
        "counted": {"model": "./models/counted", "chat_template": "given/chat.jinja"},
        "unused": {"model": "org/unused", "revision": COMMIT},
    },
    "datasets": {
        "decoded": {
            "builder": "corrector",
            "train": [{"beams": "phones", "partition": "train"}, {"lists": "given/lists.jsonl"}],
            "validation": [{"beams": "phones", "partition": "val"}],
            "test": [{"beams": "phones", "partition": "test"}],
            "tokenizer": "counted",
            "max_prompt_tokens": 100,
        },
        "heard": {
            "builder": "corrector",
            "train": [{"corpus": "trained_on", "asr": "local"}],
            "test": [{"corpus": "spoken", "asr": "local"}],
        },
    },
    "trainings": {
        "merged": {
            "model": "small",
            "train": [{"dataset": "decoded"}],
            "validation": [{"dataset": "decoded", "split": "validation"}],
            "merge": True,
        },
        "plain": {"model": "small", "train": [{"dataset": "heard"}]},
    },
    "predictions": {
        "decoded": {"dataset": "decoded", "training": "merged"},
        "heard": {"dataset": "heard", "training": "plain"},
        "untrained": {"dataset": "heard", "model": "small"},
    },
    "corrections": {name: {"prediction": name} for name in ("decoded", "heard", "untrained")},
    "scoring": {"main": {}, "strict": {"normalizer": "none"}},
    "runs": [
        {"corpora": ["spoken"], "asr": ["hub", "local"], "scoring": ["main"]},
        {"corpora": ["spoken"], "asr": ["hub"], "corrections": ["decoded", "heard"], "scoring": ["main", "strict"]},
    ],
}


def config(runs: list[dict[str, Any]] | None = None, **sections: Any) -> Config:
    return load_config({**RAW, **sections, "runs": RAW["runs"] if runs is None else runs})


def corrections(*names: str) -> list[dict[str, Any]]:
    return [{"corrections": list(names), "scoring": ["main"]}]


def test_what_several_runs_ask_for_is_made_once() -> None:
    asked = config()
    assert targets.asr_runs(asked) == [
        ("spoken", "hub", "main"), ("spoken", "local", "main"), ("spoken", "hub", "strict"),
    ]  # fmt: skip
    assert targets.nbest_lists(asked) == [f"results/asr/spoken/{asr}/nbest.jsonl" for asr in ("hub", "local")]
    assert targets.stages(asked)["corpora"][0] == "results/corpora/spoken/manifest.jsonl"
    assert targets.all_scores(asked) == [
        *(f"results/evaluate/spoken/{name}.json" for name in ("hub/main", "local/main", "hub/strict")),
        *(
            f"results/corrections/{name}.json"
            for name in ("decoded/main", "decoded/strict", "heard/main", "heard/strict")
        ),
    ]


def test_a_correction_brings_its_prediction_training_data_sets_and_models() -> None:
    asked = config(corrections("decoded"))
    assert targets.prediction_files(asked) == ["results/generate/decoded/predictions.jsonl"]
    assert targets.training_metrics(asked) == ["results/finetune/merged/metrics.json"]
    assert targets.merged_models(asked) == ["results/finetune/merged/merged/model.safetensors"]
    assert set(targets.used_datasets(asked)) == {("decoded", split) for split in ("train", "validation", "test")}
    assert set(targets.used_models(asked)) == {"small", "counted"}
    assert set(targets.beam_lists(asked)) == {
        f"results/beams/phones/{partition}/beams.jsonl" for partition in ("train", "val", "test")
    }
    assert targets.asr_scores(asked) == targets.stages(asked)["asr"] == []


def test_a_correction_by_a_model_as_it_is_needs_no_training() -> None:
    asked = config(corrections("untrained"))
    assert targets.trainings(asked) == targets.merged_models(asked) == targets.beam_lists(asked) == []
    assert targets.used_datasets(asked) == [("heard", "test")] and targets.used_models(asked) == ["small"]


def test_stages_are_made_of_these_files() -> None:
    asked = config()
    stages = targets.stages(asked)
    assert stages["evaluate"] == targets.all_scores(asked)
    lists = targets.used_lists(asked)
    assert stages["asr"] == [f"results/asr/{corpus}/{asr}/nbest.jsonl" for corpus, asr in lists]
    assert set(stages["corpora"]) == {f"results/corpora/{corpus}/manifest.jsonl" for corpus, _ in lists}
    assert stages["trainings"] == [f"results/finetune/{name}/metrics.json" for name in ("merged", "plain")]


def test_what_the_network_brings() -> None:
    fetched = targets.fetched_files(config())
    assert fetched[:3] == ["data/texts.jsonl", "data/audio.tar", "data/audio.tar.contents.tsv"]
    assert fetched[-1] == targets.KENLM_LISTING
    models = fetched[3:-1]
    assert len(models) == 2 and ["whisper" in models[0], "small" in models[1]] == [True, True]
    assert all(COMMIT in path for path in models)
    own_programs = targets.fetched_files(config(tools={"kenlm_bin": "given/kenlm"}))
    assert own_programs == fetched[:-1]
    assert targets.KENLM_LISTING not in targets.fetched_files(config(ngrams={"commands": {"file": "given/lm.arpa"}}))


def test_files_that_the_user_gives_come_with_the_key_that_names_them() -> None:
    given = targets.given_files(config())
    assert given["given/lists.jsonl"] == "datasets.decoded.train.1.lists"
    assert given["given/sentences.txt"] == "ngrams.commands.texts"
    assert given["given/chat.jinja"] == "models.counted.chat_template"
    assert given["given/lexicon.txt"] in ("recordings.simulated.lexicon", "beams.phones.lexicon")
    assert "data/texts.jsonl" not in given and not any(path.endswith(".tsv") for path in given)
    programs = targets.given_files(config(tools={"kenlm_bin": "given/kenlm"}))
    assert {path for path in programs if path not in given} == {"given/kenlm/lmplz", "given/kenlm/build_binary"}
