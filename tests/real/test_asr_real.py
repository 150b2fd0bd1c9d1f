"""Real recordings through the workflow, from file to scores.

The nano model has learnt synthetic commands, so its words are poor here; what is tested is decoding, windows, counts
and the handling of broken files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import workspace
import yaml

from utterflow.files import read_jsonl
from utterflow.records import ManifestRow, NbestRow, RejectedRow, read_records

DATA = Path(__file__).resolve().parents[3] / "shared/data"

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real recordings at {DATA}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    workspace.copy_workflow(folder, "resources")
    shutil.copytree(DATA / "real_speech", folder / "speech")
    rows = [row for _, row in read_jsonl(folder / "speech/manifest.jsonl")]
    victims = {"fsdd": rows[-1]["file"], "gone": "nowhere.wav", "text": "text.wav"}
    (folder / "speech" / victims["fsdd"]).chmod(0o644)
    (folder / "speech" / victims["fsdd"]).write_bytes((folder / "speech" / victims["fsdd"]).read_bytes()[:50])
    (folder / "speech").chmod(0o755)
    (folder / "speech/text.wav").write_text("this is no recording")
    (folder / "speech/manifest.jsonl").chmod(0o644)
    with (folder / "speech/manifest.jsonl").open("a") as handle:
        for name in ("gone", "text"):
            handle.write(json.dumps({"file": victims[name], "transcript": "x"}) + "\n")
    model = "resources/demo/models/whisper-nano"
    config = {
        "name": "real",
        "corpora": {
            "speech": {
                "adapter": "manifest",
                "path": "speech/manifest.jsonl",
                "columns": {"id": None, "audio": "file", "text": "transcript", "group": None},
                "shards": 2,
                "max_rejected": 0.05,
            },
            "ocean": {
                "adapter": "speechocean762",
                "root": str(DATA / "speechocean762"),
                "split": "train",
                "group": "age",
            },
        },
        "asr": {
            "group_beam": {"model": model, "batch_size": 16, "max_new_tokens": 40},
            "pool": {
                "model": model,
                "batch_size": 16,
                "max_new_tokens": 40,
                "diversity_method": "sampling_pool",
                "sampling_pool": 20,
            },
        },
        "scoring": {"default": {"bootstrap": {"samples": 100}}},
        "runs": [{"corpora": ["speech", "ocean"], "asr": ["group_beam", "pool"], "scoring": ["default"]}],
    }
    (folder / "real.yaml").write_text(yaml.safe_dump(config))
    done = workspace.snakemake(folder, "all", "--configfile", "real.yaml", timeout=500)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def test_broken_files_are_rejected_with_their_reason(folder):
    rejected = list(read_records(folder / "results/corpora/speech/manifest.rejected.jsonl", RejectedRow))
    assert len(rejected) == 3
    assert sorted(row.reason.split(":")[0] for row in rejected) == ["broken", "broken", "missing"]
    meta = json.loads((folder / "results/corpora/speech/manifest.meta.json").read_text())
    assert meta["rows"]["in"] == 197 and meta["rows"]["out"] == 194


@pytest.mark.parametrize("asr", ["group_beam", "pool"])
@pytest.mark.parametrize(("corpus", "count"), [("speech", 194), ("ocean", 54)])
def test_every_recording_has_its_list(folder, corpus, count, asr):
    rows = list(read_records(folder / f"results/asr/{corpus}/{asr}/nbest.jsonl", NbestRow))
    manifest = list(read_records(folder / f"results/corpora/{corpus}/manifest.jsonl", ManifestRow))
    assert [row.id for row in rows] == [row.id for row in manifest] and len(rows) == count
    for row in rows:
        assert 1 <= len(row.asr_hypotheses) <= 5
        assert (row.asr_windows > 1) == (row.seconds > 5.0)
        assert len({" ".join(item.text.lower().split()) for item in row.asr_hypotheses}) == len(row.asr_hypotheses)


def test_durations_are_the_recordings_own(folder):
    known = {row["file"]: row["seconds"] for _, row in read_jsonl(DATA / "real_speech/manifest.jsonl")}
    rows = list(read_records(folder / "results/corpora/speech/manifest.jsonl", ManifestRow))
    for row in rows:
        name = Path(row.audio).relative_to(folder / "speech" if Path(row.audio).is_absolute() else "speech").as_posix()
        assert row.seconds == pytest.approx(known[name], abs=0.02)


def test_scores_cover_every_row(folder):
    for corpus, count in (("speech", 194), ("ocean", 54)):
        metrics = json.loads((folder / f"results/evaluate/{corpus}/pool/default.json").read_text())
        assert metrics["rows"] == {"in": count, "out": count, "rejected": 0}
        lost = {"speech": 3, "ocean": 0}[corpus]
        assert metrics["rejected_before"] == {"prepare_corpus": lost, "transcribe": 0}
        total = metrics["total"]
        assert 0 < total["oracle"]["5"]["value"] <= total["wer"]["value"]
    ocean = json.loads((folder / "results/evaluate/ocean/pool/default.json").read_text())
    assert len(ocean["groups"]) == 2
