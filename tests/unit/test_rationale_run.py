"""The rule `generate_rationale` and its gathering, with a model that answers by script."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted_llm import (
    ScriptedModel,
    always_good,
    good_answers,
    prompt_of,
    question_of,
    record,
    reply,
    write_jsonl,
    write_labels,
)

from utterflow.config.rationale import Rationale
from utterflow.errors import UserError
from utterflow.files import read_json, read_jsonl
from utterflow.gather import Shard
from utterflow.rationale import run
from utterflow.rationale.backends import Machine
from utterflow.rationale.gather import gather_rationales
from utterflow.rationale.records import RationaleMetrics
from utterflow.rationale.settings import Settings
from utterflow.records import RationaleRow, RejectedRow, read_records
from utterflow.report.rationales import summarize_rationales

QUESTIONS = ("intent_candidates", "slot_candidates", "intent_pruning", "slot_grounding")
SECRET = {"sentence": "zanzibarian transcript", "entities": [{"type": "weather_descriptor", "filler": "quixotic"}]}


class Bench:
    """A folder with lists, labels and prompts, and a model to ask."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.lists = folder / "lists.jsonl"
        self.labels = write_labels(folder / "labels.jsonl")
        self.write([record(number) for number in range(5)])

    def write(self, rows: list[Any]) -> None:
        write_jsonl(self.lists, rows)

    def run(self, model: ScriptedModel, *, k: int = 2, shards: int = 1, out: str = "out", **changes: Any) -> Path:
        """Rationales of all shards, gathered; the folder of the files."""
        self.patch.setattr(run, "open_backend", lambda settings, machine: model)
        cfg = Rationale.model_validate(
            {
                "lists": str(self.lists),
                "labels": [str(self.labels)],
                "backend": "transformers",
                "model": "m",
                "prompts": str(self.folder / "prompts"),
                **changes,
            }
        )
        folder = self.folder / out
        parts = [folder / f"shards/{index}-of-{shards}.jsonl" for index in range(shards)]
        for index, path in enumerate(parts):
            run.generate_rationale(
                lists=self.lists,
                k=k,
                shard=Shard(index, shards),
                settings=Settings(cfg, None, None),
                code="c",
                state=self.folder / "state",
                machine=Machine(1, 0, "", None),
                rationales=path,
                rejected=path.with_suffix(".rejected.jsonl"),
                meta=path.with_suffix(".meta.json"),
            )
        gather_rationales(
            lists=self.lists,
            where_from="lists",
            limit=cfg.limit,
            shards=parts,
            rejected_shards=[path.with_suffix(".rejected.jsonl") for path in parts],
            name="mine",
            k=k,
            cfg={},
            code="c",
            rationales=folder / "rationale.jsonl",
            rejected=folder / "rationale.rejected.jsonl",
            metrics=folder / "rationale.metrics.json",
            meta=folder / "rationale.meta.json",
        )
        return folder


@pytest.fixture
def bench(repository, tmp_path, monkeypatch) -> Bench:
    shutil.copytree(repository / "workflow/prompts/rationale", tmp_path / "prompts")
    return Bench(tmp_path, monkeypatch)


def rows_of(folder: Path) -> list[RationaleRow]:
    return list(read_records(folder / "rationale.jsonl", RationaleRow))


def rejected_of(folder: Path) -> list[RejectedRow]:
    return list(read_records(folder / "rationale.rejected.jsonl", RejectedRow))


def metrics_of(folder: Path) -> RationaleMetrics:
    return RationaleMetrics.model_validate(read_json(folder / "rationale.metrics.json"))


def broken(turn, *names: str) -> str:
    """An answer of the wrong form to some of the questions, a good one to the others."""
    return "no idea" if question_of(turn) in names else always_good(turn)


