"""Small corrections, scored, for tests of evaluation and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utterflow.config.prediction import Correction
from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.corrector.records import CorrectionMetrics
from utterflow.corrector.score import score_corrections
from utterflow.files import write_json, write_jsonl

PLAIN = Scoring(normalizer="none", oracle_at=(1, 2, 3), bootstrap=Bootstrap(samples=200))
FILES = {
    "metrics": "plain.json",
    "table": "plain.tsv",
    "rows": "plain.rows.jsonl",
    "rejected": "plain.rejected.jsonl",
    "meta": "plain.meta.json",
}


def item(
    name: str, reference: str | None, beams: list[str], answer: str | list[str] | None, **more: Any
) -> dict[str, Any]:
    """A corrector's row with the answer(s) that the model gave, None where it gave none."""
    return {
        "trial_id": name,
        "input_beams": beams,
        "ground_truth": reference,
        "instruction": "",
        "formatted_input": "",
        "id": name,
        "source": "test",
        "answer": answer,
        **more,
    }


ITEMS = [
    item("a", "turn on the light", ["turn on light", "turn on the light", "burn it"], "turn on the light",
         group="f", session="1", scores=[-1.0, -2.0, -3.0]),
    item("b", "stop", ["stop it now", "shop", "stop it"], "stop it now please", group="m", session="2",
         scores=[-1.0, -1.5, -9.0]),
    item("c", "play jazz", ["play jazz", "play chess"], "play bass", group="f", session="1", scores=[-1.0, -1.2]),
    item("d", "", ["noise"], "", group="m", session="3", scores=[-1.0]),
]  # fmt: skip


def prediction(name: str, answers: list[str], finish: str = "stop") -> dict[str, Any]:
    return {
        "id": name,
        "task": "corrector",
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
    cfg: Scoring = PLAIN,
    *,
    rejected: tuple[int, int] = (0, 0),
    reject_beyond: float | None = None,
    name: str = "fixed",
    predictions: list[dict[str, Any]] | None = None,
) -> CorrectionMetrics:
    """Score the items' answers; `rejected`: by build_corrector_data and by generate."""
    write_jsonl(folder / "test.candidates.jsonl", ({k: v for k, v in row.items() if k != "answer"} for row in items))
    answers = [(row["id"], row["answer"]) for row in items if row["answer"] is not None]
    made = [prediction(key, answer if isinstance(answer, list) else [answer]) for key, answer in answers]
    write_jsonl(folder / "predictions.jsonl", made if predictions is None else predictions)
    earlier = {}
    for stage, count in zip(("build_corrector_data", "generate"), rejected, strict=True):
        earlier[stage] = folder / f"{stage}.meta.json"
        write_json(earlier[stage], {"rows": {"rejected": count}})
    return score_corrections(
        folder / "predictions.jsonl",
        folder / "test.candidates.jsonl",
        earlier=earlier,
        **{kind: folder / file for kind, file in FILES.items()},
        correction=name,
        scoring="plain",
        cfg=Correction(prediction="answers", reject_beyond=reject_beyond),
        scoring_cfg=cfg,
        code="c",
    )
