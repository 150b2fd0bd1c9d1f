"""Scoring: our edit counts against jiwer's on the same pairs, in one run.

    python benchmarks/scoring.py

Pairs are random sentences of 3-20 words over a vocabulary of 5,000, hypotheses with about 20% edits. Word and character
counts of both are compared; they must be equal. The result is one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import jiwer

from utterflow.evaluate.edits import char_edits, count_edits, intern


def make_pairs(count: int, seed: int) -> tuple[list[str], list[str]]:
    """References and hypotheses."""
    generator = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(5000)]
    references, hypotheses = [], []
    for _ in range(count):
        words = generator.choices(vocabulary, k=generator.randint(3, 20))
        heard: list[str] = []
        for word in words:
            draw = generator.random()
            if draw < 0.1:
                heard.append(generator.choice(vocabulary))
            elif draw < 0.15:
                heard += [word, generator.choice(vocabulary)]
            elif draw > 0.05 + 0.15:
                heard.append(word)
        references.append(" ".join(words))
        hypotheses.append(" ".join(heard) or "x")
    return references, hypotheses


def ours(references: list[str], hypotheses: list[str]) -> tuple[int, int]:
    words = characters = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        target, candidate = intern([reference.split(), hypothesis.split()])
        words += count_edits(target, candidate).edits
        characters += char_edits(reference, hypothesis).edits
    return words, characters


def with_jiwer(references: list[str], hypotheses: list[str]) -> tuple[int, int]:
    by_word = jiwer.process_words(references, hypotheses)
    by_character = jiwer.process_characters(references, hypotheses)
    return (
        by_word.substitutions + by_word.deletions + by_word.insertions,
        by_character.substitutions + by_character.deletions + by_character.insertions,
    )


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=13_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    references, hypotheses = make_pairs(arguments.pairs, 0)
    if ours(references, hypotheses) != with_jiwer(references, hypotheses):
        raise SystemExit("the counts differ")
    seconds = {
        "ours": median_seconds(lambda: ours(references, hypotheses), arguments.repeats),
        "jiwer": median_seconds(lambda: with_jiwer(references, hypotheses), arguments.repeats),
    }
    print(
        json.dumps(
            {
                "pairs": arguments.pairs,
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "ours_is_faster_by": round(seconds["jiwer"] / seconds["ours"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
