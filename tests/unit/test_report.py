"""Summary table, page and figures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scored_runs import ROWS, paths, run

from utterflow.cli import main
from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.errors import UserError
from utterflow.files import write_json
from utterflow.records import AsrMetrics, Rate
from utterflow.report.figures import MAX_GROUPS, plot_asr, read_throughput, shown_groups
from utterflow.report.summary import relative_gain, summarize_asr

CFG = {"name": "demo", "title": "Demo <of> a & b"}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    cfg = Scoring(normalizer="none", oracle_at=(1, 3), bootstrap=Bootstrap(samples=200))
    (tmp_path / "scores").mkdir()
    run(tmp_path / "scores", ROWS, cfg)
    return paths(tmp_path / "scores")["metrics"]


def variant(metrics: Path, asr: str) -> Path:
    """The same metrics under another ASR variant's name."""
    copy = metrics.with_name(f"{asr}.json")
    write_json(copy, {**json.loads(metrics.read_text()), "asr": asr})
    return copy


def nbest_meta(folder: Path, corpus: str, asr: str, **changes: object) -> Path:
    meta = {
        "rows": {"in": 21, "out": 20, "rejected": 1},
        "seconds": 4.0,
        "audio_seconds": 60.0,
        "device": "cpu",
    }
    path = folder / "asr" / corpus / asr / "nbest.meta.json"
    write_json(path, {**meta, **changes})
    return path


def summarize(folder: Path, metrics: list[Path]) -> tuple[Path, str]:
    table, page = folder / "asr_summary.tsv", folder / "asr_summary.html"
    summarize_asr(metrics, table=table, page=page, meta=folder / "asr_summary.meta.json", cfg=CFG, code="c")
    return table, page.read_text()


def test_summary_table_has_a_row_per_run(tmp_path: Path, metrics: Path):
    table, _ = summarize(tmp_path, [metrics, variant(metrics, "pool")])
    with table.open() as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    assert [(row["corpus"], row["asr"], row["scoring"]) for row in rows] == [
        ("demo", "nano", "plain"),
        ("demo", "pool", "plain"),
    ]
    first = rows[0]
    assert float(first["wer"]) == pytest.approx(4 / 7, abs=1e-6)
    assert float(first["wer_low"]) <= float(first["wer"]) <= float(first["wer_high"])
    assert (first["oracle_n"], first["n"], first["rejected"]) == ("3", "4", "0")
    assert float(first["oracle"]) == pytest.approx(2 / 7, abs=1e-6)
    assert float(first["relative_oracle_gain"]) == pytest.approx(0.5)
    meta = json.loads((tmp_path / "asr_summary.meta.json").read_text())
    assert meta["rows"]["in"] == 2
    assert set(meta["outputs"]) == {"asr_summary.tsv", "asr_summary.html"}


def test_summary_page_stands_alone_and_is_escaped(tmp_path: Path, metrics: Path):
    _, page = summarize(tmp_path, [metrics])
    assert "<title>Demo &lt;of&gt; a &amp; b</title>" in page
    assert "57.14 [" in page
    assert "28.57 [" in page
    assert "95% bootstrap" in page
    assert "http" not in page
    ElementTree.fromstring(page.replace("<!doctype html>", "").replace('<meta charset="utf-8">', ""))


def test_undefined_rates_are_said_so(tmp_path: Path):
    silent = [row for row in ROWS if row["text"] == ""]
    run(tmp_path, silent, Scoring())
    table, page = summarize(tmp_path, [paths(tmp_path)["metrics"]])
    assert "undefined" in page
    assert "\tnan" not in table.read_text().replace("\tnano", "")


def test_relative_gain():
    assert relative_gain(Rate(value=0.2), Rate(value=0.05)) == pytest.approx(0.75)
    assert relative_gain(Rate(value=0.0), Rate(value=0.0)) is None
    assert relative_gain(Rate(value=None), Rate(value=0.1)) is None


