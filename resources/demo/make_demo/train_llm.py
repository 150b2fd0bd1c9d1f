"""Pre-train the demo's nano LLM on CPU.

It reads the sentences that trained the recogniser, never those of the corpora that ship, and learns what a
language model should bring to the demo's tasks: the grammar, to copy, to tell what a list of noisy copies says,
to pick and to look up, to write JSON. It sees no list that a recogniser made and no meaning of any sentence.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nano_llm
import numpy as np
import torch
from grammar import Sentence
from synthesise import SEED, split_sentences
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

STEPS = 1500
BATCH = 32
POOL = 8  # batches drawn at a time, so that each holds examples of about the same length
PEAK_RATE = 2e-3
WARM_UP = 50
CANDIDATES = (3, 10)
SHARED_NOISE = (0.0, 0.3)  # share of the words wrong in all candidates of a list
OWN_NOISE = (0.02, 0.3)  # ... in one candidate
EVALUATED = 60  # examples of each kind
KEYS = ["type", "filler", "name", "value", "list", "text", "color", "action", "scenario", "place"]

COPY = ["Repeat the text.", "Copy the following text.", "Say again:"]
RESTORE = [
    "Restore the text.",
    "Which sentence do the following {n} copies come from?",
    "These are {n} noisy copies of a text. Write the text.",
]
PICK = ["Write line {k} of the list.", "What is number {k}?"]
LOOK_UP = ["What is the {key}?", "Answer with the value of {key}."]
WRITE_JSON = ["Write JSON.", "Return the following as JSON."]


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to it; without a prompt, plain text."""

    kind: str
    prompt: str | None
    answer: str


@dataclass(frozen=True)
class Material:
    """What examples are made of: sentences, their words, and words that look like each word."""

    sentences: list[str]
    words: list[str] = field(init=False)
    similar: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        words = sorted({word for sentence in self.sentences for word in sentence.split()})
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "similar", {word: _lookalikes(word, words) for word in words})


def _lookalikes(word: str, words: Sequence[str]) -> list[str]:
    others = [other for other in words if other != word]
    return difflib.get_close_matches(word, others, n=5, cutoff=0.4) or ["the", "a"]


def salad(material: Material, rng: random.Random) -> str:
    """Some words in no order."""
    return " ".join(rng.choices(material.words, k=rng.randint(2, 9)))


def misspell(word: str, rng: random.Random) -> str:
    """A word with a letter lost or written twice."""
    at = rng.randrange(len(word))
    return word[:at] + word[at + 1 :] if rng.random() < 0.5 and len(word) > 1 else word[: at + 1] + word[at:]


def corrupt(words: Sequence[str], share: float, material: Material, rng: random.Random) -> list[str]:
    """Spoil about `share` of the words: mostly another word that looks alike, else misspelt, lost, or one too many."""
    spoilt = []
    for word in words:
        draw = rng.random() / share if share else 1.0
        if draw >= 1:
            spoilt.append(word)
        elif draw < 0.62:
            spoilt.append(rng.choice(material.similar.get(word, material.words)))
        elif draw < 0.72:
            spoilt.append(misspell(word, rng))
        elif draw > 0.86:
            spoilt += [word, rng.choice(material.words)]
    return spoilt or list(words)


def numbered(lines: Sequence[str]) -> str:
    """Lines with their numbers before them, as lists of candidates are shown."""
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


def noisy_copies(text: str, shared: float, material: Material, rng: random.Random) -> list[str]:
    """Candidates as a recogniser's list has them: some errors common to all, some of each candidate's own."""
    common = corrupt(text.split(), shared, material, rng)
    own = rng.uniform(*OWN_NOISE)
    return [" ".join(corrupt(common, own, material, rng)) for _ in range(rng.randint(*CANDIDATES))]


def plain_text(material: Material, rng: random.Random) -> Example:
    """A sentence of the grammar."""
    return Example("text", None, rng.choice(material.sentences))


def copying(material: Material, rng: random.Random) -> Example:
    """Repeat a sentence, or words in no order."""
    text = salad(material, rng) if rng.random() < 0.6 else rng.choice(material.sentences)
    return Example("copy", f"{rng.choice(COPY)}\n\n{text}", text)


def restoring(material: Material, rng: random.Random) -> Example:
    """Write the sentence behind a list of noisy copies; words in no order now and then, for copying's sake."""
    if rng.random() < 0.15:
        text, shared = salad(material, rng), 0.0
    else:
        text, shared = rng.choice(material.sentences), rng.uniform(*SHARED_NOISE)
    candidates = noisy_copies(text, shared, material, rng)
    instruction = rng.choice(RESTORE).format(n=len(candidates))
    return Example("restore", f"{instruction}\n\n{numbered(candidates)}", text)


def picking(material: Material, rng: random.Random) -> Example:
    """Write one line of a numbered list."""
    lines = [salad(material, rng) for _ in range(rng.randint(2, 6))]
    wanted = rng.randrange(len(lines))
    instruction = rng.choice(PICK).format(k=wanted + 1)
    return Example("pick", f"{instruction}\n\n{numbered(lines)}", lines[wanted])


def random_fields(material: Material, rng: random.Random) -> dict[str, str]:
    """A few keys, each with one to three words."""
    keys = rng.sample([*KEYS, *rng.sample(material.words, 4)], rng.randint(1, 4))
    return {key: " ".join(rng.choices(material.words, k=rng.randint(1, 3))) for key in dict.fromkeys(keys)}


