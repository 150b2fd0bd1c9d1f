"""Stage `plot_asr`: figures over runs, as SVG with the same bytes for the same numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.evaluate.score import ALL
from utterflow.files import atomic_writer, read_json
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import AsrMetrics, AsrScores, Rate
from utterflow.report.summary import read_metrics

log = logging.getLogger("utterflow")

STYLE: Any = {
    "svg.hashsalt": "utterflow",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
}
BARS = (("first hypothesis", "#4c72b0"), ("MBR choice", "#dd8452"), ("oracle", "#55a868"))
MAX_GROUPS = 20
LONGEST_LABEL = 24
PANELS_PER_ROW = 2


@dataclass(frozen=True)
class Throughput:
    """How fast one run was; None where part of it came from an earlier run's journal and was not timed."""

    name: str
    device: str
    utterances_per_second: float | None
    audio_seconds_per_second: float | None


def plot_asr(
    metrics: Sequence[Path],
    nbest_meta: Sequence[Path],
    *,
    wer: Path,
    diversity: Path,
    throughput: Path,
    meta: Path,
    cfg: Mapping[str, Any],
    code: str,
) -> None:
    """Draw the three figures of the report.

    Args:
        metrics: metrics files of the runs (`records.AsrMetrics`).
        nbest_meta: side files of the runs' n-best lists, `.../<corpus>/<asr>/nbest.meta.json`.
        wer: written: WER by group.
        diversity: written: oracle WER and number of different hypotheses by list length.
        throughput: written: decoding speed.

    Raises:
        UserError: no run, or a file of another kind.
    """
    watch = Stopwatch()
    runs = [read_metrics(path) for path in metrics]
    if not runs:
        raise UserError("there is no run to draw", fix="add an entry to `runs` in the configuration")
    plot_wer(runs, wer)
    plot_diversity(runs, diversity)
    plot_throughput([read_throughput(path) for path in nbest_meta], throughput)
    write_meta(
        meta,
        rule="plot_asr",
        cfg=cfg,
        code=code,
        inputs=[*metrics, *nbest_meta],
        outputs={"wer_figure/1": wer, "diversity_figure/1": diversity, "throughput_figure/1": throughput},
        seconds=watch.seconds(),
        rows={"in": len(runs), "out": len(runs), "rejected": 0},
    )
    log.info("%d runs drawn", len(runs))


def plot_wer(runs: Sequence[AsrMetrics], path: Path) -> None:
    """WER of first hypothesis, MBR choice and oracle by group, with intervals; one panel per run."""
    parts = [shown_groups(run) for run in runs]
    longest = max(len(part) for part in parts)
    rows = math.ceil(len(runs) / PANELS_PER_ROW)
    columns = min(len(runs), PANELS_PER_ROW)
    size = (columns * max(4.2, 1.2 + 0.62 * longest), 0.5 + rows * 2.9)
    with figure(size, path) as canvas:
        axes = canvas.subplots(rows, columns, sharey=True, squeeze=False).flatten()
        for axis, run, part in zip(axes, runs, parts, strict=False):
            _draw_groups(axis, part)
            axis.set_xlim(-0.5, max(longest, 3) - 0.5)
            hidden = len(run.groups) + 1 - len(part)
            note = f"\n{hidden} smaller groups not shown" if hidden > 0 else ""
            axis.set_title(f"{run_name(run)}, {run.total.utterances} utterances{note}", fontsize=9)
            axis.yaxis.set_tick_params(labelleft=True)
            axis.set_ylabel("WER (%)")
        for axis in axes[len(runs) :]:
            axis.remove()
        handles, labels = axes[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper center", ncols=len(BARS), frameon=False)


def plot_diversity(runs: Sequence[AsrMetrics], path: Path) -> None:
    """Oracle WER, and the mean number of different hypotheses, against the length of the list."""
    longest = max(len(run.oracle_curve) for run in runs)
    with figure((9.5, 3.4 + 0.2 * math.ceil(len(runs) / 2)), path) as canvas:
        left, right = canvas.subplots(1, 2)
        for index, run in enumerate(runs):
            lengths = range(1, len(run.oracle_curve) + 1)
            line = {"marker": "o", "markersize": 3.5, **_line_style(index)}
            left.plot(lengths, [_percent(value) for value in run.oracle_curve], label=run_name(run), **line)
            right.plot(lengths, run.distinct_curve, **line)
        right.plot([1, longest], [1, longest], color="0.6", linestyle=":", linewidth=1)
        right.annotate(
            "all different", (longest, longest), xytext=(-16, 0), textcoords="offset points",
            ha="right", va="center", color="0.45", fontsize=8,
        )  # fmt: skip
        left.set_ylabel("oracle WER (%)")
        right.set_ylabel("different hypotheses (mean)")
        for axis in (left, right):
            axis.set_xlabel("list length n (hypotheses)")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        canvas.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)


