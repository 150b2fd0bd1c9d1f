"""Scores of 200 real Whisper 5-best lists against jiwer."""

from __future__ import annotations

import json
from pathlib import Path

import jiwer
import pytest

from utterflow.cli import main
from utterflow.evaluate.normalize import normalizer

LISTS = Path(__file__).resolve().parents[3] / "shared/data/nbest/hyporadise_sample_200.jsonl"

pytestmark = pytest.mark.skipif(not LISTS.is_file(), reason=f"real n-best lists are not here: {LISTS}")


@pytest.fixture(scope="module")
def lists() -> list[tuple[list[str], str]]:
    rows = [json.loads(line) for line in LISTS.read_text().splitlines()]
    return [(row["input"], row["output"]) for row in rows]


@pytest.mark.parametrize("name", ["none", "basic", "whisper_english"])
def test_nbest_totals_are_jiwers(lists: list[tuple[list[str], str]], capsys: pytest.CaptureFixture[str], name: str):
    assert main(["score", "nbest", "--input", str(LISTS), "--normalizer", name]) == 0
    made = json.loads(capsys.readouterr().out)
    normalize = normalizer(name)
    references = [normalize(reference) for _, reference in lists]
    candidates = [[normalize(text) for text in texts] for texts, _ in lists]
    first = jiwer.process_words(references, [texts[0] for texts in candidates])
    chars = jiwer.process_characters(references, [texts[0] for texts in candidates])
    best = [
        min(texts, key=lambda text: edits(jiwer.process_words(reference, text)))
        for reference, texts in zip(references, candidates, strict=True)
    ]
    best_totals = jiwer.process_words(references, best)
    assert made["n"] == len(lists) == 200
    assert (made["first"], made["wer"], made["cer"]) == (first.wer, first.wer, chars.cer)
    for key in ("hits", "substitutions", "deletions", "insertions"):
        assert made[key] == getattr(first, key)
        assert made[f"character_{key}"] == getattr(chars, key)
    assert made["oracle_edits"] == edits(best_totals)
    assert made["oracle"] == best_totals.wer
    assert made["compositional_oracle"] < made["oracle"] < made["mbr"]


def test_mbr_is_the_least_total_distance_by_jiwer(
    lists: list[tuple[list[str], str]], capsys: pytest.CaptureFixture[str]
):
    chosen = []
    for texts, _ in lists:
        risks = [edits(jiwer.process_words(texts, [text] * len(texts))) for text in texts]
        chosen.append(texts[risks.index(min(risks))])
    totals = jiwer.process_words([reference for _, reference in lists], chosen)
    assert main(["score", "nbest", "--input", str(LISTS)]) == 0
    assert json.loads(capsys.readouterr().out)["mbr"] == totals.wer


def test_wer_command_is_jiwers(lists: list[tuple[list[str], str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for kind, texts in (
        ("ref", [reference for _, reference in lists]),
        ("hyp", [texts[0] for texts, _ in lists]),
    ):
        lines = (json.dumps({"id": str(index), "text": text}) + "\n" for index, text in enumerate(texts))
        (tmp_path / kind).write_text("".join(lines))
    assert main(["score", "wer", "--ref", str(tmp_path / "ref"), "--hyp", str(tmp_path / "hyp")]) == 0
    made = json.loads(capsys.readouterr().out)
    totals = jiwer.process_words([reference for _, reference in lists], [texts[0] for texts, _ in lists])
    assert (made["wer"], made["n"]) == (totals.wer, 200)


def edits(output: jiwer.WordOutput) -> int:
    """Substitutions, deletions and insertions together."""
    return output.substitutions + output.deletions + output.insertions
