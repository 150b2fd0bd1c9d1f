"""The embedded demo, run for real: its numbers mean something, and a killed run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import workspace
import yaml

from utterflow.cli import main
from utterflow.config.load import load_config
from utterflow.files import read_jsonl
from utterflow.records import (
    BeamsRow,
    CandidatesRow,
    NbestRow,
    PredictionRow,
    RationaleRow,
    SftRow,
    TrialRow,
    read_records,
)
from utterflow.targets import asr_runs

pytestmark = pytest.mark.timeout(1800)  # the demo takes minutes, more where other work goes on

CORRECTIONS = ("heard", "decoded")
RECORDINGS = {"train": 800, "val": 60, "test": 260}  # trials of the demo's partitions


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as this checkout has run it (`make demo`) where nothing is left to do; else as a fresh copy runs it."""
    finished = make_copy(tmp_path_factory.mktemp("finished"))
    if workspace.copy_results(finished, "demo"):
        return finished
    fresh = make_copy(tmp_path_factory.mktemp("fresh"))
    done = workspace.snakemake(fresh, "demo", timeout=1500)
    assert done.returncode == 0, done.stdout[-6000:]
    return fresh


def make_copy(folder: Path) -> Path:
    workspace.copy_workflow(folder, "resources")
    workspace.copy_tools(folder)
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def scores(demo: Path) -> dict[tuple[str, str], dict[str, Any]]:
    config = load_config(yaml.safe_load((demo / "config/config.yaml").read_text()))
    return {
        (corpus, asr): read(demo / f"results/evaluate/{corpus}/{asr}/{scoring}.json")["total"]
        for corpus, asr, scoring in asr_runs(config)
    }


def test_the_numbers_mean_something(demo):
    """1-best WER of 5-35% on sentences that were not in training, oracle WER@5 at least a quarter lower."""
    commands = {asr: total for (corpus, asr), total in scores(demo).items() if corpus == "commands"}
    assert commands.keys() == {"group_beam", "beam", "pool"}
    for asr, total in commands.items():
        first, oracle = total["wer"]["value"], total["oracle"]["5"]["value"]
        assert 0.05 <= first <= 0.35, asr
        assert oracle <= 0.75 * first, asr
        assert total["wer"]["low"] < first < total["wer"]["high"], asr
        assert total["compositional_oracle"]["value"] <= oracle, asr


def test_test_sentences_are_not_in_training(demo):
    texts = {
        name: {row["sentence"] for _, row in read_jsonl(demo / f"resources/demo/slurp/{name}.jsonl")}
        for name in ("train", "test")
    }
    assert len(texts["test"]) > 200 and texts["test"].isdisjoint(texts["train"])


def test_distorted_voices_are_harder(demo):
    config = json.loads((demo / "results/evaluate/atypical/beam/default.json").read_text())
    groups = {name: values["wer"]["value"] for name, values in config["groups"].items()}
    assert groups["typical"] < min(value for name, value in groups.items() if name != "typical")


def test_all_rows_are_accounted_for(demo):
    for corpus in ("commands", "atypical"):
        rows = json.loads((demo / f"results/corpora/{corpus}/manifest.meta.json").read_text())["rows"]
        assert rows["in"] == rows["out"] + rows["rejected"] > 100
        for asr in ("group_beam", "beam", "pool"):
            counts = json.loads((demo / f"results/asr/{corpus}/{asr}/nbest.meta.json").read_text())["rows"]
            assert counts["in"] == rows["out"] == counts["out"] + counts["rejected"]


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_corrector_is_right_more_often_than_the_first_candidate(demo, name):
    """Of `heard` by far; the oracles bound what the choices from the list can reach."""
    metrics = read(demo / f"results/corrections/{name}/default.json")
    total = metrics["total"]
    wer = {system: found["wer"]["value"] for system, found in total["systems"].items()}
    assert wer["corrected"] < wer["first"]
    less = total["corrected_less_first"]
    assert less["value"] == pytest.approx(wer["corrected"] - wer["first"])
    assert less["low"] <= less["value"] <= less["high"]
    assert (total["beats_first"] == "true") == (less["p_value"] < 0.05)
    if name == "heard":
        assert less["high"] < 0 and total["beats_mbr"] == "true"
    assert wer["oracle"] <= wer["oracle@5"] <= wer["oracle@2"] <= wer["oracle@1"] == wer["first"]
    assert wer["oracle"] <= wer["mbr"] and wer["compositional_oracle"] <= wer["oracle"]
    assert total["beats_mbr"] in ("true", "false", "not significant")
    assert total["corrected_less_mbr"]["value"] == pytest.approx(wer["corrected"] - wer["mbr"])
    assert total["utterances"] == metrics["rows"]["out"] >= 250
    for group in metrics["groups"].values():
        assert group["systems"].keys() == total["systems"].keys()


def test_commands_as_heard_and_as_decoded_leave_something_to_mend(demo):
    """Neither hopeless nor solved: the first candidates have a WER of 5-50%, and the lists hold better ones."""
    for name in CORRECTIONS:
        systems = read(demo / f"results/corrections/{name}/default.json")["total"]["systems"]
        assert 0.05 <= systems["first"]["wer"]["value"] <= 0.5, name
        assert systems["oracle"]["wer"]["value"] <= 0.8 * systems["first"]["wer"]["value"], name