def test_one_stage_raw(bench):
    model = ScriptedModel(always_good, price=0.001)
    folder = bench.run(model)
    rows = rows_of(folder)
    assert [row.id for row in rows] == [f"slurp-{number}" for number in range(5)]
    first = next(iter(read_jsonl(folder / "rationale.jsonl")))[1]
    assert list(first)[:8] == [
        "slurp_id", "nbest_k", "input_text", "gold_intent", "slot_candidates", "raw_output", "topk_valid",
        "topk_validation_error",
    ]  # fmt: skip
    assert first["slurp_id"] == 0 and first["nbest_k"] == 2
    assert first["input_text"] == "1. wake me at five pm to day 0\n2. make me at nine pm to day 0"
    assert first["gold_intent"] == "alarm_set" and first["topk_valid"] and first["topk_validation_error"] is None
    assert first["slot_candidates"] == [{"type": "time", "filler": "five pm"}, {"type": "date", "filler": "today"}]
    assert json.loads(first["raw_output"]) == good_answers()["one_stage"]
    assert first["rationale"] is None and first["asked"] is None
    assert first["rationale_text"].startswith("Intent: alarm_set. ") and first["final_prediction"] == "alarm_set"
    assert len(first["hypotheses"]) == 3 and first["sees_gold"] and not first["fallback_used"]
    assert model.closed and [turn.max_tokens for turn in model.turns] == [2048] * 5

    metrics = metrics_of(folder)
    assert metrics.rows == {"in": 5, "out": 5, "rejected": 0}
    assert (metrics.valid_share, metrics.agreeing_share, metrics.fallback_share) == (1.0, 1.0, 0.0)
    assert (metrics.intents, metrics.slot_types, metrics.labelled) == (7, 7, 5)
    assert (metrics.slots.gold, metrics.slots.heard, metrics.slots.grounded, metrics.slots.spans) == (10, 5, 5, 5)
    assert (metrics.slots.heard_share, metrics.slots.spans_heard_share) == (0.5, 1.0)
    assert metrics.questions.keys() == {"one_stage"}
    assert (metrics.tries, metrics.input_tokens, metrics.cached_tokens) == (5, 50, 20)
    assert (metrics.output_tokens, metrics.reasoning_tokens, metrics.cost) == (25, 10, 0.075)


def test_one_stage_full(bench):
    row = rows_of(bench.run(ScriptedModel(always_good), output_mode="full"))[0]
    assert row.rationale == good_answers()["one_stage"]
    (asked,) = row.asked
    assert asked["question"] == "one_stage"
    (item,) = asked["tries"]
    assert item["answer"] == row.raw_output and item["problem"] is None and item["usage"]["output_tokens"] == 5
    assert [message["role"] for message in item["messages"]] == ["system", "user"]


@pytest.mark.parametrize("mode", ["raw", "full"])
def test_an_answer_of_the_wrong_form_stays_with_what_is_wrong(bench, mode):
    def script(turn):
        wrong = good_answers()["one_stage"] | {"final_prediction": "weather_query"}
        return json.dumps(wrong) if turn.id.startswith("slurp-1/") else always_good(turn)

    model = ScriptedModel(script)
    folder = bench.run(model, output_mode=mode, format_retries=1)
    row = rows_of(folder)[1]
    assert not row.topk_valid and "'weather_query' is not one of the candidates" in row.topk_validation_error
    assert json.loads(row.raw_output)["final_prediction"] == "weather_query"
    assert (row.final_prediction, row.rationale_text, row.rationale, row.fallback_used) == (None, None, None, False)
    assert sum(turn.id.startswith("slurp-1/") for turn in model.turns) == 2
    repair = model.turns[-1].messages
    assert [message.role for message in repair] == ["system", "user", "assistant", "user"]
    assert "'weather_query' is not one of the candidates" in repair[-1].content
    metrics = metrics_of(folder)
    assert (metrics.valid, metrics.agreeing, metrics.tries) == (4, 4, 6)
    assert metrics.rows["rejected"] == 0


def test_a_repaired_answer_is_valid(bench):
    def script(turn):
        return "hm" if len(turn.messages) == 2 else always_good(turn)

    folder = bench.run(ScriptedModel(script))
    assert all(row.topk_valid for row in rows_of(folder))
    assert metrics_of(folder).tries == 10


