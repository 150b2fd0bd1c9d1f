"""How many tokens per second fine-tuning trains on, beside TRL's trainer as it comes.

Same model, same rows, LoRA, one epoch, no evaluation. A token counts once, padding not at all. Ways are run in turn,
several rounds, and compared by CPU seconds of this process (on a GPU: by wall seconds), medians over rounds.

    python benchmarks/finetune_throughput.py --lists lists.jsonl --model resources/demo/models/nano-llm
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests")]

import torch  # noqa: E402

from utterflow.config.language_models import LanguageModel  # noqa: E402
from utterflow.config.training import Training  # noqa: E402
from utterflow.files import read_jsonl, write_jsonl  # noqa: E402
from utterflow.finetune.batches import EpochSampler, make_collator  # noqa: E402
from utterflow.finetune.data import encode_set, is_grouped  # noqa: E402
from utterflow.finetune.settings import lora_settings, total_steps, trainer_settings  # noqa: E402
from utterflow.finetune.trainer import Finetuner  # noqa: E402
from utterflow.models.kinds import kind_of  # noqa: E402
from utterflow.records import SftRow  # noqa: E402

INSTRUCTION = "Write what was said, from these hypotheses of a speech recogniser, best first."


@dataclass
class Measured:
    """One epoch of one way."""

    seconds: float
    tokens: int = 0
    places: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def padding(self) -> float:
        return 1 - self.tokens / self.places


def read_lists(path: Path | None, count: int) -> list[dict[str, Any]]:
    """SFT rows from lists of hypotheses (`input`, `output`), repeated to `count`; without a file random words."""
    if path:
        lists = [(row["input"], row["output"]) for _, row in read_jsonl(path)]
    else:
        draw = random.Random(0)
        words = ["the", "of", "light", "kitchen", "seven", "report", "tomorrow", "play", "london", "weather"]
        lengths = [max(2, round(draw.lognormvariate(2.2, 0.6))) for _ in range(count)]
        lists = [([" ".join(draw.choices(words, k=n)) for _ in range(5)], " ".join(words[:n])) for n in lengths]
    rows = []
    for number in range(count):
        hypotheses, target = lists[number % len(lists)]
        listed = "\n".join(f"{place}. {text}" for place, text in enumerate(hypotheses, start=1))
        messages = [{"role": "user", "content": f"{INSTRUCTION}\n{listed}"}]
        rows.append({"id": str(number), "task": "corrector", "messages": messages, "target": target})
    return rows


def short_rows(rows: list[dict[str, Any]], model: LanguageModel, longest: int) -> list[dict[str, Any]]:
    """The rows that every way can take."""
    kind = kind_of(model)
    processor = kind.load_processor(Path(model.model), model)
    return [row for row in rows if len(kind.encode_row(processor, SftRow.model_validate(row))[1]) <= longest]


def counting(collate: Callable[..., dict[str, Any]], measured: Measured) -> Callable[..., dict[str, Any]]:
    """A collator that counts tokens and places of the batches it makes."""

    def counted(items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(items)
        measured.places += batch["input_ids"].numel()
        measured.tokens += sum(len(item["input_ids"]) for item in items)
        return batch

    return counted


@contextlib.contextmanager
def timed(measured: Measured, on_gpu: bool) -> Iterator[None]:
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    yield
    measured.seconds = clock() - start


def ours(rows: Path, model: LanguageModel, settings: dict[str, Any], **more: Any) -> Measured:
    """An epoch of our trainer."""
    training = Training.model_validate({**settings, **more, "model": "m", "train": [{"dataset": "d"}]})
    kind, folder = kind_of(model), Path(model.model)
    processor = kind.load_processor(folder, model)
    encoded = encode_set(rows, lambda row: kind.encode_row(processor, row)[1:], training, train=True)
    assert encoded is not None and not encoded.rejected
    measured = Measured(0.0)
    with tempfile.TemporaryDirectory() as state:
        steps = total_steps(training, len(encoded.lengths))
        args = trainer_settings(training, folder=Path(state), steps=steps, bf16=False, evaluates=False, name="bench")
        args.save_strategy = "no"
        trainer = Finetuner(
            sampler=EpochSampler(encoded.lengths, training.batch_size, grouped=is_grouped(training), seed=0),
            model=kind.load_model(folder, model, args.device, dtype=torch.float32),
            args=args,
            processing_class=processor,
            data_collator=counting(make_collator(processor.pad_token_id, flatten=False), measured),
            train_dataset=encoded.sequences,
            peft_config=lora_settings(training),
        )
        with timed(measured, training.gpus > 0):
            trainer.train()
    return measured


def library(rows: Path, model: LanguageModel, settings: dict[str, Any]) -> Measured:
    """An epoch of TRL's trainer on prompt and completion columns, with its own tokenisation, order and collator.

    Gradient checkpointing and bfloat16, which are its defaults, are off, as in ours.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    training = Training.model_validate({**settings, "model": "m", "train": [{"dataset": "d"}]})
    kind, folder = kind_of(model), Path(model.model)
    items = [
        {"prompt": row["messages"], "completion": [{"role": "assistant", "content": row["target"]}]}
        for _, row in read_jsonl(rows)
    ]
    measured = Measured(0.0)
    with tempfile.TemporaryDirectory() as state:
        args = SFTConfig(
            output_dir=state,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.accumulation,
            num_train_epochs=1,
            learning_rate=training.learning_rate,
            max_length=training.max_length,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=training.gpus == 0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            model=kind.load_model(folder, model, args.device, dtype=torch.float32),
            args=args,
            processing_class=kind.load_processor(folder, model),
            train_dataset=Dataset.from_list(items),
            peft_config=lora_settings(training),
        )
        trainer.data_collator = counting(trainer.data_collator, measured)
        with timed(measured, training.gpus > 0):
            trainer.train()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=Path, help="JSON Lines with `input` (hypotheses) and `output`")
    parser.add_argument("--model", type=Path, help="checkpoint; without it a random Qwen3 of width 192 and 4 layers")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--pack-to", type=int, default=1024, help="max_length of packed sequences; longer rows are left out"
    )
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.model
        if checkpoint is None:
            from tiny_lm import save_tiny_lm

            checkpoint = save_tiny_lm(Path(folder) / "model", hidden_size=192, layers=4)
        model = LanguageModel(model=str(checkpoint.resolve()))
        rows = Path(folder) / "rows.jsonl"
        write_jsonl(rows, short_rows(read_lists(options.lists, options.rows), model, options.pack_to))
        settings = {
            "batch_size": options.batch_size, "accumulation": 1, "epochs": 1, "learning_rate": 1e-3,
            "max_length": 2048, "gpus": int(options.gpu),
        }  # fmt: skip
        packed = {"packing": True, "max_length": options.pack_to, "batch_size": 1}
        ways: dict[str, Callable[[], Measured]] = {
            "TRL as it comes": lambda: library(rows, model, settings),
            "ours, shuffled": lambda: ours(rows, model, settings, group_by_length=False),
            "ours, grouped": lambda: ours(rows, model, settings),
            "ours, packed": lambda: ours(rows, model, settings, **packed),
        }
        found: dict[str, list[Measured]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                with contextlib.redirect_stdout(sys.stderr):
                    measured = way()
                if number:  # the first round warms up
                    found[name].append(measured)
        count = sum(1 for _ in read_jsonl(rows))
    print(f"{count} rows, {found['TRL as it comes'][0].tokens} tokens, {torch.__version__}")
    base = statistics.median(item.rate for item in found["TRL as it comes"])
    print("| way | tokens/s | padding | times TRL | range over rounds |\n|---|---|---|---|---|")
    for name, items in found.items():
        rates = [item.rate for item in items]
        rate = statistics.median(rates)
        print(
            f"| {name} | {rate:,.0f} | {100 * statistics.median(item.padding for item in items):.0f}% "
            f"| {rate / base:.2f} | {min(rates):,.0f}-{max(rates):,.0f} |"
        )


if __name__ == "__main__":
    main()
