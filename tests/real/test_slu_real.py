"""SLURP's devel set, and training sentences in its shape: labels, inventory, prompts in phones from CMUdict."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from utterflow.config.datasets import SluDataset
from utterflow.files import read_jsonl
from utterflow.records import SftRow, SluItem, read_records
from utterflow.slu.build import SluStats, build_slu_data
from utterflow.slu.items import SluDataItem, read_items
from utterflow.slu.labels import majority, read_inventory
from utterflow.slu.phones import IPA, REDUCED

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared/data"
TRAIN, DEVEL = DATA / "slurp/train_surrogate.jsonl", DATA / "slurp/devel.jsonl"
CMUDICT = DATA / "cmudict/cmudict.dict"
SLOT = re.compile(r"\[\s*([^:\]]+?)\s*:\s*([^\]]+?)\s*\]")

pytestmark = pytest.mark.skipif(
    not (TRAIN.is_file() and DEVEL.is_file() and CMUDICT.is_file()), reason=f"SLURP and CMUdict are not here: {DATA}"
)


def build(folder: Path, split: str, source: Path, **changes: object) -> SluStats:
    cfg = {
        "builder": "slu",
        split: [{"gold_text": str(source)}],
        "slu_prompt": str(REPOSITORY / "workflow/prompts/slu.txt"),
        "max_rejected": 0,
        **changes,
    }
    return build_slu_data(
        [source],
        split=split,  # type: ignore[arg-type]
        cfg=SluDataset.model_validate(cfg),
        rows=folder / f"{split}.jsonl",
        items=folder / f"{split}.items.jsonl",
        rejected=folder / f"{split}.rejected.jsonl",
        stats=folder / f"{split}.stats.json",
        meta=folder / f"{split}.meta.json",
        code="c",
    )


@pytest.mark.parametrize("path", [TRAIN, DEVEL], ids=lambda path: path.stem)
def test_entities_are_those_that_the_annotated_sentence_shows(path: Path) -> None:
    """SLURP writes the slots a second time, in brackets; there words are cut, and have their commas, otherwise."""
    items = list(read_items(path, "annotations"))
    records = [record for _, record in read_jsonl(path)]
    assert len(items) == len(records) > 2000
    for item, record in zip(items, records, strict=True):
        assert isinstance(item, SluItem)
        shown = Counter((kind, _joined(words)) for kind, words in SLOT.findall(record["sentence_annotation"]))
        assert Counter((entity.type, _joined(entity.filler)) for entity in item.entities or ()) == shown


def test_fillers_are_of_the_tokens_which_twice_differ_from_the_sentence() -> None:
    odd = {
        item.id: entity.filler
        for item in read_items(DEVEL, "annotations")
        if isinstance(item, SluItem)
        for entity in item.entities or ()
        if _joined(entity.filler) not in _joined(item.text or "")
    }
    assert odd == {"slurp-6570": "rihana", "slurp-13875": "barack obaba"}


def _joined(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def test_inventory_of_the_devel_set() -> None:
    records = [record for _, record in read_jsonl(DEVEL)]
    intents = Counter((record["scenario"], record["action"]) for record in records)
    inventory = read_inventory([DEVEL])
    assert inventory.intents == tuple(sorted("_".join(pair) for pair in intents))
    assert inventory.slot_types == tuple(sorted({e["type"] for record in records for e in record["entities"]}))
    assert intents[majority([DEVEL])] == max(intents.values())


def test_the_intent_is_scenario_and_action_not_the_field_of_that_name() -> None:
    """The field differs in 30 records of the devel set."""
    items = list(read_items(DEVEL, "annotations"))
    records = [record for _, record in read_jsonl(DEVEL)]
    intents = [item.intent for item in items if isinstance(item, SluItem)]
    assert intents == [f"{record['scenario']}_{record['action']}" for record in records]
    assert sum(record["intent"] != intent for record, intent in zip(records, intents, strict=True)) == 30


def test_a_data_set_of_sentences_as_written(tmp_path: Path) -> None:
    stats = build(tmp_path, "train", TRAIN, labels=[str(TRAIN)])
    assert stats.rows == {"in": 5094, "out": 5094, "rejected": 0, "disagreeing": 0}
    assert (stats.candidates, stats.intents_outside_labels) == ({1: 5094}, {})
    stats = build(tmp_path, "validation", DEVEL, labels=[str(TRAIN)])
    outside = set(read_inventory([DEVEL]).intents) - set(read_inventory([TRAIN]).intents)
    assert stats.intents_outside_labels is not None
    assert stats.intents_outside_labels.keys() == outside
    rows = list(read_records(tmp_path / "validation.jsonl", SftRow))
    items = list(read_records(tmp_path / "validation.items.jsonl", SluDataItem))
    assert [row.id for row in rows] == [item.id for item in items]
    assert len({row.id for row in rows}) == 2033
    for row, item in zip(rows, items, strict=True):
        answer = json.loads(row.target or "")
        assert f"{answer['scenario']}_{answer['action']}" == item.intent
        assert row.group == str(item.slurp_id)
        assert f"\n1. {' '.join((item.text or '').split())}\n" in str(row.messages[0].content)


def test_sentences_in_phones_from_cmudict(tmp_path: Path) -> None:
    """Nearly all words have a pronunciation; what has none is the only thing in letters that are no phones."""
    letters = set("".join([*IPA.values(), *REDUCED.values()])) | {" "}
    stats = build(tmp_path, "validation", DEVEL, input_format="ipa", lexicon=str(CMUDICT))
    assert stats.unpronounced is not None
    assert 0 < stats.unpronounced.without < 0.02 * stats.unpronounced.words
    texts = [item.candidates[0] for item in read_records(tmp_path / "validation.items.jsonl", SluDataItem)]
    assert sum(set(text) <= letters for text in texts) > 0.9 * len(texts)
    build(tmp_path, "validation", DEVEL, input_format="arp", lexicon=str(CMUDICT))
    first = next(iter(read_records(tmp_path / "validation.items.jsonl", SluDataItem)))
    assert first.text == "siri what is one american dollar in japanese yen"
    assert first.candidates == [
        "S IH R IY | W AH T | IH Z | W AH N | AH M EH R AH K AH N | D AA L ER | IH N | JH AE P AH N IY Z | Y EH N"
    ]