def test_two_stages(bench):
    model = ScriptedModel(always_good)
    folder = bench.run(model, stages="two", output_mode="full")
    row, good = rows_of(folder)[0], good_answers()
    assert row.rationale == {
        **good["intent_candidates"],
        **good["intent_pruning"],
        **good["slot_candidates"],
        **good["slot_grounding"],
        "candidate_generation": {"intent": good["intent_candidates"], "slot": good["slot_candidates"]},
        "candidate_pruning": {"intent": good["intent_pruning"], "slot": good["slot_grounding"]},
    }
    assert json.loads(row.raw_output) == good["slot_grounding"]
    assert [asked["question"] for asked in row.asked] == list(QUESTIONS)
    assert row.topk_valid and not row.fallback_used and row.fallback_reason is None
    asked = [question_of(turn) for turn in model.turns]
    assert set(asked[:10]) == set(QUESTIONS[:2]) and set(asked[10:]) == set(QUESTIONS[2:]), "stage by stage"
    assert metrics_of(folder).questions.keys() == set(QUESTIONS)


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_rule_stands_in_for_one_sub_stage(bench, name):
    folder = bench.run(ScriptedModel(lambda turn: broken(turn, name)), stages="two", output_mode="full")
    metrics = metrics_of(folder)
    shares = {question: counts.fallback_share for question, counts in metrics.questions.items()}
    assert shares == {question: float(question == name) for question in QUESTIONS}
    assert metrics.fallback_share == 1.0 and metrics.rows["out"] == 5
    for row in rows_of(folder):
        assert row.fallback_used and row.fallback_reason.startswith(f"{name}: wrong form: not valid JSON")
        assert row.topk_valid == (name != "intent_candidates")
        assert (row.topk_validation_error is None) == row.topk_valid
        assert "alarm_set" in row.rationale["topk_intents"]
        assert {"time", "date"} <= set(row.rationale["topk_slot_types"])
        assert row.rationale_text


def test_fallbacks_are_the_same_each_time(bench):
    def script(turn):
        return "no idea"

    first = bench.run(ScriptedModel(script), stages="two", out="first")
    again = bench.run(ScriptedModel(script), stages="two", out="again", shards=2)
    assert (first / "rationale.jsonl").read_bytes() == (again / "rationale.jsonl").read_bytes()
    row = rows_of(first)[0]
    assert row.final_prediction == "alarm_query", "the first of equals: no word of any intent was heard, and no gold"
    assert 'time "five pm" (hypothesis 1)' in row.rationale_text
    metrics = metrics_of(first)
    assert metrics.agreeing == 0
    assert (metrics.slots.heard, metrics.slots.grounded, metrics.slots.spans) == (5, 0, 0), "the rule's do not count"


def test_without_gold_labels_none_of_them_is_shown(bench):
    """Prompts, repairs and fallbacks of rows that differ in their labels alone are the same."""

    def script(turn):
        return "no idea" if len(turn.messages) == 2 else json.dumps({"wrong": 1})

    for stages in ("one", "two"):
        seen = []
        for number, changes in enumerate(({}, {**SECRET, "scenario": "weather", "action": "query"})):
            bench.write([record(7, **changes)])
            model = ScriptedModel(script)
            folder = bench.run(model, stages=stages, gold=False, out=f"{stages}{number}", output_mode="full")
            (row,) = rows_of(folder)
            assert (row.gold_intent, row.slot_candidates, row.sees_gold) == (None, [], False)
            assert row.intent == ("weather_query" if number else "alarm_set"), "scoring still knows it"
            shown = "".join(json.dumps([message.row() for message in turn.messages]) for turn in model.turns)
            assert not any(secret in shown.lower() for secret in ("zanzibarian", "quixotic", "reference"))
            seen.append((model.turns, row.asked, row.rationale_text, row.raw_output, row.fallback_reason))
            shutil.rmtree(bench.folder / "state")
        assert seen[0] == seen[1]


def test_with_gold_labels_they_are_shown_and_the_transcript_is_not(bench):
    bench.write([record(7, **SECRET)])
    for stages in ("one", "two"):
        model = ScriptedModel(always_good)
        bench.run(model, stages=stages, out=stages)
        prompts = {question_of(turn): prompt_of(turn) for turn in model.turns}
        assert not any("zanzibarian" in prompt for prompt in prompts.values())
        if stages == "one":
            assert "Reference slots: weather_descriptor = quixotic" in prompts["one_stage"]
        else:
            assert "Reference intent: alarm_set\nAnswer:" in prompts["intent_candidates"]
            assert "Reference slot types: weather_descriptor\nAnswer:" in prompts["slot_candidates"]
            assert not any("quixotic" in prompt for prompt in prompts.values())


