"""What users get wrong, and what befalls their files: a plain error or a rejected row, never a silent mistake."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from scored_runs import nbest_row, paths, run
from workspace import copy_workflow, snakemake

from utterflow.config.corpora import Columns
from utterflow.config.load import load_config, read_config_file
from utterflow.corpora.manifest import table_rows
from utterflow.corpora.prepare import prepare_corpus
from utterflow.corpora.speaker_tree import speaker_tree_files
from utterflow.errors import UserError
from utterflow.evaluate.files import score_texts
from utterflow.files import read_json, read_jsonl
from utterflow.records import RejectedRow
from utterflow.report.figures import LONGEST_LABEL, plot_wer

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO: dict[str, Any] = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())


def demo_with(section: str, name: str, **keys: Any) -> dict[str, Any]:
    return {**DEMO, section: {**DEMO[section], name: {**DEMO[section][name], **keys}}}


# configuration


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (demo_with("corpora", "commands", limit=True), "corpora.commands.limit = true\n  must be a whole number"),
        (
            demo_with("corpora", "commands", sample={"seed": False}),
            "commands.sample.seed = false\n  must be a whole number",
        ),
        (demo_with("asr", "beam", length_penalty=True), "asr.beam.length_penalty = true\n  must be a number"),
        (demo_with("corpora", "commands", max_rejected=True), "max_rejected = true\n  must be a number"),
        (demo_with("asr", "beam", model=""), "asr.beam.model = ''\n  must not be empty"),
        (demo_with("corpora", "commands", max_seconds=0.01), "max_seconds 0.01 is below min_seconds 0.05"),
        (demo_with("scoring", "default", oracle_at=[10**9]), "must be at most 1000"),
        (demo_with("corpora", "commands", noise={"snr_db": 5}), "snr_db: [5, 5]"),
        ({**DEMO, "runs": []}, "runs = []\n  needs at least 1"),
        ({**DEMO, "downloads": {"data/{x}.tar": {"url": "https://a.b/c"}}}, "data/x.tar: ..."),
        ({**DEMO, "downloads": {"data/": {"url": "https://a.b/c"}}}, "stored below data/"),
        ({**DEMO, "downloads": {"data//x": {"url": "https://a.b/c"}}}, "data/x: ..."),
    ],
    ids=lambda value: value[:30].replace("\n", " ") if isinstance(value, str) else "",
)
def test_what_cannot_be_meant_is_refused(raw: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(raw)
    assert "1 problem" in str(refused.value)
    assert says in str(refused.value)


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    raw = demo_with("asr", "beam", **yaml.safe_load("{temperature: 1e-1, batch_size: '4'}"))
    variant = load_config(raw).asr["beam"]
    assert (variant.temperature, variant.batch_size) == (0.1, 4)


def test_a_section_inside_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "cyclic.yaml"
    path.write_text("asr: &a\n  beam: *a\n")
    with pytest.raises(UserError, match="holds itself"):
        read_config_file(path)


@pytest.fixture(scope="module")
def workflow_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workflow")
    copy_workflow(folder, "Makefile")
    return folder


def test_snakemake_too_refuses_a_key_that_stands_twice(workflow_copy: Path) -> None:
    (workflow_copy / "twice.yaml").write_text("title: a\nscoring:\n  default: {}\ntitle: b\n")
    done = snakemake(workflow_copy, "--dry-run", "--configfile", "twice.yaml")
    assert done.returncode == 1
    assert "a key stands twice in one section: `title` on line 1 and again on line 4" in done.stdout
    assert "Traceback" not in done.stdout


def test_an_overlay_needs_the_file_that_it_lies_over(workflow_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text("title: a\n")
    done = snakemake(
        tmp_path, "--dry-run", "--snakefile", str(workflow_copy / "Snakefile"), "--configfile", "overlay.yaml"
    )
    assert done.returncode == 1
    assert "lies over config/config.yaml, and there is none in" in done.stdout
    assert "run snakemake in the folder of the Snakefile" in done.stdout


def test_make_report_before_any_results(workflow_copy: Path) -> None:
    done = subprocess.run(
        ["make", "--old-file=.venv/.ready", "report"], cwd=workflow_copy, text=True, capture_output=True, check=False
    )
    assert done.returncode != 0
    assert "error: no results yet to report; run make demo or snakemake first" in done.stderr


# tables of recordings


def rows_of(folder: Path, name: str, content: str) -> tuple[list[dict[str, Any]], list[RejectedRow]]:
    path = folder / name
    path.write_bytes(content.encode())
    rows = [row for _, row in table_rows(path, Columns())]
    good = [dict(row) for row in rows if not isinstance(row, RejectedRow)]
    return good, [row for row in rows if isinstance(row, RejectedRow)]


def test_an_open_quote_swallows_no_rows(tmp_path: Path) -> None:
    good, bad = rows_of(tmp_path, "t.csv", 'id,audio,text\na,a.wav,x\nb,b.wav,"open\nc,c.wav,y\nd,d.wav,"z, z"\n')
    assert [(row["id"], row["text"]) for row in good] == [("a", "x"), ("c", "y"), ("d", "z, z")]
    assert [row.id for row in bad] == ["line 3"]
    assert "its other quotes doubled" in bad[0].reason


def test_quotes_in_a_tab_separated_table_are_text_unless_they_enclose(tmp_path: Path) -> None:
    lines = [
        "id\taudio\ttext",
        'a\ta.wav\t"Yes," she said',
        'b\tb.wav\t"open',
        'c\tc.wav\t"in ""quotes"""',
        "d\td.wav\tz",
    ]
    good, bad = rows_of(tmp_path, "t.tsv", "\n".join(lines))
    assert [row["text"] for row in good] == ['"Yes," she said', '"open', 'in "quotes"', "z"]
    assert not bad