def test_report_summary_prints_an_aligned_table(tmp_path: Path, metrics: Path, capsys: pytest.CaptureFixture[str]):
    table, _ = summarize(tmp_path, [metrics, variant(metrics, "a_long_variant_name")])
    assert main(["report", "summary", "--path", str(table)]) == 0
    heading, rule, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["corpus", "ASR", "scoring"]
    assert set(rule) == {"-"}
    assert len(lines) == 2
    assert len({len(line) for line in (heading, *lines)}) == 1
    assert "57.14 [" in lines[0]
    assert lines[1].index("plain") == heading.index("scoring")


@pytest.mark.parametrize("content", [None, "", "corpus\tasr\na\tb\n"], ids=["missing", "empty", "other table"])
def test_report_summary_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None):
    path = tmp_path / "asr_summary.tsv"
    if content is not None:
        path.write_text(content)
    assert main(["report", "summary", "--path", str(path)]) == 2
    message = capsys.readouterr().err
    assert "asr_summary.tsv" in message
    assert "do:" in message


def plot(folder: Path, metrics: list[Path], meta: list[Path]) -> dict[str, bytes]:
    figures = {name: folder / f"asr_{name}.svg" for name in ("wer", "diversity", "throughput")}
    plot_asr(metrics, meta, **figures, meta=folder / "asr_figures.meta.json", cfg={}, code="c")
    return {name: path.read_bytes() for name, path in figures.items()}


@pytest.mark.parametrize("count", [1, 12])
def test_figures_are_svg_with_the_same_bytes_each_time(tmp_path: Path, metrics: Path, count: int):
    runs = [variant(metrics, f"asr{index}") for index in range(count)]
    meta = [nbest_meta(tmp_path, "demo", f"asr{index}") for index in range(count)]
    first = plot(tmp_path / "one", runs, meta)
    assert first == plot(tmp_path / "two", runs, meta)
    for content in first.values():
        assert ElementTree.fromstring(content).tag.endswith("svg")
    written = b"<!-- demo / asr0 / plain, 4 utterances -->"
    assert written in first["wer"]
    assert f"<!-- demo / asr{count - 1} / plain -->".encode() in first["diversity"]
    assert b"<!-- WER (%) -->" in first["wer"]
    assert b"<!-- list length n (hypotheses) -->" in first["diversity"]


def test_throughput_is_rows_and_audio_by_seconds(tmp_path: Path):
    speed = read_throughput(nbest_meta(tmp_path, "demo", "nano"))
    assert (speed.name, speed.device) == ("demo / nano", "cpu")
    assert (speed.utterances_per_second, speed.audio_seconds_per_second) == (5.0, 15.0)


def test_a_resumed_run_is_not_timed(tmp_path: Path, metrics: Path):
    meta = nbest_meta(tmp_path, "demo", "nano", from_journal=7)
    assert read_throughput(meta).utterances_per_second is None
    assert b"<!-- not timed -->" in plot(tmp_path, [metrics], [meta])["throughput"]


def test_a_side_file_without_times_is_named(tmp_path: Path):
    path = nbest_meta(tmp_path, "demo", "nano", seconds=None)
    with pytest.raises(UserError, match=r"tells no speed[\s\S]*nbest\.meta\.json"):
        read_throughput(path)


def test_of_many_groups_the_largest_are_shown(metrics: Path):
    run_metrics = AsrMetrics.model_validate(json.loads(metrics.read_text()))
    part = run_metrics.total
    groups = {f"g{index:02}": part.model_copy(update={"words": index}) for index in range(MAX_GROUPS + 5)}
    shown = shown_groups(run_metrics.model_copy(update={"groups": groups}))
    assert [name for name, _ in shown] == ["(all)", *sorted(groups)[5:]]


def test_without_runs_there_is_nothing_to_report(tmp_path: Path):
    with pytest.raises(UserError, match="no run to report"):
        summarize(tmp_path, [])
    with pytest.raises(UserError, match="no run to draw"):
        plot(tmp_path, [], [])


def test_a_file_that_is_no_metrics_file_is_named(tmp_path: Path):
    write_json(tmp_path / "other.json", {"corpus": "a"})
    with pytest.raises(UserError, match=r"field `asr`[\s\S]*other\.json"):
        summarize(tmp_path, [tmp_path / "other.json"])