def test_trials_have_ten_different_beams_best_first(demo):
    for partition, count in RECORDINGS.items():
        folder = demo / "results/beams/phones" / partition
        rows = list(read_records(folder / "beams.jsonl", BeamsRow))
        rejected = [row for _, row in read_jsonl(folder / "beams.rejected.jsonl")]
        assert len(rows) + len(rejected) == count and len(rejected) <= 0.01 * count
        assert {row.logits for row in rows} == {"cross_fitted" if partition == "train" else "held_out"}
        for row in rows:
            texts = [beam.text for beam in row.beams]
            assert len(set(texts)) == len(texts) <= 10, row.id
            assert [beam.score for beam in row.beams] == sorted((beam.score for beam in row.beams), reverse=True)
        assert sum(len(row.beams) == 10 for row in rows) >= 0.99 * len(rows)


def test_no_trial_is_decoded_by_an_encoder_that_has_learnt_it(demo):
    """Each train trial's logits come from the one fold that left it out; the folds leave out all, each once."""
    metrics = [read(demo / f"results/encoders/phones/{fold}/metrics.json") for fold in ("full", "0", "1")]
    assert [item["left_out"] > 0 for item in metrics] == [False, True, True]
    assert metrics[1]["left_out"] + metrics[2]["left_out"] == metrics[0]["trials"]["train"] == RECORDINGS["train"]
    trials = list(read_records(next((demo / "results/logits/phones/train/shards").glob("*.trials.jsonl")), TrialRow))
    assert {row.logits for row in trials} == {"cross_fitted"} and len(trials) == RECORDINGS["train"]


def test_the_corrector_is_not_asked_what_it_has_learnt(demo):
    for name in CORRECTIONS:
        texts = {
            split: {row.target for row in read_records(demo / f"results/sft/{name}/{split}.jsonl", SftRow)}
            for split in ("train", "test")
        }
        assert len(texts["test"]) > 200 and texts["test"].isdisjoint(texts["train"]), name


@pytest.mark.parametrize("name", CORRECTIONS)
def test_the_correctors_rows_are_accounted_for(demo, name):
    """From stage to stage the counts go on, and what was rejected on the way stands in the metrics."""
    results = demo / "results"
    sft, finetune, generate = results / f"sft/{name}", results / f"finetune/{name}", results / f"generate/{name}"
    counts = {split: read(sft / f"{split}.meta.json")["rows"] for split in ("train", "validation", "test")}
    for split, count in counts.items():
        assert count["in"] == count["out"] + count["rejected"] and count["out"] > 50, split
        items = list(read_records(sft / f"{split}.candidates.jsonl", CandidatesRow))
        rows = list(read_records(sft / f"{split}.jsonl", SftRow))
        assert [row.id for row in rows] == [item.id for item in items] and len(rows) == count["out"]
        assert len(list(read_jsonl(sft / f"{split}.rejected.jsonl"))) == count["rejected"]
    if name == "decoded":
        for split, partition in (("train", "train"), ("validation", "val"), ("test", "test")):
            assert counts[split]["in"] == read(results / f"beams/phones/{partition}/beams.meta.json")["rows"]["out"]
    mixed = {part: list(read_jsonl(finetune / f"data/{part}.jsonl")) for part in ("train", "validation")}
    assert {part: len(rows) for part, rows in mixed.items()} == {part: counts[part]["out"] for part in mixed}
    trained = read(finetune / "metrics.json")["rows"]
    assert trained["in"] == trained["out"] + trained["rejected"] == sum(map(len, mixed.values()))
    made = read(generate / "predictions.meta.json")["rows"]
    assert counts["test"]["out"] == made["in"] == made["out"] + made["rejected"]
    answers = list(read_records(generate / "predictions.jsonl", PredictionRow))
    asked = [row.id for row in read_records(sft / "test.jsonl", SftRow)]
    assert [row.id for row in answers] == asked and len(answers) == made["out"]
    metrics = read(results / f"corrections/{name}/default.json")
    assert metrics["rows"] == {"in": made["out"], "out": made["out"], "rejected": 0}
    assert metrics["rejected_before"] == {
        "build_corrector_data": counts["test"]["rejected"],
        "generate": made["rejected"],
    }


@pytest.mark.parametrize("name", [*CORRECTIONS, "commands"])
def test_trainings_learn(demo, name):
    history = [row for _, row in read_jsonl(demo / f"results/finetune/{name}/history.jsonl")]
    for key, share in (("loss", 0.8), ("eval_loss", 1.0)):
        values = [row[key] for row in history if row[key] is not None]
        assert len(values) > 1 and min(values[1:]) < share * values[0], key


