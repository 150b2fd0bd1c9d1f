"""Rationales of a fake server: commands, good answers, and a configuration that asks for them with a key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fake_server import Body, last_text

KEY = "sk-planted-0123456789abcdef"
ROWS = 20
INTENTS = ("alarm_set", "alarm_remove", "music_play", "lists_query", "email_send", "weather_query")


def rationale(body: Body) -> str:
    """A good answer to the question, made from the prompt."""
    text = last_text(body)
    reference = re.findall(r"Reference intent: (\w+)", text)[-1]
    topk = [reference, *(name for name in INTENTS if name != reference)][:5]
    return json.dumps(
        {
            "topk_intents": topk,
            "intent_elimination": [{"intent": name, "reason": "no word of it"} for name in topk[1:]],
            "final_prediction": reference,
            "intent_rationalization": f"the words say {reference}",
            "slot_grounding": [],
            "slot_rationalization": "no slots are named",
        }
    )


def write_lists(path: Path) -> None:
    rows = []
    for number in range(ROWS):
        scenario, action = INTENTS[number % len(INTENTS)].split("_")
        texts = [f"command {number} as heard {rank}" for rank in range(3)]
        labels = {"slurp_id": number, "scenario": scenario, "action": action, "entities": []}
        rows.append({**labels, "asr_hypotheses": [{"text": text, "score": 0.0} for text in texts]})
    path.write_text("".join(json.dumps({**row, "sentence": "said"}) + "\n" for row in rows))


def config(url: str, **rationale_keys: Any) -> dict[str, Any]:
    labels = {"lists": "lists.jsonl", "labels": ["lists.jsonl"], "server": "fake"}
    return {
        "name": "paid",
        "servers": {
            "fake": {
                "model": "fake-1",
                "base_url": url,
                "key_env": "PLANTED_KEY",
                "prices": {"input": 1.0, "output": 2.0},
                "concurrency": 2,
            }
        },
        "rationales": {"paid": {**labels, "nbest_values": [3], "shards": 2, **rationale_keys}},
        "datasets": {"mixed": {"builder": "slu", "train": [{"rationale": "paid", "k": 3}], "ras": True}},
        "runs": [{"rationales": ["paid"]}],
    }
