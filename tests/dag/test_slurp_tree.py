"""The SLURP experiment where its corpus lies already: a dry run plans all stages."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import workspace


def write_tree(root: Path) -> None:
    """A SLURP of one sentence per split, with a recording each, as `fetch` would leave it."""
    audio = root / "audio/slurp_real"
    audio.mkdir(parents=True)
    row = {"sentence": "wake me", "scenario": "alarm", "action": "set", "entities": [], "tokens": []}
    for number, split in enumerate(("train", "devel", "test")):
        file = f"audio-{number}.flac"
        workspace.speak(audio / file, number)
        record = {**row, "slurp_id": number, "recordings": [{"file": file}]}
        (root / f"{split}.jsonl").write_text(json.dumps(record) + "\n")
    (root / "metadata.json").write_text("{}")
    (root / "slurp_real.tar.gz").write_bytes(b"")
    (root / "slurp_real.tar.gz.contents.tsv").write_text("")


def test_every_stage_is_planned(tmp_path):
    workspace.copy_workflow(tmp_path)
    write_tree(tmp_path / "data/slurp")
    jobs = workspace.dry_run(tmp_path, "all", "--configfile", "config/experiments/slurp.yaml")
    count = Counter(job.rule for job in jobs if job.needed)
    assert {"transcribe_gpu", "generate_rationale", "build_slu_data", "finetune_gpu", "generate_gpu"} <= count.keys()
    assert count["prepare_corpus"] == 3 and count["generate_rationale"] == 2 and count["score_slu"] == 1
    assert "missing_file" not in count
