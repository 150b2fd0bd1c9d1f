"""Pronunciation scores on real utterances of speechocean762."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jiwer
import pytest

from utterflow.cli import main
from utterflow.config.corpora import SpeechOceanCorpus
from utterflow.corpora.candidates import Candidate
from utterflow.corpora.speechocean import read_speechocean
from utterflow.files import write_jsonl
from utterflow.pronunciation.gold import Gold, gold_of, read_gold
from utterflow.pronunciation.mdd import positions
from utterflow.pronunciation.phones import INVENTORY, UNKNOWN
from utterflow.pronunciation.records import PronunciationScores

CORPUS = Path(__file__).resolve().parents[3] / "shared/data/speechocean762"
SCORES = CORPUS / "resource/scores.json"

pytestmark = pytest.mark.skipif(not SCORES.is_file(), reason=f"speechocean762 is not here: {CORPUS}")


@pytest.fixture(scope="module")
def gold() -> dict[str, Gold]:
    return read_gold(SCORES)


@pytest.fixture(scope="module")
def entries() -> dict[str, Any]:
    return dict(json.loads(SCORES.read_text()))


def scored(
    capsys: pytest.CaptureFixture[str], path: Path, rows: list[dict[str, Any]], *arguments: str
) -> PronunciationScores:
    write_jsonl(path, rows)
    assert main(["score", "pronunciation", "--gold", str(SCORES), "--pred", str(path), *arguments]) == 0
    return PronunciationScores.model_validate_json(capsys.readouterr().out)


def test_all_annotations_are_read(gold: dict[str, Gold], entries: dict[str, Any]) -> None:
    assert len(gold) == len(entries) == 84
    faults = Counter(
        fault["pronounced-phone"]
        for entry in entries.values()
        for word in entry["words"]
        for fault in word.get("mispronunciations", [])
    )
    assert (faults.total(), faults["<DEL>"], faults["<unk>"], faults["EH R"] + faults["IH R"]) == (69, 19, 16, 2)
    accented = sum(count for phone, count in faults.items() if phone.endswith("*"))
    canonical = [phone for item in gold.values() for phone in item.canonical]
    pronounced = [phone for item in gold.values() for phone in item.pronounced]
    assert set(canonical) <= INVENTORY
    assert set(pronounced) <= INVENTORY | {UNKNOWN}
    assert pronounced.count(UNKNOWN) == faults["<unk>"] + accented == 20
    assert len(pronounced) == len(canonical) - 19 + 2


def test_alignment_finds_the_annotated_errors(gold: dict[str, Gold]) -> None:
    """By edit distance there is one error less than annotated: a deletion beside two phones for one."""
    found = [place for item in gold.values() for place in positions(item.canonical, item.pronounced, item.pronounced)]
    assert Counter(place.kind for place in found if place.outcome == "CD") == {
        "substitution": 51, "deletion": 18, "insertion": 1,
    }  # fmt: skip
    assert {place.outcome for place in found} == {"TA", "CD"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_manifest_fields_give_the_same_annotations(gold: dict[str, Gold], split: str) -> None:
    cfg = SpeechOceanCorpus.model_validate({"adapter": "speechocean762", "root": str(CORPUS), "split": split})
    found = list(read_speechocean(cfg))
    assert len(found) == {"train": 54, "test": 30}[split]
    for entry in found:
        assert isinstance(entry, Candidate)
        assert gold_of(entry.id, entry.extra, entry.speaker) == gold[entry.id]._replace(speaker=entry.speaker)
        assert entry.text == gold[entry.id].words


def test_what_was_said_is_right_in_all(
    gold: dict[str, Gold], entries: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "id": key,
            **{name: str(value) for name, value in item.scores.items()},
            "word_transcript": entries[key]["text"].capitalize(),
            "phoneme_transcript": " ".join(item.pronounced),
        }
        for key, item in gold.items()
    ]
    result = scored(capsys, tmp_path / "p.jsonl", rows, "--samples", "50")
    assert (result.wer, result.per, result.paper_f1, result.coverage) == (0, 0, 1, 1)
    assert result.mdd is not None
    assert (result.mdd.precision, result.mdd.recall, result.mdd.der, result.mdd.TR) == (1, 1, 0, 70)
    for aspect in result.apa.values():
        assert (aspect.pcc, aspect.mae) == (pytest.approx(1), 0)


def test_canonical_phones_detect_nothing(
    gold: dict[str, Gold], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text-to-phones lookup has a high overlap, and finds no error at all."""
    rows = [{"id": key, "phoneme_transcript": list(item.canonical)} for key, item in gold.items()]
    result = scored(capsys, tmp_path / "p.jsonl", rows, "--samples", "0", "--phones")
    assert result.mdd is not None
    assert (result.mdd.recall, result.mdd.f1, result.mdd.TR, result.mdd.FA, result.mdd.FR) == (0, 0, 0, 70, 0)
    assert result.mdd.precision is None
    assert result.paper_f1 is not None
    assert result.paper_f1 > 0.95
    references = [" ".join(item.pronounced) for item in gold.values()]
    assert result.per == pytest.approx(jiwer.wer(references, [" ".join(item.canonical) for item in gold.values()]))
    assert result.confusions is not None
    assert result.confusions[0].canonical == result.confusions[0].heard
    assert result.wer is None


def test_speakers_of_the_test_split(gold: dict[str, Gold], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = CORPUS / "test/utt2spk"
    names = [line.split()[0] for line in table.read_text().splitlines()]
    rows = [{"id": key, **{name: min(10, value + place % 3) for name, value in gold[key].scores.items()}}
            for place, key in enumerate(names)]  # fmt: skip
    results = {
        unit: scored(capsys, tmp_path / "p.jsonl", rows, "--utt2spk", str(table), "--unit", unit)
        for unit in ("utterance", "speaker")
    }
    for unit, result in results.items():
        assert (result.utterances, result.missing, result.bootstrap_unit) == (30, 0, unit)
        interval, pcc = result.intervals["total_pcc"], result.apa["total"].pcc
        assert interval is not None
        assert pcc is not None
        assert interval[0] < pcc < interval[1]
    assert results["utterance"].intervals["total_pcc"] != results["speaker"].intervals["total_pcc"]
