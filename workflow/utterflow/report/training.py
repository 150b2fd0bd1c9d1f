"""Rule `plot_training`: loss curves of fine-tunings, as SVG with the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.finetune.records import HistoryRow, TrainingMetrics
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import parse_record, read_records
from utterflow.report.figures import figure

WIDTH, HEIGHT = 4.6, 3.2  # inches, of one panel
PANELS_PER_ROW = 2


def plot_training(
    histories: Mapping[str, Path],
    metrics: Mapping[str, Path],
    *,
    loss: Path,
    meta: Path,
    cfg: Mapping[str, Any],
    code: str,
) -> None:
    """Draw the loss over the steps of each training, one panel each.

    Args:
        histories: name of a training -> its history.jsonl (`HistoryRow`).
        metrics: name of a training -> its metrics.json (`TrainingMetrics`).
        loss: written.

    Raises:
        UserError: no training, or a file of another kind.
    """
    watch = Stopwatch()
    if not histories:
        raise UserError("there is no training to draw", fix="name a correction with a `training` in `runs`")
    rows_of_panels = -(-len(histories) // PANELS_PER_ROW)
    columns = min(len(histories), PANELS_PER_ROW)
    with figure((WIDTH * columns, HEIGHT * rows_of_panels), loss) as canvas:
        for index, (name, path) in enumerate(histories.items()):
            axis = canvas.add_subplot(rows_of_panels, columns, index + 1)
            kept = parse_record(TrainingMetrics, read_json(metrics[name]), str(metrics[name])).kept_step
            draw_losses(axis, list(read_records(path, HistoryRow)), kept)
            axis.set_title(name)
    write_meta(
        meta,
        rule="plot_training",
        cfg=cfg,
        code=code,
        inputs=[*histories.values(), *metrics.values()],
        outputs={"svg/1": loss},
        seconds=watch.seconds(),
    )


def draw_losses(axis: Any, rows: Sequence[HistoryRow], kept_step: int) -> None:
    """Loss of training as a line, of evaluations as dots, and the step whose weights were kept."""
    trained = [(row.step, row.loss) for row in rows if row.loss is not None]
    evaluated = [(row.step, row.eval_loss) for row in rows if row.eval_loss is not None]
    if trained:
        axis.plot(*zip(*trained, strict=True), color="C0", linewidth=1.2, label="training")
    if evaluated:
        axis.plot(*zip(*evaluated, strict=True), color="C1", marker="o", markersize=3, label="validation")
    axis.axvline(kept_step, color="#999999", linewidth=0.8, linestyle=":", label="kept")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("nats per answer token")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
