"""Summary table, page and figure of corrections."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from corrected_runs import FILES, ITEMS, PLAIN, run

from utterflow.config.scoring import Bootstrap
from utterflow.errors import UserError
from utterflow.files import write_json
from utterflow.report.corrections import corrections_table, read_correction, summarize_corrections

CFG = {"name": "demo", "title": "Demo <of> a & b"}
OUTPUTS = {"table": "corrections.tsv", "page": "corrections.html", "wer": "corrections_wer.svg"}


def metrics_files(folder: Path, count: int, samples: int = 100) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    cfg = PLAIN.model_copy(update={"bootstrap": Bootstrap(samples=samples)})
    run(folder, ITEMS, cfg, rejected=(2, 0))
    metrics = json.loads((folder / FILES["metrics"]).read_text())
    paths = [folder / f"fixed{index}.json" for index in range(count)]
    for index, path in enumerate(paths):
        write_json(path, {**metrics, "correction": f"fixed{index}"})
    return paths


def summarize(folder: Path, metrics: list[Path]) -> dict[str, bytes]:
    files = {name: folder / file for name, file in OUTPUTS.items()}
    summarize_corrections(metrics, **files, meta=folder / "corrections.meta.json", cfg=CFG, code="c")
    return {name: path.read_bytes() for name, path in files.items()}


def test_a_row_per_correction(tmp_path: Path) -> None:
    written = summarize(tmp_path, metrics_files(tmp_path / "scores", 2))
    rows = list(csv.DictReader(written["table"].decode().splitlines(), delimiter="\t"))
    assert [row["correction"] for row in rows] == ["fixed0", "fixed1"]
    first = rows[0]
    assert (first["n"], first["rejected"], first["beats_mbr"]) == ("4", "2", "false")
    assert float(first["corrected"]) == pytest.approx(4 / 7, abs=1e-6)
    assert float(first["corrected_low"]) <= float(first["corrected"]) <= float(first["corrected_high"])
    assert float(first["oracle"]) == pytest.approx(2 / 7, abs=1e-6)
    meta = json.loads((tmp_path / "corrections.meta.json").read_text())
    assert set(meta["outputs"]) == set(OUTPUTS.values())


def test_the_page_stands_alone_and_is_escaped(tmp_path: Path) -> None:
    page = summarize(tmp_path, metrics_files(tmp_path / "scores", 1))["page"].decode()
    assert "<title>Demo &lt;of&gt; a &amp; b</title>" in page
    assert "57.14 [" in page
    assert ">false<" in page
    assert "http" not in page
    ElementTree.fromstring(page.replace("<!doctype html>", ""))


@pytest.mark.parametrize("count", [1, 4])
def test_the_figure_is_svg_with_the_same_bytes_each_time(tmp_path: Path, count: int) -> None:
    metrics = metrics_files(tmp_path / "scores", count)
    figure = summarize(tmp_path / "one", metrics)["wer"]
    assert figure == summarize(tmp_path / "two", metrics)["wer"]
    assert ElementTree.fromstring(figure).tag.endswith("svg")
    for text in ("first candidate", "MBR choice", "corrected", "oracle", f"fixed{count - 1} / plain", "WER (%)"):
        assert f"<!-- {text} -->".encode() in figure
    assert b"different candidates in the list" in figure


def test_without_intervals_there_is_no_test(tmp_path: Path) -> None:
    metrics = metrics_files(tmp_path / "scores", 1, samples=0)
    written = summarize(tmp_path, metrics)
    assert b"not tested" in written["page"]
    (row,) = corrections_table([read_correction(metrics[0])])
    assert (row["corrected_low"], row["less_mbr_p_value"]) == ("", "")


def test_faults(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no correction to report"):
        summarize(tmp_path, [])
    write_json(tmp_path / "other.json", {"corpus": "a"})
    with pytest.raises(UserError, match=r"field `correction`[\s\S]*other\.json"):
        summarize(tmp_path, [tmp_path / "other.json"])
