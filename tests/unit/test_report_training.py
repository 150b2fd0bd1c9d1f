"""The figure of loss curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from utterflow.errors import UserError
from utterflow.files import write_json, write_jsonl
from utterflow.finetune.records import DataStatistics, HistoryRow, TrainingMetrics
from utterflow.report.training import draw_losses, plot_training

ROWS = [
    HistoryRow(step=2, epoch=0.5, loss=3.0),
    HistoryRow(step=4, epoch=1.0, loss=2.0),
    HistoryRow(step=4, epoch=1.0, eval_loss=2.5),
    HistoryRow(step=8, epoch=2.0, eval_loss=1.5),
]
STATISTICS = DataStatistics(
    rows=8, rejected=0, tokens=80, answer_tokens=40, longest=10, mean_length=10.0, sequences=8, padding_share=0.0
)
METRICS = TrainingMetrics(
    adapter="lora",
    parameters=100,
    trainable_parameters=10,
    steps=8,
    planned_steps=8,
    epochs=2.0,
    effective_batch=2,
    processes=1,
    precision="fp32",
    tokens_seen=160,
    final_loss=2.0,
    final_eval_loss=1.5,
    best_eval_loss=1.5,
    best_step=8,
    kept_step=8,
    stopped_early=False,
    train=STATISTICS,
    validation=STATISTICS,
    rows={"in": 16, "out": 16, "rejected": 0},
)


def plot(folder: Path, *names: str) -> bytes:
    folder.mkdir()
    files: dict[str, dict[str, Path]] = {"histories": {}, "metrics": {}}
    for name in names:
        files["histories"][name] = folder / f"{name}.jsonl"
        files["metrics"][name] = folder / f"{name}.json"
        write_jsonl(folder / f"{name}.jsonl", (row.row() for row in ROWS))
        write_json(folder / f"{name}.json", METRICS.row())
    loss = folder / "training_loss.svg"
    plot_training(**files, loss=loss, meta=folder / "training_loss.meta.json", cfg={"trainings": names}, code="c")
    return loss.read_bytes()


@pytest.mark.parametrize("names", [("heard",), ("heard", "decoded", "third")], ids=len)
def test_a_panel_per_training_and_the_same_bytes_each_time(tmp_path: Path, names: tuple[str, ...]) -> None:
    figure = plot(tmp_path / "one", *names)
    assert figure == plot(tmp_path / "two", *names)
    panels = [item for item in ElementTree.fromstring(figure).iter() if item.get("id", "").startswith("axes_")]
    assert len(panels) == len(names)
    for text in (*names, "training", "validation", "kept", "optimizer step"):
        assert f"<!-- {text} -->".encode() in figure
    meta = json.loads((tmp_path / "one/training_loss.meta.json").read_text())
    assert meta["rule"] == "plot_training" and set(meta["outputs"]) == {"training_loss.svg"}


def lines(rows: list[HistoryRow], kept_step: int) -> dict[str, list[list[float]]]:
    """Label of each line drawn -> its x and y values."""
    axis: Any = Figure().add_subplot()
    draw_losses(axis, rows, kept_step)
    return {line.get_label(): [list(values) for values in line.get_data()] for line in axis.get_lines()}


def test_losses_stand_at_their_steps() -> None:
    drawn = lines(ROWS, 8)
    assert drawn["training"] == [[2, 4], [3.0, 2.0]]
    assert drawn["validation"] == [[4, 8], [2.5, 1.5]]
    assert drawn["kept"][0] == [8, 8]


def test_without_a_validation_set_there_is_no_line_for_it() -> None:
    assert lines(ROWS[:2], 4).keys() == {"training", "kept"}


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training to draw"):
        plot(tmp_path / "none")
    write_jsonl(tmp_path / "a.jsonl", (row.row() for row in ROWS))
    write_json(tmp_path / "a.json", {"steps": 3})
    paths = {name: {"a": tmp_path / f"a.{end}"} for name, end in (("histories", "jsonl"), ("metrics", "json"))}
    with pytest.raises(UserError, match=r"a\.json"):
        plot_training(**paths, loss=tmp_path / "x.svg", meta=tmp_path / "x.meta.json", cfg={}, code="c")
    assert not (tmp_path / "x.svg").exists()