def plot_throughput(runs: Sequence[Throughput], path: Path) -> None:
    """Utterances per second, and seconds of audio per second of computing, of each run."""
    names = [f"{run.name}\n{run.device}" for run in runs]
    panels = (
        ("utterances per second of computing", [run.utterances_per_second for run in runs]),
        ("seconds of audio per second of computing", [run.audio_seconds_per_second for run in runs]),
    )
    with figure((9.5, 1.2 + 0.5 * len(runs)), path) as canvas:
        for axis, (label, values) in zip(canvas.subplots(1, 2, sharey=True), panels, strict=True):
            bars = axis.barh(range(len(runs)), [value or 0 for value in values], height=0.6, color="#4c72b0")
            texts = ["not timed" if value is None else f"{value:.3g}" for value in values]
            axis.bar_label(bars, texts, padding=3, fontsize=8)
            axis.set_xlabel(label)
            axis.margins(x=0.18)
            axis.grid(axis="x", alpha=0.3)
            axis.set_yticks(range(len(runs)), names)
        axis.set_ylim(len(runs) - 0.4, -0.6)


def shown_groups(run: AsrMetrics) -> list[tuple[str, AsrScores]]:
    """The whole corpus, then its groups by name; of many, those with the most reference words."""
    largest = sorted(run.groups, key=lambda name: (-run.groups[name].words, name))[:MAX_GROUPS]
    return [(ALL, run.total), *((name, part) for name, part in run.groups.items() if name in largest)]


def read_throughput(path: Path) -> Throughput:
    """Speed of one run, from the side file of its n-best lists.

    Raises:
        UserError: the file is missing, or has no timing.
    """
    name = f"{path.parent.parent.name} / {path.parent.name}"
    meta = read_json(path)
    try:
        seconds, device = float(meta["seconds"]), str(meta["device"])
        rows, audio = int(meta["rows"]["out"]), float(meta["audio_seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"this side file tells no speed: {error!r}",
            where=str(path),
            fix="make it anew: `snakemake --cores all --forcerun gather_nbest`",
        ) from None
    if meta.get("from_journal") or seconds <= 0:
        return Throughput(name, device, None, None)
    return Throughput(name, device, rows / seconds, audio / seconds)


def run_name(run: AsrMetrics) -> str:
    """How a run is called in figures."""
    return f"{run.corpus} / {run.asr} / {run.scoring}"


@contextmanager
def figure(size: tuple[float, float], path: Path) -> Iterator[Any]:
    """A figure of `size` inches, written to `path` as SVG: no date, fixed ids, no display needed."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        canvas = Figure(figsize=size)
        yield canvas
        with atomic_writer(path, "wb") as handle:
            canvas.savefig(handle, format="svg", metadata={"Date": None})


def _draw_groups(axis: Any, parts: Sequence[tuple[str, AsrScores]]) -> None:
    width = 0.8 / len(BARS)
    for index, (label, color) in enumerate(BARS):
        rates = [_bar_rates(part)[index] for _, part in parts]
        places = [place + (index - 1) * width for place in range(len(parts))]
        heights = [_percent(item.value) for item in rates]
        axis.bar(places, heights, width * 0.92, color=color, label=label)
        _draw_intervals(axis, places, rates)
    axis.set_xticks(range(len(parts)), [f"{_shortened(name)}\n{part.words} words" for name, part in parts], fontsize=8)
    if len(parts) > 6:
        axis.tick_params(axis="x", labelrotation=60)
    axis.grid(axis="y", alpha=0.3)


def _shortened(name: str) -> str:
    """A group's name as a label: one line, and not too long for a figure."""
    line = " ".join(name.split())
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"


def _draw_intervals(axis: Any, places: Sequence[float], rates: Sequence[Rate]) -> None:
    known = [(place, item) for place, item in zip(places, rates, strict=True) if item.low is not None]
    axis.vlines(
        [place for place, _ in known],
        [_percent(item.low) for _, item in known],
        [_percent(item.high) for _, item in known],
        colors="#333333",
        linewidth=1,
    )


def _bar_rates(part: AsrScores) -> tuple[Rate, Rate, Rate]:
    return part.wer, part.mbr, part.oracle[max(part.oracle)]


def _line_style(index: int) -> dict[str, str]:
    return {"color": f"C{index % 10}", "linestyle": ("-", "--", ":", "-.")[index // 10 % 4]}


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value
