"""Scoring of understood commands: seconds for a file of predictions, in one process.

    python benchmarks/slu_scoring.py
    python benchmarks/slu_scoring.py --gold data/slurp/test.jsonl

Gold and predictions are random, 13,000 recordings (SLURP's test set has 13,078) of 3,000 sentences with 0-4 entities,
predictions with about 40% wrong entities; with --gold, annotations are those of a file and predictions are made from
them. Reading both files counts. The median of the repeats is one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from utterflow.files import read_jsonl, write_jsonl
from utterflow.slu.files import score_files
from utterflow.slu.metrics import char_distance, word_distance

WORDS = [first + last for first in ("ba", "de", "fi", "go") for last in ("k", "lan", "n", "rris", "t")]
TYPES = [f"type_{number}" for number in range(50)]


def make_gold(recordings: int, generator: random.Random) -> list[dict[str, Any]]:
    """Annotations of about four recordings each."""
    rows = []
    for number in range(recordings * 3 // 13):
        words = generator.choices(WORDS, k=generator.randint(4, 14))
        entities, place = [], 0
        for _ in range(generator.randint(0, 4)):
            length = generator.randint(1, 3)
            if place + length > len(words):
                break
            entities.append({"type": generator.choice(TYPES), "span": list(range(place, place + length))})
            place += length
        rows.append(
            {
                "slurp_id": number,
                "scenario": f"scenario_{number % 18}",
                "action": f"action_{number % 46}",
                "tokens": [{"surface": word} for word in words],
                "entities": entities,
                "recordings": [],
            }
        )
    for number in range(recordings):
        rows[number % len(rows)]["recordings"].append({"file": f"{number}.flac"})
    return rows


def make_predictions(gold: list[dict[str, Any]], generator: random.Random) -> list[dict[str, Any]]:
    """A prediction for each recording; some entities are lost, of another type, or misheard."""
    rows = []
    for row in gold:
        for recording in row["recordings"]:
            entities = []
            for entity in row["entities"]:
                words = [row["tokens"][place]["surface"].lower() for place in entity["span"]]
                draw = generator.random()
                if draw < 0.1:
                    continue
                if draw < 0.3:
                    words[generator.randrange(len(words))] = generator.choice(WORDS)
                kind = generator.choice(TYPES) if draw > 0.9 else entity["type"]
                entities.append({"type": kind, "filler": " ".join(words)})
            wrong = generator.random() < 0.15
            rows.append(
                {
                    "file": recording["file"],
                    "scenario": row["scenario"],
                    "action": "other" if wrong else row["action"],
                    "entities": entities,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--recordings", type=int, default=13_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    generator = random.Random(0)
    gold = (
        [row for _, row in read_jsonl(arguments.gold)] if arguments.gold else make_gold(arguments.recordings, generator)
    )
    predictions = make_predictions(gold, generator)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "gold.jsonl"), Path(folder, "pred.jsonl")
        write_jsonl(paths[0], gold)
        write_jsonl(paths[1], predictions)
        for _ in range(arguments.repeats):
            word_distance.cache_clear()
            char_distance.cache_clear()
            start = time.perf_counter()
            made = score_files(*paths, text=False, average="micro")
            times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "predictions": len(predictions),
                "intent_f1": round(made["intent_f1"], 4),
                "slu_f1": round(made["slu_f1"], 4),
                "seconds": round(statistics.median(times), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
