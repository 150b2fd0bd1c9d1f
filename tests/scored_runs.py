"""A small run of n-best lists, scored, for tests of evaluation and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utterflow.config.scoring import Scoring
from utterflow.evaluate.score import score_asr
from utterflow.files import write_jsonl
from utterflow.records import AsrMetrics

PLAIN = Scoring(normalizer="none", oracle_at=(1, 2, 3))


def nbest_row(name: str, text: str | None, hypotheses: list[str], **more: Any) -> dict[str, Any]:
    return {
        "id": name,
        "audio": f"{name}.wav",
        "audio_sha256": "0" * 64,
        "audio_bytes": 10,
        "seconds": 1.0,
        "text": text,
        "asr_hypotheses": [
            {"text": item, "score": -1.0, "mean_logprob": -0.5, "num_tokens": 2, "finished": True}
            for item in hypotheses
        ],
        "asr_method": "beam",
        **more,
    }


ROWS = [
    nbest_row("a", "turn on the light", ["turn on light", "turn on the light", "burn it"], group="f", speaker="1"),
    nbest_row("b", "stop", ["stop it now", "shop", "stop it"], group="m", speaker="2", asr_fallback="too few beams"),
    nbest_row("c", "play jazz", ["play jazz", "play chess"], group="f", speaker="1"),
    nbest_row("d", "", ["noise"], group="m", speaker="3"),
]


def paths(folder: Path) -> dict[str, Path]:
    suffixes = {"metrics": "json", "table": "tsv", "meta": "meta.json"}
    suffixes |= {name: f"{name}.jsonl" for name in ("rows", "rejected")}
    return {name: folder / f"plain.{suffix}" for name, suffix in suffixes.items()}


def run(folder: Path, rows: list[dict[str, Any]], cfg: Scoring = PLAIN, **more: Any) -> AsrMetrics:
    write_jsonl(folder / "nbest.jsonl", rows)
    return score_asr(
        folder / "nbest.jsonl",
        **paths(folder),
        corpus="demo",
        asr="nano",
        scoring="plain",
        cfg=cfg,
        code="abc",
        **more,
    )