def test_commands_are_understood(demo):
    """Far above the majority baseline; recognition errors cost something, mostly in the entities' words."""
    heard, written = (read(demo / f"results/slu/{name}/metrics_label_only.json") for name in ("commands", "written"))
    for metrics in (heard, written):
        micro, majority = metrics["micro"], metrics["majority"]
        assert micro["intent_f1"] >= 0.75 > 0.3 > majority["micro"]["intent_f1"]
        assert micro["slu_f1"] >= 0.5 > majority["micro"]["slu_f1"] == 0
        interval = metrics["intervals"]["intent_accuracy"]
        assert interval["value"] == pytest.approx(micro["intent_f1"])
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert metrics["rows"]["in"] == metrics["gold"] == metrics["scored"] >= 250 and metrics["coverage"] == 1
        assert metrics["unparsable"] <= 0.05 * metrics["gold"]
    assert heard["micro"]["entity_f1"] < written["micro"]["entity_f1"]


def test_labels_score_the_same_on_the_command_line(demo, capsys):
    folder = demo / "results/slu/commands"
    gold, predicted = demo / "resources/demo/slurp/test.jsonl", folder / "prediction_labels_only.jsonl"
    assert main(["score", "slu", "--gold", str(gold), "--pred", str(predicted)]) == 0
    scores, micro = json.loads(capsys.readouterr().out), read(folder / "metrics_label_only.json")["micro"]
    for name in ("scenario_f1", "action_f1", "intent_f1", "entity_f1", "word_f1", "char_f1", "slu_f1"):
        assert scores[name] == pytest.approx(micro[name], abs=1e-4), name


def test_rationales_are_accounted_for(demo):
    """What a rule made in the place of the nano model's answers is counted, and <ras> rows come of it."""
    for k in (1, 5):
        folder = demo / f"results/rationale/nano/k{k}"
        rows = list(read_records(folder / "rationale.jsonl", RationaleRow))
        metrics = read(folder / "rationale.metrics.json")
        assert metrics["rows"]["in"] == metrics["rows"]["out"] + metrics["rows"]["rejected"] == 8
        assert len(rows) == metrics["rows"]["out"] and all(row.nbest_k == k and row.sees_gold for row in rows)
        assert all(row.rationale_text and (row.topk_valid or row.fallback_used) for row in rows)
    trained = list(read_records(demo / "results/finetune/commands/data/train.jsonl", SftRow))
    assert sum(row.task == "ras" for row in trained) == len(rows) and len(trained) >= 3000


def test_test_prompts_hold_what_was_heard_and_nothing_else(demo):
    heard = {
        row.id: [hypothesis.text for hypothesis in row.asr_hypotheses]
        for row in read_records(demo / "results/asr/commands_clear/generic/nbest.jsonl", NbestRow)
    }
    for row in read_records(demo / "results/sft/commands/test.jsonl", SftRow):
        first, second, *_ = (" ".join(text.split()) for text in heard[row.id])
        assert row.messages[0].content == f"<slu>\n1. {first}\n2. {second}" and row.task == "slu", row.id


def test_a_second_run_has_nothing_to_do(demo):
    done = workspace.snakemake(demo, "demo")
    assert done.returncode == 0 and "Nothing to be done" in done.stdout, done.stdout[-2000:]


def test_the_report_holds_tables_and_figures(demo):
    done = workspace.snakemake(demo, "demo", "--report", "results/report/report.html")
    assert done.returncode == 0, done.stdout[-3000:]
    page = (demo / "results/report/report.html").read_text()
    asr = ("asr_summary.html", "asr_wer.svg", "asr_diversity.svg", "asr_throughput.svg")
    slu = ("rationales.html", "slu.html", "slu.svg")
    for item in (*asr, *slu, "corrections.html", "corrections_wer.svg", "training_loss.svg"):
        assert item in page, item


def test_a_run_killed_in_mid_transcribe_resumes_with_the_same_bytes(tmp_path_factory):
    override = {
        "corpora": {"commands": {"limit": 60, "shards": 1}},
        "asr": {"beam": {"batch_size": 2}},
        "runs": [{"corpora": ["commands"], "asr": ["beam"], "scoring": ["default"]}],
    }
    folders = {}
    for name in ("undisturbed", "killed"):
        folders[name] = tmp_path_factory.mktemp(name)
        workspace.copy_workflow(folders[name], "resources")
        (folders[name] / "override.yaml").write_text(yaml.safe_dump(override))
    arguments = ["asr", "--configfile", "override.yaml"]
    done = workspace.snakemake(folders["undisturbed"], *arguments)
    assert done.returncode == 0, done.stdout[-4000:]

    killed = folders["killed"]
    journal = (killed / "results/.state/transcribe").glob
    workspace.kill_when(killed, lambda: sum(path.stat().st_size for path in journal("*/*.jsonl")) >= 2000, *arguments)
    assert not (killed / "results/asr/commands/beam/nbest.jsonl").exists()

    done = workspace.snakemake(killed, *arguments)
    assert done.returncode == 0, done.stdout[-4000:]
    meta = json.loads((killed / "results/asr/commands/beam/nbest.meta.json").read_text())
    assert 0 < meta["from_journal"] < 60
    for file in ("nbest.jsonl", "nbest.rejected.jsonl"):
        one, other = ((folder / "results/asr/commands/beam" / file).read_bytes() for folder in folders.values())
        assert one == other