def test_two_shards_and_one_have_the_same_rows_and_counts(bench):
    bench.write([*(record(number) for number in range(5)), {"no": "record"}])
    files = {}
    for shards in (1, 2):
        folder = bench.run(ScriptedModel(always_good), shards=shards, out=str(shards), max_rejected=1.0)
        files[shards] = [(folder / f"rationale.{name}").read_bytes() for name in ("jsonl", "rejected.jsonl")]
        metrics = read_json(folder / "rationale.metrics.json")
        files[shards].append({name: value for name, value in metrics.items() if name != "seconds"})
        shutil.rmtree(bench.folder / "state")
    assert files[1] == files[2]
    assert files[1][2]["rows"] == {"in": 6, "out": 5, "rejected": 1}


def test_rows_that_cannot_be_used_are_rejected_and_not_asked(bench):
    unusable = [
        "not an object",
        {"slurp_id": 1},
        record(2, scenario=None),
        record(3, scenario="oven"),
        record(4, entities=[{"type": "hour", "filler": "x"}]),
        record(5, asr_hypotheses=[]),
    ]
    bench.write([record(0), *unusable, record(6)])
    model = ScriptedModel(always_good)
    folder = bench.run(model, max_rejected=1.0)
    assert [row.id for row in rows_of(folder)] == ["slurp-0", "slurp-6"]
    reasons = [row.reason for row in rejected_of(folder)]
    kinds = ["unreadable", "unreadable", "no labels", "unknown intent", "unknown slot type", "unreadable"]
    assert [reason.partition(":")[0] for reason in reasons] == kinds
    assert len(model.turns) == 2
    assert metrics_of(folder).rows == {"in": 8, "out": 2, "rejected": 6}


def test_lists_without_a_row(bench):
    bench.write([])
    with pytest.raises(UserError, match="there is no command"):
        bench.run(ScriptedModel(always_good))


def test_too_many_rejected_rows_fail_the_job(bench):
    bench.write([record(0), {"no": "record"}])
    with pytest.raises(UserError, match="1 of 2 rows were rejected"):
        bench.run(ScriptedModel(always_good))


@pytest.mark.parametrize(
    ("stages", "name"), [("one", "one_stage"), ("two", "slot_candidates"), ("two", "intent_pruning")]
)
def test_a_row_without_any_answer_is_rejected(bench, stages, name):
    def script(turn):
        return None if turn.id == f"slurp-3/{name}" else always_good(turn)

    folder = bench.run(ScriptedModel(script), stages=stages, max_rejected=0.5)
    (lost,) = rejected_of(folder)
    which = "" if stages == "one" else f"{name}: "
    assert (lost.id, lost.reason) == ("slurp-3", f"no answer: {which}unreachable: the server is down")
    metrics = metrics_of(folder)
    assert metrics.rows == {"in": 5, "out": 4, "rejected": 1}
    assert metrics.questions[name].unanswered == 1 and metrics.valid_share == 1.0


def test_a_model_that_only_thinks(bench):
    """One stage: no answer at all. Two stages: a rule stands in, as after any other answer that cannot be used."""

    def script(turn):
        return reply("", reasoning="hm ...", finish="length")

    folder = bench.run(ScriptedModel(script), max_rejected=1.0)
    assert [row.reason.partition(": ")[2][:13] for row in rejected_of(folder)] == ["empty content"] * 5
    folder = bench.run(ScriptedModel(script), stages="two", out="two")
    assert all(row.fallback_reason.count("empty content") == 4 for row in rows_of(folder))


def test_what_no_try_mends_is_no_answer(bench):
    def script(turn):
        return (
            reply("", finish="error", problem="too long: 5000 tokens")
            if turn.id.startswith("slurp-1/")
            else always_good(turn)
        )

    folder = bench.run(ScriptedModel(script), stages="two", max_rejected=0.5)
    assert [row.reason for row in rejected_of(folder)] == ["no answer: intent_candidates: too long: 5000 tokens"]


