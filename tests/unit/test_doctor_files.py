"""What the doctor says of files that the user gives, and of programs outside of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from utterflow import doctor, targets
from utterflow.config.load import load_config
from utterflow.config.models import Config

TEXTS = {"texts": ["given/sentences.txt"]}
PROMPT = "workflow/prompts/corrector.txt"  # the default of data sets


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


def config(backend: str = "transformers", **sections: Any) -> Config:
    return load_config(
        {
            "name": "small",
            "ngrams": {"trained": TEXTS},
            "models": {"lm": {"model": "./lm"}},
            "datasets": {"lists": {"builder": "corrector", "test": [{"lists": "given/lists.jsonl"}]}},
            "predictions": {"answers": {"dataset": "lists", "model": "lm", "backend": backend}},
            "corrections": {"corrected": {"prediction": "answers"}},
            "scoring": {"plain": {}},
            "runs": [{"corrections": ["corrected"], "scoring": ["plain"]}],
            **sections,
        }
    )


def test_given_files_that_are_there_are_one_line() -> None:
    given = targets.given_files(config())
    assert set(given) == {"given/sentences.txt", "given/lists.jsonl", PROMPT}
    touch(*given)
    (finding,) = doctor.given_file_findings(given)
    assert (finding.status, finding.text) == ("ok", "all 3 that the configuration names are there")
    assert list(doctor.given_file_findings({})) == []


def test_a_given_file_that_is_not_there_is_named_with_its_key() -> None:
    touch("given/sentences.txt", PROMPT)
    (finding,) = doctor.given_file_findings(targets.given_files(config()))
    assert (finding.status, finding.subject) == ("warn", "file given/lists.jsonl")
    assert "datasets.lists.test.0.lists" in str(finding.fix)
    assert doctor.exit_code([finding], strict=False) == 0 and doctor.exit_code([finding], strict=True) == 1


def test_many_missing_files_are_counted() -> None:
    given = {f"given/{number}.txt": f"ngrams.n{number}.file" for number in range(8)}
    touch("given/7.txt")
    *named, rest = doctor.given_file_findings(given, shown=3)
    assert [finding.subject for finding in named] == [f"file given/{number}.txt" for number in range(3)]
    assert (rest.status, rest.text) == ("warn", "4 more are not found")


def test_kenlm_is_built_where_an_ngram_is_trained_and_nothing_else_is_there() -> None:
    (finding,) = doctor.tool_findings(config())
    assert (finding.status, finding.subject) == ("ok", "kenlm") and "built" in finding.text
    touch(targets.KENLM_LISTING)
    assert list(doctor.tool_findings(config())) == []
    Path(targets.KENLM_LISTING).unlink()
    assert list(doctor.tool_findings(config(ngrams={}))) == []
    assert list(doctor.tool_findings(config(tools={"kenlm_bin": "given/kenlm"}))) == []


def test_vllm_is_asked_for_where_a_prediction_that_is_made_uses_it() -> None:
    asked = {"ngrams": {}, "tools": {"vllm_python": "other/bin/python"}}
    assert list(doctor.tool_findings(config(**asked))) == []
    (finding,) = doctor.tool_findings(config("vllm", **asked))
    assert (finding.status, finding.subject, finding.text) == ("FAIL", "vllm", "no other/bin/python")
    assert "make setup-vllm" in str(finding.fix)
    touch("other/bin/python")
    (finding,) = doctor.tool_findings(config("vllm", **asked))
    assert (finding.status, finding.text) == ("ok", "other/bin/python")


def test_vllm_is_not_asked_for_by_a_prediction_that_no_run_needs() -> None:
    answers = {"dataset": "lists", "model": "lm"}
    predictions = {"answers": answers, "unused": {**answers, "backend": "vllm"}}
    assert list(doctor.tool_findings(config(ngrams={}, predictions=predictions))) == []