def looking_up(material: Material, rng: random.Random) -> Example:
    """Answer with the value of one of some keys."""
    fields = random_fields(material, rng)
    wanted = rng.choice(list(fields))
    lines = "\n".join(f"{key}: {value}" for key, value in fields.items())
    question = rng.choice(LOOK_UP).format(key=wanted)
    return Example("look up", f"{question}\n\n{lines}", fields[wanted])


def writing_json(material: Material, rng: random.Random) -> Example:
    """Write fields as JSON: one object, or a text with a list of objects."""
    fields = random_fields(material, rng)
    lines = "\n".join(f"{key}: {value}" for key, value in fields.items())
    content: object = fields
    if rng.random() < 0.5:
        name = rng.choice(KEYS)
        content = {name: [{"type": key, "filler": value} for key, value in fields.items()]}
        lines = f"{name}\n{lines}"
    return Example("json", f"{rng.choice(WRITE_JSON)}\n\n{lines}", json.dumps(content))


SHARES: dict[Callable[[Material, random.Random], Example], float] = {
    plain_text: 0.15,
    copying: 0.15,
    restoring: 0.45,
    picking: 0.05,
    looking_up: 0.05,
    writing_json: 0.15,
}


def draw_example(material: Material, rng: random.Random) -> Example:
    """An example of a random kind."""
    make = rng.choices(list(SHARES), weights=list(SHARES.values()))[0]
    return make(material, rng)


def batches(
    material: Material, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Batches of fresh examples of about the same length, without end."""
    while True:
        drawn = [draw_example(material, rng) for _ in range(BATCH * POOL)]
        encoded = [nano_llm.encode(tokenizer, example.prompt, example.answer) for example in drawn]
        encoded.sort(key=lambda pair: len(pair[0]))
        pool = [encoded[start : start + BATCH] for start in range(0, len(encoded), BATCH)]
        rng.shuffle(pool)
        yield from pool


def rate_at(step: int, steps: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a cosine down to 2%."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / warm_up) * (0.98 * cosine + 0.02)


def train(
    model: nn.Module,
    feed: Iterator[list[tuple[list[int], list[int]]]],
    pad_id: int,
    steps: int,
    peak: float = PEAK_RATE,
    warm_up: int = WARM_UP,
) -> None:
    """Train what asks for gradients on the answers' tokens; prints the loss every 100 steps."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    began, began_cpu = time.time(), time.process_time()
    losses: list[float] = []
    model.train()
    for step, examples in zip(range(steps), feed, strict=False):
        ids, mask, labels = nano_llm.stack(examples, pad_id)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, steps, peak, warm_up)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=nano_llm.IGNORED
        )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            print(
                f"step {step + 1}/{steps} loss {np.mean(losses):.4f} "
                f"wall {time.time() - began:.0f} s cpu {time.process_time() - began_cpu:.0f} s",
                flush=True,
            )
            losses.clear()
    model.eval()


def exactness(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, material: Material, count: int = EVALUATED
) -> dict[str, float]:
    """Share of examples of each kind, made of sentences not trained on, whose answer is right to the letter."""
    shares = {}
    for make in (make for make in SHARES if make is not plain_text):
        rng = random.Random(SEED)
        examples = [make(material, rng) for _ in range(count)]
        answers = nano_llm.answer(model, tokenizer, [str(example.prompt) for example in examples])
        right = [answer == example.answer for answer, example in zip(answers, examples, strict=True)]
        shares[examples[0].kind] = round(float(np.mean(right)), 3)
    return shares


@torch.no_grad()
def bits_per_word(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> float:
    """Cross-entropy of plain sentences, end token included, without the first token."""
    bits = 0.0
    for sentence in sentences:
        ids = torch.tensor([nano_llm.encode(tokenizer, None, sentence)[0]])
        logits = model(input_ids=ids).logits[0, :-1]
        bits += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item() / math.log(2)
    return round(bits / sum(len(sentence.split()) for sentence in sentences), 3)


def make_llm(folder: Path, parts: dict[str, list[Sentence]], threads: int, steps: int = STEPS) -> dict[str, object]:
    """Train the LLM, write it to `folder`, and measure it on sentences that it has not seen."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    sentences = parts["asr_train"]
    instructions = [text for texts in (COPY, RESTORE, PICK, LOOK_UP, WRITE_JSON) for text in texts]
    tokenizer = nano_llm.build_tokenizer(sentences, instructions)
    model = nano_llm.build_model(tokenizer)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {len(tokenizer)} tokens", flush=True)
    material = Material([sentence.text for sentence in sentences])
    train(model, batches(material, tokenizer, random.Random(SEED)), tokenizer.pad_token_id, steps)
    nano_llm.save(model, tokenizer, folder)
    print(f"saved {folder}", flush=True)
    return measure_llm(folder, parts)


def measure_llm(folder: Path, parts: dict[str, list[Sentence]]) -> dict[str, object]:
    """Figures of a saved checkpoint on the recogniser's development sentences."""
    model, tokenizer = nano_llm.load(folder)
    unseen = Material([sentence.text for sentence in parts["asr_dev"]])
    figures: dict[str, object] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "exact": exactness(model, tokenizer, unseen),
        "bits_per_word": bits_per_word(model, tokenizer, unseen.sentences),
    }
    print(f"nano-llm on held-out sentences: {figures}", flush=True)
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parents[1] / "models" / "nano-llm")
    parser.add_argument("--threads", type=int, default=1, help="only one repeats bit for bit")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    make_llm(options.folder, split_sentences(), options.threads, options.steps)


if __name__ == "__main__":
    main()