def test_answers_are_asked_once(bench):
    """A second run, other shards, more rows and another output ask only what is new."""
    first, again, more = (ScriptedModel(always_good) for _ in range(3))
    one = bench.run(first, out="one")
    two = bench.run(again, out="two", shards=2, output_mode="full")
    assert (len(first.turns), len(again.turns)) == (5, 0)
    assert [row.raw_output for row in rows_of(one)] == [row.raw_output for row in rows_of(two)]
    meta = read_json(two / "rationale.meta.json")
    assert (meta["questions"], meta["questions_from_journal"]) == (5, 5)
    bench.write([record(number) for number in range(7)])
    bench.run(more, out="more")
    assert len(more.turns) == 2


def test_full_rows_are_the_same_after_a_resume(bench):
    first = bench.run(ScriptedModel(always_good), out="first", stages="two", output_mode="full")
    again = bench.run(ScriptedModel(always_good), out="again", stages="two", output_mode="full")
    assert (first / "rationale.jsonl").read_bytes() == (again / "rationale.jsonl").read_bytes()


def test_k_and_limit(bench):
    prompts = {}
    for k in (1, 3, 5):
        model = ScriptedModel(always_good)
        folder = bench.run(model, k=k, limit=2, out=f"k{k}")
        assert [row.nbest_k for row in rows_of(folder)] == [k, k]
        assert metrics_of(folder).rows["in"] == 2
        prompts[k] = [prompt_of(turn).count(" pm to day ") for turn in model.turns]
    assert prompts[1] == [1, 1] and prompts[3] == [2, 2]
    assert prompts[5] == [], "a list of 3 shows the same with k = 5: nothing is asked again"


def test_audio_evidence(bench, tmp_path):
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"RIFF")
    bench.write([record(0, audio=str(sound), noise={"snr_db": 5, "color": 0, "seed": 3}), record(1)])
    model = ScriptedModel(always_good)
    folder = bench.run(model, evidence="audio", max_rejected=0.5)
    (row,) = rows_of(folder)
    assert row.input_text == str(sound) and "(hypothesis" not in row.rationale_text
    assert model.turns[0].messages[1].content[0] == {
        "type": "audio",
        "path": str(sound),
        "noise": {"snr_db": 5.0, "color": 0.0, "seed": 3},
    }
    metrics = metrics_of(folder)
    assert (metrics.slots.heard, metrics.slots.spans_heard, metrics.slots.grounded) == (None, None, 1)
    assert rejected_of(folder)[0].reason.startswith("no recording")


def test_rows_without_labels_are_counted_apart(bench):
    bench.write([record(0), record(1, scenario=None, action=None, entities=None)])
    metrics = metrics_of(bench.run(ScriptedModel(always_good), gold=False))
    assert (metrics.rows["out"], metrics.labelled, metrics.agreeing, metrics.slots.gold) == (2, 1, 1, 2)


def test_an_empty_shard_asks_nobody(bench):
    bench.write([record(0)])
    folder = bench.run(ScriptedModel(always_good), shards=3)
    assert len(rows_of(folder)) == 1
    assert read_json(folder / "shards/2-of-3.meta.json")["rows"] == {"in": 0, "out": 0, "rejected": 0}


def test_summary_has_a_row_per_rationale_and_length(bench, tmp_path, caplog):
    caplog.set_level(logging.INFO, "utterflow")
    paths = []
    for k, stages in ((3, "two"), (1, "one")):
        folder = bench.run(ScriptedModel(always_good, price=0.001), k=k, stages=stages, out=f"k{k}")
        paths.append(folder / "rationale.metrics.json")
    table, page, meta = (tmp_path / name for name in ("r.tsv", "r.html", "r.meta.json"))
    summarize_rationales(paths, table=table, page=page, meta=meta, cfg={"name": "n", "title": "a <b>"}, code="c")
    rows = list(csv.DictReader(table.open(), delimiter="\t"))
    assert [(row["rationale"], row["k"], row["stages"]) for row in rows] == [("mine", "1", "one"), ("mine", "3", "two")]
    assert rows[0]["cost"] == "0.075000" and float(rows[1]["slot_grounding_fallback"]) == 0.0
    assert rows[0]["slot_grounding_fallback"] == "" and rows[0]["agreeing"] == "1.000000"
    text = page.read_text()
    assert "a &lt;b&gt;" in text and "<td>100.00</td>" in text
    with pytest.raises(UserError, match="no rationale to report"):
        summarize_rationales([], table=table, page=page, meta=meta, cfg={"name": "n", "title": ""}, code="c")
