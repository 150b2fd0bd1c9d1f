"""Stage `score_asr`: from n-best rows to metrics, table, rows and side file."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
from scored_runs import PLAIN, ROWS, nbest_row, paths, run

from utterflow.config.scoring import Bootstrap, Scoring
from utterflow.errors import UserError
from utterflow.evaluate.score import TABLE_COLUMNS
from utterflow.files import file_sha256
from utterflow.records import RejectedRow, ScoredRow, read_records
from utterflow.report.summary import read_metrics, summary_row


def test_rows_that_earlier_stages_rejected_are_counted(tmp_path):
    for stage, count in (("prepare_corpus", 2), ("transcribe", 1)):
        (tmp_path / f"{stage}.meta.json").write_text(json.dumps({"rows": {"rejected": count}}))
    earlier = {stage: tmp_path / f"{stage}.meta.json" for stage in ("prepare_corpus", "transcribe")}
    metrics = run(tmp_path, ROWS, earlier=earlier)
    assert metrics.rejected_before == {"prepare_corpus": 2, "transcribe": 1}
    assert summary_row(metrics)["rejected"] == str(3 + metrics.rows["rejected"])


def test_hand_computed_totals(tmp_path: Path):
    total = run(tmp_path, ROWS).total
    assert (total.utterances, total.words, total.empty_references) == (4, 7, 1)
    assert (total.hits, total.substitutions, total.deletions, total.insertions) == (6, 0, 1, 3)
    assert total.wer.value == pytest.approx(4 / 7)
    # b: 2 edits on 1 word and d: 1 edit on none are cut to the reference length
    assert total.clipped_wer == pytest.approx(2 / 7)
    assert total.sentence_error_rate == 3 / 4
    assert {n: item.value for n, item in total.oracle.items()} == pytest.approx({1: 4 / 7, 2: 2 / 7, 3: 2 / 7})
    # a: the first; b: "stop it" is closest to the others; c: a tie, the first; d: the only one
    assert total.mbr.value == pytest.approx((1 + 1 + 0 + 1) / 7)
    assert total.compositional_oracle.value == 0
    assert (total.mean_hypotheses, total.mean_distinct_hypotheses) == (9 / 4, 9 / 4)
    assert total.fallback_share == 1 / 4
    assert total.characters == len("turn on the light" + "stop" + "play jazz")
    assert total.cer == pytest.approx((len("the ") + len(" it now") + len("noise")) / total.characters)


def test_curves_go_on_with_the_last_value_of_shorter_lists(tmp_path: Path):
    metrics = run(tmp_path, ROWS, Scoring(normalizer="none", oracle_at=(4,)))
    assert metrics.oracle_curve == pytest.approx([4 / 7, 2 / 7, 2 / 7, 2 / 7])
    assert metrics.distinct_curve == [1, 7 / 4, 9 / 4, 9 / 4]


def test_groups_add_up_and_none_is_a_group_of_its_own(tmp_path: Path):
    metrics = run(tmp_path, [*ROWS, nbest_row("e", "go", ["no"])])
    assert list(metrics.groups) == ["f", "m", "(none)"]
    assert metrics.groups["f"].wer.value == pytest.approx(1 / 6)
    assert metrics.groups["m"].wer.value == pytest.approx(3 / 1)
    assert metrics.groups["(none)"].words == 1
    for name in (
        "utterances",
        "words",
        "insertions",
        "deletions",
        "substitutions",
        "hits",
        "character_edits",
    ):
        assert sum(getattr(part, name) for part in metrics.groups.values()) == getattr(metrics.total, name)


def test_a_corpus_without_groups_has_none(tmp_path: Path):
    assert run(tmp_path, [nbest_row("a", "go", ["go"])]).groups == {}


def test_files_say_the_same(tmp_path: Path):
    metrics = run(tmp_path, ROWS)
    files = paths(tmp_path)
    assert read_metrics(files["metrics"]) == metrics
    with files["table"].open() as handle:
        table = list(csv.DictReader(handle, delimiter="\t"))
    assert tuple(table[0]) == TABLE_COLUMNS
    values = {(line["group"], line["metric"]): line for line in table}
    assert len(values) == len(table)
    assert {line["corpus"] + line["asr"] + line["scoring"] for line in table} == {"demonanoplain"}
    assert float(values["(all)", "wer"]["value"]) == pytest.approx(4 / 7, abs=1e-6)
    assert float(values["(all)", "wer"]["low"]) <= 4 / 7 <= float(values["(all)", "wer"]["high"])
    assert values["f", "oracle@2"]["n"] == "2"
    assert values["m", "insertions"]["value"] == "3"


def test_rows_hold_what_totals_are_made_of(tmp_path: Path):
    total = run(tmp_path, ROWS).total
    scored = list(read_records(paths(tmp_path)["rows"], ScoredRow))
    assert [row.id for row in scored] == ["a", "b", "c", "d"]
    words = sum(row.words for row in scored)
    assert sum(row.first_edits for row in scored) / words == total.wer.value
    assert sum(row.mbr_edits for row in scored) / words == total.mbr.value
    assert sum(row.oracle_edits for row in scored) / words == total.oracle[3].value
    assert [(row.oracle_rank, row.mbr_rank, row.distinct) for row in scored] == [
        (1, 0, 3), (1, 2, 3), (0, 0, 2), (0, 0, 1),
    ]  # fmt: skip


def test_rows_without_reference_are_rejected_with_their_reason(tmp_path: Path):
    metrics = run(tmp_path, [*ROWS, nbest_row("x", None, ["hm"])], PLAIN.model_copy(update={"max_rejected": 0.2}))
    assert metrics.rows == {"in": 5, "out": 4, "rejected": 1}
    rejected = list(read_records(paths(tmp_path)["rejected"], RejectedRow))
    assert rejected == [RejectedRow(id="x", stage="score_asr", reason="no reference text")]
    assert metrics.total.utterances == 4


def test_the_side_file_tells_config_inputs_and_outputs(tmp_path: Path):
    run(tmp_path, ROWS)
    files = paths(tmp_path)
    meta = json.loads(files["meta"].read_text())
    assert meta["config"] == PLAIN.model_dump(mode="json")
    assert meta["code"] == "abc"
    assert meta["rows"] == {"in": 4, "out": 4, "rejected": 0}
    assert meta["inputs"] == {str(tmp_path / "nbest.jsonl"): file_sha256(tmp_path / "nbest.jsonl")}
    outputs = {path.name: file_sha256(path) for name, path in files.items() if name != "meta"}
    assert meta["outputs"] == outputs


def test_too_many_rejected_rows_fail_and_leave_no_metrics(tmp_path: Path):
    with pytest.raises(UserError, match=r"1 of 5 rows \(20\.0%\)[\s\S]*x[\s\S]*max_rejected"):
        run(tmp_path, [*ROWS, nbest_row("x", None, ["hm"])])
    assert [path.name for path in tmp_path.iterdir()] == ["nbest.jsonl"]


@pytest.mark.parametrize("rows", [[], [nbest_row("x", None, ["hm"])]], ids=["no row", "no reference at all"])
def test_nothing_to_score_fails(tmp_path: Path, rows: list[dict[str, Any]]):
    with pytest.raises(UserError, match=r"no row to score|1 of 1 rows"):
        run(tmp_path, rows, Scoring(max_rejected=1))


def test_a_bad_row_is_named(tmp_path: Path):
    broken = {**ROWS[0], "asr_hypotheses": []}
    with pytest.raises(UserError, match=r"asr_hypotheses[\s\S]*nbest\.jsonl, line 2"):
        run(tmp_path, [ROWS[1], broken])


def test_bootstrap_by_speaker(tmp_path: Path):
    def cfg(unit: str) -> Scoring:
        return Scoring(normalizer="none", bootstrap=Bootstrap(samples=200, unit=unit))

    rows = [row for row in ROWS if row["text"]] * 5
    by_speaker, by_utterance = (run(tmp_path, rows, cfg(unit)).total.wer for unit in ("speaker", "utterance"))
    assert by_speaker.value == by_utterance.value
    # two speakers: all draws of one of them alone, at least one in four
    assert (by_speaker.low, by_speaker.high) == (pytest.approx(1 / 6), pytest.approx(2.0))
    assert by_speaker.high > by_utterance.high
    with pytest.raises(UserError, match=r"no row has a speaker[\s\S]*unit: utterance"):
        run(tmp_path, [nbest_row("a", "go", ["go"])], cfg("speaker"))


def test_without_samples_there_is_no_interval(tmp_path: Path):
    wer = run(tmp_path, ROWS, Scoring(bootstrap=Bootstrap(samples=0))).total.wer
    assert (wer.low, wer.high) == (None, None)
    assert wer.value is not None


def test_a_group_without_reference_words_has_no_rate(tmp_path: Path):
    part = run(tmp_path, [*ROWS[:3], nbest_row("d", "", ["noise"], group="silence")]).groups["silence"]
    assert (part.wer.value, part.cer, part.clipped_wer) == (None, None, None)
    assert part.insertions == 1


def test_the_normalizer_is_used(tmp_path: Path):
    rows = [nbest_row("a", "Turn on 2 lights!", ["turn on two lights"])]
    assert run(tmp_path, rows).total.wer.value == 3 / 4
    assert run(tmp_path, rows, Scoring(normalizer="basic")).total.wer.value == 1 / 4
    assert run(tmp_path, rows, Scoring(normalizer="whisper_english")).total.wer.value == 0


def test_totals_are_jiwers(tmp_path: Path):
    total = run(tmp_path, ROWS).total
    references = [row["text"] for row in ROWS]
    first = [row["asr_hypotheses"][0]["text"] for row in ROWS]
    assert total.wer.value == jiwer.process_words(references, first).wer
    assert total.cer == jiwer.process_characters(references, first).cer


def test_same_input_same_bytes(tmp_path: Path):
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, ROWS, Scoring())
        digests.append([file_sha256(path) for key, path in paths(tmp_path / name).items() if key != "meta"])
    assert digests[0] == digests[1]