def test_cells_over_several_lines_are_one_row(tmp_path: Path) -> None:
    good, bad = rows_of(tmp_path, "t.csv", 'id,audio,text\r\na,a.wav,"one\r\ntwo"\r\nb,b.wav\r\nc,c.wav,x\r\n')
    assert [(row["id"], row["text"]) for row in good] == [("a", "one\ntwo"), ("c", "x")]
    assert [(row.id, row.reason) for row in bad] == [("line 4", "unreadable: 2 cells under a header of 3")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("id,audio,text\ra,a.wav,x\r", "lines ending in LF or CRLF"),
        ('id,audio,"text\na,a.wav,x\n', "unexpected end of data"),
        ("id,audio,text,text\na,a.wav,x,y\n", "several columns are called 'text'"),
        ("id, audio, text\na, a.wav, x\n", "one of: 'id', ' audio', ' text'"),
        ("\n", "has no header"),
    ],
)
def test_headers_that_cannot_be_used(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        rows_of(tmp_path, "t.csv", content)


# rows that no file can hold


def prepare(folder: Path, lines: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    soundfile.write(folder / "a.wav", [0.1, -0.1] * 8000, 16_000)
    (folder / "TABLE.JSONL").write_text("\n".join(lines))
    out = {name: folder / f"manifest.{name}" for name in ("jsonl", "rejected.jsonl", "meta.json")}
    config = {"adapter": "manifest", "path": str(folder / "TABLE.JSONL"), "max_rejected": 0.9}
    prepare_corpus(config, out["jsonl"], out["rejected.jsonl"], out["meta.json"], code="c")
    return tuple([row for _, row in read_jsonl(out[name])] for name in ("jsonl", "rejected.jsonl"))  # type: ignore[return-value]


def test_half_characters_and_bottomless_rows_are_rejected(tmp_path: Path) -> None:
    def line(name: str, text: str = "x") -> str:
        return json.dumps({"id": name, "audio": "a.wav", "text": text})

    deep = f'{{"id": "deep", "v": {"[" * 100_000}{"]" * 100_000}}}'
    good, bad = prepare(tmp_path, [line("\ud800"), line("t", "\udfff"), line("\ud800"), deep, line("a")])
    assert [row["id"] for row in good] == ["a"]
    assert [row["id"] for row in bad] == ["?", "t", "?", "line 4"]
    assert [row["reason"].split(":")[0] for row in bad] == ["unreadable", "unreadable", "repeated id", "unreadable"]


def test_byte_order_marks_are_skipped(tmp_path: Path) -> None:
    for name in ("ref.jsonl", "hyp.jsonl"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\r\n')
    assert score_texts(tmp_path / "ref.jsonl", tmp_path / "hyp.jsonl", "none")["wer"] == 0
    (tmp_path / "speaker.json").write_bytes(b'\xef\xbb\xbf{"Files": []}')
    assert read_json(tmp_path / "speaker.json") == {"Files": []}


def test_json_without_bottom_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deep"):
        read_json(tmp_path / "deep.json")
    with pytest.raises(UserError, match=r"nested too deep\n.*line 1"):
        list(read_jsonl(tmp_path / "deep.json"))


def test_hidden_folders_are_no_speakers(tmp_path: Path) -> None:
    from utterflow.config.corpora import SpeakerTreeCorpus

    for name in ("S1", ".git", ".ipynb_checkpoints"):
        (tmp_path / "Dev" / name).mkdir(parents=True)
    files = speaker_tree_files(SpeakerTreeCorpus(adapter="speaker_tree", root=str(tmp_path), split="Dev"))
    assert files == [str(tmp_path / "Dev" / "S1" / "S1.json")]


# groups


def test_a_group_called_all_leaves_the_total_alone(tmp_path: Path) -> None:
    rows = [
        nbest_row("a", "one two", ["one two"], group="(all)"),
        nbest_row("b", "one", ["two"], group="(none)"),
        nbest_row("c", "one", ["one"], group=None),
    ]
    metrics = run(tmp_path, rows)
    assert {name: part.words for name, part in metrics.groups.items()} == {'"(all)"': 2, '"(none)"': 1, "(none)": 1}
    with paths(tmp_path)["table"].open(newline="") as handle:
        words = {
            row["group"]: row["value"] for row in csv.DictReader(handle, delimiter="\t") if row["metric"] == "words"
        }
    assert words == {"(all)": "4", '"(all)"': "2", '"(none)"': "1", "(none)": "1"}


def test_odd_group_names_can_be_drawn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    names = ["$\\nonsense$", "g" * 300, "a\tb\nc", "<b>x</b>"]
    metrics = run(tmp_path, [nbest_row(f"r{number}", "one", ["two"], group=name) for number, name in enumerate(names)])
    plot_wer([metrics], tmp_path / "wer.svg")
    drawn = (tmp_path / "wer.svg").read_text()
    assert "<b>" not in drawn
    assert f"<!-- {'g' * (LONGEST_LABEL - 1)}…" in drawn
    assert not [warning for warning in recwarn if "constrained_layout" in str(warning.message)]


# the command line


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = "import sys; from utterflow.cli import main; sys.exit(main(['config', 'schema']))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
