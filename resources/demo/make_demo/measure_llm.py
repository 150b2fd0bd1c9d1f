"""Measure the nano LLM: what it can do as it is, and what a short LoRA makes of it as a corrector of n-best lists."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jiwer
import nano_llm
import torch
from acoustics import add_noise, read_audio
from measure import error_rates, read_json_lines, slurp_clips
from nbest_lists import BETA_RANGE, METHOD, RECOGNISER, recognise_lists
from synthesise import SEED, generator_for, split_sentences
from train_llm import measure_llm, numbered, train
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

TEST_SNR_RANGE = (12.0, 18.0)
PROMPT = Path(__file__).resolve().parents[3] / "workflow" / "prompts" / "corrector.txt"
STEPS, BATCH, RATE, WARM_UP = 200, 16, 2e-3, 30
RANK, ALPHA, DROPOUT = 16, 32, 0.05


def correction_prompt(hypotheses: Sequence[str]) -> str:
    """The workflow's instruction with the numbered list."""
    template = PROMPT.read_text(encoding="utf-8").strip()
    return template.format(n=len(hypotheses), candidates=numbered(hypotheses))


def make_test_lists(demo: Path) -> tuple[list[str], list[list[str]], list[str]]:
    """The test sentences, their lists by the generic recogniser with noise on the clips, and their voices' group."""
    clips = slurp_clips(demo)
    signals = []
    for clip in clips:
        rng = generator_for("corrector test", clip.path.name)
        snr_db, beta = rng.uniform(*TEST_SNR_RANGE), rng.uniform(*BETA_RANGE)
        signals.append(add_noise(read_audio(clip.path), snr_db, beta, rng))
    lists = recognise_lists(demo / "models" / RECOGNISER, signals, [clip.path.name for clip in clips], METHOD)
    return [clip.text for clip in clips], lists, [clip.group for clip in clips]


def epochs(
    examples: Sequence[tuple[list[int], list[int]]], rng: random.Random
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Full batches of examples in a new order each epoch, without end."""
    while True:
        order = rng.sample(list(examples), len(examples))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def train_corrector(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[dict], steps: int
) -> Qwen3ForCausalLM:
    """Train a LoRA of all linear layers on lists and their sentences, and merge it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(SEED)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, config)
    examples = [nano_llm.encode(tokenizer, correction_prompt(row["input"]), row["output"]) for row in rows]
    train(adapted, epochs(examples, random.Random(SEED)), tokenizer.pad_token_id, steps, RATE, WARM_UP)
    return adapted.merge_and_unload()


def by_consensus(hypotheses: Sequence[str]) -> str:
    """The hypothesis with the least expected edit distance to its list (minimum Bayes risk)."""
    from utterflow.evaluate.edits import intern
    from utterflow.evaluate.nbest import mbr

    return hypotheses[mbr(intern([hypothesis.split() for hypothesis in hypotheses]))]


def word_error_rates(
    references: list[str], lists: list[list[str]], untrained: list[str], corrected: list[str]
) -> dict[str, float]:
    """Percent of words wrong: first hypotheses, consensus, oracle, and the LLM's answers before and after training."""
    rates = error_rates(references, lists)
    chosen = {
        "mbr": [by_consensus(hypotheses) for hypotheses in lists],
        "untrained": untrained,
        "corrected": corrected,
    }
    others = {name: round(100 * jiwer.wer(references, texts), 2) for name, texts in chosen.items()}
    return {"utterances": rates["utterances"], "first": rates["wer"], "oracle": rates["oracle"], **others}


def measure_corrector(demo: Path, folder: Path, steps: int = STEPS) -> dict[str, dict[str, dict[str, float]]]:
    """Train a corrector on the lists that ship; apply it, and the LLM before training, to devel and test lists."""
    devel = read_json_lines(demo / "nbest" / "devel.jsonl")
    references, lists, groups = make_test_lists(demo)
    sets = {
        "devel lists": ([row["output"] for row in devel], [row["input"] for row in devel], ["all"] * len(devel)),
        "test 12-18 dB": (references, lists, groups),
    }
    prompts = {name: [correction_prompt(candidates) for candidates in lists] for name, (_, lists, _) in sets.items()}
    model, tokenizer = nano_llm.load(folder)
    untrained = {name: nano_llm.answer(model, tokenizer, asked) for name, asked in prompts.items()}
    began = time.process_time()
    corrector = train_corrector(model, tokenizer, read_json_lines(demo / "nbest" / "train.jsonl"), steps)
    print(f"corrector: {steps} steps in {time.process_time() - began:.0f} CPU-s", flush=True)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, (texts, candidates, parts) in sets.items():
        corrected = nano_llm.answer(corrector, tokenizer, prompts[name])
        figures[name] = {}
        for group in ("all", *sorted(set(parts) - {"all"})):
            chosen = [index for index, part in enumerate(parts) if group in ("all", part)]
            columns = (texts, candidates, untrained[name], corrected)
            figures[name][group] = word_error_rates(*([column[index] for index in chosen] for column in columns))
            print(f"corrector | {name} | {group} | {figures[name][group]}", flush=True)
    return figures


def measure_all(demo: Path) -> dict[str, object]:
    """All figures of the nano LLM; one thread, so that they repeat."""
    torch.set_num_threads(1)
    folder = demo / "models" / "nano-llm"
    return {**measure_llm(folder, split_sentences()), "corrector": measure_corrector(demo, folder)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path(__file__).resolve().parents[1])
    options = parser.parse_args()
    print(json.dumps(measure_all(options.demo), indent=1))


if __name__ == "__main__":
    main()
