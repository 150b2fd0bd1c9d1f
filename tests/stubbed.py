"""A copy of the workflow whose scripts only make their files, with configurations that use all of a pipeline.

What reruns depends on rules and configuration alone, so that the work itself can be left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import workspace

STUB = """
from pathlib import Path

for path in snakemake.output:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("{}")
"""
FILES = (
    "audio/r0.wav",
    "words.tsv",
    "words2.tsv",
    "trials/train.hdf5",
    "trials/train2.hdf5",
    "trials/val.hdf5",
    "trials/val2.hdf5",
    "trials/test.hdf5",
    "trials/test2.hdf5",
    "train.jsonl",
    "train2.jsonl",
    "sentences.txt",
    "sentences2.txt",
    "tokens.txt",
    "tokens2.txt",
    "lexicon.txt",
    "lexicon2.txt",
    "vocab.json",
    "vocab2.json",
    "given.arpa",
    "given2.arpa",
    "stored.npz",
    "stored2.npz",
    "stored.txt",
    "stored2.jsonl",
    "lists.jsonl",
    "lists2.jsonl",
    "kenlm/lmplz",
    "kenlm/build_binary",
    "kenlm2/lmplz",
    "kenlm2/build_binary",
    "prompt.txt",
    "prompts/system.txt",
    "prompts/one_stage.txt",
    "prompts/few_shot.json",
    "system.txt",
    "plain.jinja",
    "schema.json",
    *(
        f"{folder}/{name}"
        for folder in ("lm", "lm2", "ctc", "ctc2", "whisper")
        for name in ("config.json", "m.safetensors")
    ),
)


PARTITIONS = ("train", "val", "test")


def _beams(partition: str, *names: str) -> list[dict[str, str]]:
    return [{"beams": name, "partition": partition} for name in names]


def corrector_config() -> dict[str, Any]:
    """Every section of the corrector, every kind of source, and two entries where one must not touch the other."""
    text = {"path": "train.jsonl"}
    lexicon = {"tokens": "tokens.txt", "lexicon": "lexicon.txt"}
    return {
        "name": "stubbed",
        "tools": {"kenlm_bin": "kenlm"},
        "corpora": {
            name: {"adapter": "manifest", "path": "words.tsv", "audio_dir": "audio"} for name in ("spoken", "more")
        },
        "asr": {name: {"model": "./whisper"} for name in ("main", "more")},
        "recordings": {
            "trials": {
                "source": "hdf5",
                "train": ["trials/train.hdf5"],
                "val": ["trials/val.hdf5"],
                "test": ["trials/test.hdf5"],
            },
            "simulated": {"source": "simulated", "train": text, "val": text, "test": text, **lexicon},
        },
        "encoders": {
            "real": {"recordings": "trials", "tokens": "tokens.txt", "folds": 2, "chunk_size": 8},
            "toy": {"recordings": "simulated", "tokens": "tokens.txt"},
        },
        "logits": {
            "real": {"source": "encoder", "encoder": "real", "shards": 2},
            "toy": {"source": "encoder", "encoder": "toy"},
            "heard": {"source": "audio", **dict.fromkeys(PARTITIONS, "spoken"), "model": "./ctc"},
            "stored": {
                "source": "npz",
                **{part: {"logits": "stored.npz", "transcripts": "stored.txt"} for part in PARTITIONS},
            },
        },
        "ngrams": {"trained": {"texts": ["sentences.txt"]}, "given": {"file": "given.arpa"}},
        "beams": {
            "real": {"logits": "real", "ngram": "trained", **lexicon},
            "toy": {"logits": "toy", "ngram": "given", **lexicon},
            "heard": {"logits": "heard", "decoder": "characters", "tokens": "vocab.json", "ngram": "given"},
            "stored": {"logits": "stored", **lexicon},
        },
        "models": {"lm": {"model": "./lm"}, "other": {"model": "./lm2"}},
        "datasets": {
            "real": {
                "builder": "corrector",
                "train": [{"beams": "real", "partition": "train"}],
                "validation": [{"beams": "real", "partition": "val"}],
                "test": [{"beams": "real", "partition": "test"}, {"corpus": "spoken", "asr": "main"}],
                "tokenizer": "lm",
                "max_prompt_tokens": 100,
            },
            "small": {
                "builder": "corrector",
                "train": [{"lists": "lists.jsonl"}, *_beams("train", "toy", "heard", "stored")],
                "validation": [{"lists": "lists.jsonl"}, *_beams("val", "toy", "heard", "stored")],
                "test": [{"lists": "lists.jsonl"}, *_beams("test", "toy", "heard", "stored")],
            },
        },
        "trainings": {
            "real": {
                "model": "lm",
                "train": [{"dataset": "real"}],
                "validation": [{"dataset": "real", "split": "validation"}],
                "deepspeed": {"stage": 1},
            },
            "small": {
                "model": "other",
                "train": [{"dataset": "small"}],
                "validation": [{"dataset": "small", "split": "validation"}],
                "adapter": {"kind": "none"},
            },
            "quantized": {
                "model": "other",
                "train": [{"dataset": "small"}],
                "adapter": {"quantize": "int8"},
                "gpus": 1,
            },
        },
        "predictions": {
            "real": {"dataset": "real", "training": "real"},
            "small": {"dataset": "small", "training": "small", "temperature": 1.0},
            "untrained": {"dataset": "small", "model": "other"},
            "quantized": {"dataset": "small", "training": "quantized", "gpus": 1},
        },
        "corrections": {name: {"prediction": name} for name in ("real", "small", "untrained", "quantized")},
        "scoring": {"main": {}},
        "runs": [{"corrections": ["real", "small", "untrained", "quantized"], "scoring": ["main"]}],
    }


def slu_config() -> dict[str, Any]:
    """Every section of spoken language understanding, every kind of source, and two entries of each."""
    spoken = {"corpus": "spoken", "asr": "main"}
    heard = {"corpus": "more", "asr": "main"}
    return {
        "name": "stubbed",
        "corpora": {
            name: {"adapter": "manifest", "path": "words.tsv", "audio_dir": "audio"} for name in ("spoken", "more")
        },
        "asr": {name: {"model": "./whisper"} for name in ("main", "more")},
        "models": {"lm": {"model": "./lm"}, "other": {"model": "./lm2"}, "ears": {"model": "./ctc", "kind": "audio"}},
        "servers": {
            name: {"model": "big", "base_url": "https://example.org", "prices": {"input": 1, "output": 2}}
            for name in ("paid", "second")
        },
        "rationales": {
            "paid": {**spoken, "labels": ["train.jsonl"], "server": "paid", "nbest_values": [1, 2]},
            "local": {
                "lists": "lists.jsonl",
                "labels": ["train.jsonl"],
                "backend": "transformers",
                "model": "lm",
                "gold": False,
            },
        },
        "datasets": {
            "mixed": {
                "builder": "slu",
                "train": [{"rationale": "paid", "k": 1}, {"rationale": "local", "k": 5}, {"gold_text": "train.jsonl"}],
                "validation": [{"lists": "lists.jsonl"}],
                "test": [heard],
            },
            "reasons": {
                "builder": "slu",
                "train": [{"rationale": "paid", "k": 2}],
                "ras": True,
            },
            "spelt": {
                "builder": "slu",
                "train": [{"lists": "lists.jsonl"}],
                "validation": [{"lists": "lists.jsonl"}],
                "test": [heard],
                "input_format": "ipa",
                "lexicon": "lexicon.txt",
            },
        },
        "trainings": {
            "mixed": {
                "model": "ears",
                "train": [{"dataset": "mixed"}, {"dataset": "reasons"}],
                "validation": [{"dataset": "mixed", "split": "validation"}],
            },
            "spelt": {
                "model": "other",
                "train": [{"dataset": "spelt"}],
                "validation": [{"dataset": "spelt", "split": "validation"}],
            },
        },
        "predictions": {
            "mixed": {"dataset": "mixed", "training": "mixed"},
            "spelt": {"dataset": "spelt", "training": "spelt"},
        },
        "understandings": {"mixed": {"prediction": "mixed"}, "spelt": {"prediction": "spelt", "by": "slurp_id"}},
        "runs": [{"rationales": ["paid", "local"], "understandings": ["mixed", "spelt"]}],
    }


def make_stubbed(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Copy the workflow, put stubs in place of its scripts, and run everything once; the configuration."""
    workspace.copy_workflow(folder)
    for script in (folder / "workflow" / "scripts").glob("*.py"):
        script.write_text(STUB)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    done = workspace.snakemake(folder, "all", "--configfile", workspace.write_config(folder, config))
    if done.returncode:
        raise AssertionError(done.stdout[-6000:])
    return config
