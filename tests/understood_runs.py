"""Small answers to spoken commands, scored, for tests of evaluation and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utterflow.config.prediction import Understanding
from utterflow.files import write_json, write_jsonl
from utterflow.slu.records import SluMetrics
from utterflow.slu.score import score_slu

PLAIN = Understanding(prediction="answers", bootstrap_samples=200)
FILES = {
    "metrics": "metrics_label_only.json",
    "understood": "prediction.jsonl",
    "labels_only": "prediction_labels_only.jsonl",
    "rows": "rows.jsonl",
    "rejected": "rejected.jsonl",
    "table": "table.tsv",
    "meta": "slu.meta.json",
}


def item(name: str, gold: str | None, entities: list[tuple[str, str]], answer: Any, **more: Any) -> dict[str, Any]:
    """A command with its gold intent (`scenario action`) and the answer(s) to it, None where there is none."""
    scenario, action = gold.split() if gold else (None, None)
    return {
        "id": name,
        "slurp_id": more.pop("slurp_id", int(name[1:])),
        "file": f"{name}.flac",
        "hypotheses": [f"{name} best", f"{name} second"],
        "scenario": scenario,
        "action": action,
        "entities": [{"type": kind, "filler": filler} for kind, filler in entities] if gold else None,
        "source": "spoken/main",
        "candidates": [f"{name} best"],
        "answer": answer,
        **more,
    }


def said(scenario: str, action: str, *entities: tuple[str, str]) -> str:
    """An answer as it should be."""
    return json.dumps(
        {
            "scenario": scenario,
            "action": action,
            "entities": [{"type": kind, "filler": filler} for kind, filler in entities],
        }
    )


ITEMS = [
    item("r1", "alarm set", [("time", "eight")], said("alarm", "set", ("time", "at eight")), speaker="s1"),
    item("r2", "play music", [("artist_name", "bob dylan"), ("date", "today")],
         said("play", "radio", ("artist_name", "bob dylan")), speaker="s1"),
    item("r3", "alarm query", [], said("alarm", "query", ("date", "today")), speaker="s2"),
    item("r4", "qa stock", [("business_name", "hdfc")], "I do not know.", speaker="s2"),
    item("r5", "alarm query", [("date", "friday")], None, speaker="s3"),
    item("r6", None, [], said("alarm", "set"), speaker="s3"),
]  # fmt: skip


def prediction(name: str, answers: list[str], task: str = "slu", finish: str = "stop") -> dict[str, Any]:
    return {
        "id": name,
        "task": task,
        "outputs": answers,
        "raw": answers,
        "finish": [finish] * len(answers),
        "parsed": None,
        "prompt_tokens": 10,
        "output_tokens": [3] * len(answers),
        "target": None,
    }


def run(
    folder: Path,
    items: list[dict[str, Any]],
    cfg: Understanding = PLAIN,
    *,
    labels: list[str] | None = None,
    name: str = "heard",
    predictions: list[dict[str, Any]] | None = None,
    rejected: tuple[int, int] = (0, 0),
) -> SluMetrics:
    """Score the items' answers; `labels`: sentences' intents (`scenario action`) that the baseline is made from."""
    write_jsonl(folder / "items.jsonl", ({k: v for k, v in row.items() if k != "answer"} for row in items))
    answered = [(row["id"], row["answer"]) for row in items if row["answer"] is not None]
    made = [prediction(key, answer if isinstance(answer, list) else [answer]) for key, answer in answered]
    write_jsonl(folder / "predictions.jsonl", made if predictions is None else predictions)
    earlier = {}
    for stage, count in zip(("build_slu_data", "generate"), rejected, strict=True):
        earlier[stage] = folder / f"{stage}.meta.json"
        write_json(earlier[stage], {"rows": {"rejected": count}})
    annotated = [intent.split() for intent in labels or ()]
    write_jsonl(
        folder / "labels.jsonl",
        (
            {"slurp_id": index, "sentence": "-", "scenario": scenario, "action": action, "entities": [], "tokens": []}
            for index, (scenario, action) in enumerate(annotated)
        ),
    )
    return score_slu(
        folder / "predictions.jsonl",
        folder / "items.jsonl",
        [folder / "labels.jsonl"] if labels else [],
        earlier=earlier,
        **{kind: folder / file for kind, file in FILES.items()},
        understanding=name,
        cfg=cfg,
        code="c",
    )
