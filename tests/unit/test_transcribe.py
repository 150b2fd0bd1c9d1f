"""The stage: shards, batches, the journal, rejected rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from spoken_rows import write_manifest

from utterflow import gather
from utterflow.asr import transcribe as stage
from utterflow.asr.gather import gather_nbest
from utterflow.asr.recognise import choose_method
from utterflow.asr.transcribe import make_batches, transcribe
from utterflow.config.asr import AsrVariant
from utterflow.errors import UserError
from utterflow.files import read_jsonl, write_jsonl
from utterflow.gather import Shard
from utterflow.records import ManifestRow, NbestRow, read_records

SECONDS = (0.3, 1.2, 0.8, 1.9, 0.5, 1.4, 5.3, 0.9, 1.0, 0.6)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    return write_manifest(folder, SECONDS, lambda index: {"text": "a b", "speaker": f"s{index % 2}"})


def variant(folder: Path, **keys) -> AsrVariant:
    return AsrVariant.model_validate(
        {
            "model": f"{folder}/",
            "num_hypotheses": 3,
            "num_beams": 3,
            "max_new_tokens": 10,
            "batch_size": 3,
            **keys,
        }
    )


def run(manifest: Path, out: Path, cfg: AsrVariant, shards: int = 1, state: Path | None = None) -> Path:
    """All shards and the gather; the gathered file."""
    parts = []
    for index in range(shards):
        part = out / f"{index}-of-{shards}"
        parts.append(part)
        transcribe(
            manifest=manifest,
            shard=Shard(index, shards),
            model=Path(cfg.model),
            cfg=cfg,
            code="code",
            state=state or out / "state",
            threads=1,
            nbest=part.with_suffix(".jsonl"),
            rejected=part.with_suffix(".rejected.jsonl"),
            meta=part.with_suffix(".meta.json"),
        )
    gather_nbest(
        manifest=manifest,
        shards=[part.with_suffix(".jsonl") for part in parts],
        rejected_shards=[part.with_suffix(".rejected.jsonl") for part in parts],
        cfg={},
        code="code",
        nbest=out / "nbest.jsonl",
        rejected=out / "nbest.rejected.jsonl",
        meta=out / "nbest.meta.json",
    )
    return out / "nbest.jsonl"


def lists(path: Path) -> dict[str, list[tuple[str, float]]]:
    return {row.id: [(item.text, item.score) for item in row.asr_hypotheses] for row in read_records(path, NbestRow)}


def assert_same_lists(left: Path, right: Path) -> None:
    one, other = lists(left), lists(right)
    assert list(one) == list(other)
    for row_id, hypotheses in one.items():
        assert [text for text, _ in hypotheses] == [text for text, _ in other[row_id]]
        assert [score for _, score in hypotheses] == pytest.approx([score for _, score in other[row_id]], abs=2e-4)


@pytest.mark.parametrize(
    "keys",
    [
        {"diversity_method": "beam"},
        {"diversity_method": "group_beam"},
        {"diversity_method": "sampling_pool", "sampling_pool": 8},
    ],
    ids=lambda keys: keys["diversity_method"],
)
def test_shards_and_batch_sizes_do_not_change_the_lists(tiny_whisper_folder, manifest, tmp_path, keys):
    whole = run(manifest, tmp_path / "one", variant(tiny_whisper_folder, **keys))
    four = run(manifest, tmp_path / "four", variant(tiny_whisper_folder, **keys), shards=4)
    single = run(manifest, tmp_path / "single", variant(tiny_whisper_folder, batch_size=1, **keys))
    assert [row["id"] for _, row in read_jsonl(whole)] == [f"row{index}" for index in range(len(SECONDS))]
    assert_same_lists(whole, four)
    assert_same_lists(whole, single)


def test_rows_keep_their_source_fields_and_counts(tiny_whisper_folder, manifest, tmp_path):
    nbest = run(manifest, tmp_path, variant(tiny_whisper_folder, token_scores=True), shards=2)
    for row in read_records(nbest, NbestRow):
        assert row.asr_method == "group_beam" and row.asr_fallback is None
        assert row.asr_windows == (1 if row.seconds <= 2 else 3)
        assert len({item.text.lower() for item in row.asr_hypotheses}) == len(row.asr_hypotheses)
        for item in row.asr_hypotheses:
            assert len(item.token_logprobs) == item.num_tokens
            assert sum(item.token_logprobs) == pytest.approx(item.score, abs=1e-2)
            assert item.mean_logprob == pytest.approx(item.score / item.num_tokens, abs=1e-3)
    meta = json.loads((tmp_path / "nbest.meta.json").read_text())
    assert meta["rows"] == {"in": 10, "out": 10, "rejected": 0}
    assert meta["audio_seconds"] == pytest.approx(sum(SECONDS))


def test_finished_rows_are_not_computed_again(tiny_whisper_folder, manifest, tmp_path, monkeypatch):
    cfg = variant(tiny_whisper_folder)
    first = run(manifest, tmp_path / "first", cfg, state=tmp_path / "state")
    monkeypatch.setattr(stage, "recognise", lambda *_: pytest.fail("computed again"))
    for shards in (1, 3):
        again = run(manifest, tmp_path / f"again{shards}", cfg, shards=shards, state=tmp_path / "state")
        assert again.read_bytes() == first.read_bytes()


def test_a_key_that_changes_results_starts_a_new_journal(tiny_whisper_folder, manifest, tmp_path, monkeypatch):
    run(manifest, tmp_path / "first", variant(tiny_whisper_folder), state=tmp_path / "state")
    computed = []
    true = stage.recognise
    monkeypatch.setattr(stage, "recognise", lambda *args: computed.extend(args[2]) or true(*args))
    run(
        manifest,
        tmp_path / "other",
        variant(tiny_whisper_folder, diversity_penalty=0.5),
        state=tmp_path / "state",
    )
    assert sorted(computed) == sorted(f"row{index}" for index in range(len(SECONDS)))


def test_bad_audio_is_rejected_and_the_rest_kept(tiny_whisper_folder, manifest, tmp_path):
    rows = [row for _, row in read_jsonl(manifest)]
    rows[2]["audio"] = str(tmp_path / "gone.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    rows[5] |= {"audio": str(tmp_path / "broken.wav"), "audio_bytes": 12}
    write_jsonl(tmp_path / "manifest.jsonl", rows)
    nbest = run(tmp_path / "manifest.jsonl", tmp_path, variant(tiny_whisper_folder, max_rejected=0.5), shards=2)
    assert len(lists(nbest)) == 8
    rejected = [row for _, row in read_jsonl(tmp_path / "nbest.rejected.jsonl")]
    assert [row["id"] for row in rejected] == ["row2", "row5"]
    assert all(row["reason"] and row["stage"] == "transcribe" for row in rejected)
    with pytest.raises(UserError, match="max_rejected"):
        run(tmp_path / "manifest.jsonl", tmp_path / "strict", variant(tiny_whisper_folder))


def test_long_recordings_are_rejected_where_configured(tiny_whisper_folder, manifest, tmp_path):
    run(manifest, tmp_path, variant(tiny_whisper_folder, long_audio="reject", max_rejected=0.2))
    rejected = [row for _, row in read_jsonl(tmp_path / "nbest.rejected.jsonl")]
    assert [row["id"] for row in rejected] == ["row6"] and "5.3 s" in rejected[0]["reason"]


def test_fallback_to_the_pool_is_recorded(tiny_whisper_folder, manifest, tmp_path):
    cfg = variant(tiny_whisper_folder, num_beams=3, num_beam_groups=2, sampling_pool=6)
    assert choose_method(cfg).name == "sampling_pool"
    row = next(read_records(run(manifest, tmp_path, cfg), NbestRow))
    assert row.asr_method == "sampling_pool" and "multiple" in str(row.asr_fallback)


def test_language_is_detected_per_row(tiny_whisper_folder, manifest, tmp_path):
    nbest = run(manifest, tmp_path, variant(tiny_whisper_folder, language=None))
    languages = [row.asr_language for row in read_records(nbest, NbestRow)]
    assert all(language and len(language) <= 3 for language in languages)
    with pytest.raises(UserError, match="klingon"):
        run(manifest, tmp_path / "bad", variant(tiny_whisper_folder, language="klingon"))


def test_batches_do_not_depend_on_what_is_done(manifest):
    rows = list(read_records(manifest, ManifestRow))
    batches = make_batches(rows, 4)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    seconds = [row.seconds for batch in batches for row in batch]
    assert seconds == sorted(seconds, reverse=True)


@pytest.mark.parametrize("shards", [1, 2])
def test_empty_lines_and_other_line_ends_do_not_matter(tiny_whisper_folder, manifest, tmp_path, shards):
    edited = tmp_path / "manifest.jsonl"
    edited.write_bytes(b"\n" + manifest.read_bytes().replace(b"\n", b"\r\n\r\n", 3) + b"\n")
    cfg = variant(tiny_whisper_folder, max_new_tokens=3)
    assert_same_lists(run(manifest, tmp_path / "one", cfg), run(edited, tmp_path / "other", cfg, shards=shards))


def test_a_manifest_that_is_not_utf8_is_a_plain_error(tiny_whisper_folder, manifest, tmp_path):
    edited = tmp_path / "manifest.jsonl"
    edited.write_bytes(manifest.read_bytes().replace(b'"a b"', b'"\xe9"'))
    with pytest.raises(UserError, match=r"not UTF-8[\s\S]*manifest\.jsonl"):
        run(edited, tmp_path, variant(tiny_whisper_folder))


@pytest.mark.parametrize("rows", [0, 2])
def test_shards_without_rows(tiny_whisper_folder, manifest, tmp_path, rows):
    few = tmp_path / "manifest.jsonl"
    write_jsonl(few, [row for _, row in read_jsonl(manifest)][:rows])
    nbest = run(few, tmp_path, variant(tiny_whisper_folder, max_new_tokens=3), shards=3)
    assert list(lists(nbest)) == [f"row{index}" for index in range(rows)]
    meta = json.loads((tmp_path / "nbest.meta.json").read_text())
    assert meta["rows"] == {"in": rows, "out": rows, "rejected": 0}


def test_rows_of_one_id_are_neither_lost_nor_doubled(tiny_whisper_folder, manifest, tmp_path):
    rows = [row for _, row in read_jsonl(manifest)][:3]
    bad = {**rows[0], "audio": str(tmp_path / "gone.wav"), "audio_sha256": "0" * 64}
    write_jsonl(tmp_path / "manifest.jsonl", [*rows, rows[1], bad, bad])
    cfg = variant(tiny_whisper_folder, max_new_tokens=3, max_rejected=1)
    for resumed in range(2):
        nbest = run(tmp_path / "manifest.jsonl", tmp_path, cfg)
        assert [row["id"] for _, row in read_jsonl(nbest)] == ["row0", "row1", "row2", "row1"]
        assert [row["id"] for _, row in read_jsonl(tmp_path / "nbest.rejected.jsonl")] == ["row0", "row0"]
        part = json.loads((tmp_path / "0-of-1.meta.json").read_text())
        assert part["rows"] == {"in": 6, "out": 4, "rejected": 2, "from_journal": 4 * resumed}


@pytest.mark.parametrize(
    "keys",
    [{"diversity_method": "beam"}, {"diversity_method": "sampling_pool", "sampling_pool": 8}],
    ids=["beam", "pool"],
)
def test_scores_that_are_not_numbers_reject_the_row(tiny_whisper_folder, manifest, tmp_path, keys):
    model = tmp_path / "model"
    shutil.copytree(tiny_whisper_folder, model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.decoder.layer_norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    run(manifest, tmp_path, variant(model, max_rejected=1, **keys))
    rejected = [row for _, row in read_jsonl(tmp_path / "nbest.rejected.jsonl")]
    assert len(rejected) == len(SECONDS) and all("not numbers" in row["reason"] for row in rejected)
    journals = list(tmp_path.glob("state/*/*/*.jsonl"))
    assert all(not batch["rows"] for path in journals for _, batch in read_jsonl(path))


def test_too_little_gpu_memory_is_a_plain_error(tiny_whisper_folder, manifest, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(stage, "recognise", full)
    with pytest.raises(UserError, match=r"2 GiB[\s\S]*batch_size"):
        run(manifest, tmp_path, variant(tiny_whisper_folder))


def test_the_language_is_written_as_its_code(tiny_whisper_folder, manifest, tmp_path):
    cfg = variant(tiny_whisper_folder, max_new_tokens=3, language="German")
    assert {row.asr_language for row in read_records(run(manifest, tmp_path, cfg), NbestRow)} == {"de"}


@pytest.mark.parametrize("memory", [1, 2500])
def test_gathering_needs_little_memory(tiny_whisper_folder, manifest, tmp_path, monkeypatch, memory):
    cfg = variant(tiny_whisper_folder, max_new_tokens=3)
    whole = run(manifest, tmp_path / "whole", cfg, shards=2).read_bytes()
    held = []
    true = gather.ShardReader.take
    monkeypatch.setattr(gather.ShardReader, "take", lambda self: held.append(len(self._buffer)) or true(self))
    monkeypatch.setattr(gather, "BYTES_IN_MEMORY", memory)
    assert run(manifest, tmp_path / "small", cfg, shards=2).read_bytes() == whole
    longest = max(map(len, whole.splitlines(keepends=True)))
    assert 0 < max(held) <= memory // 2 // (longest // 2) + 1 < len(SECONDS) // 2


def test_missing_models_are_clear(manifest, tmp_path):
    with pytest.raises(UserError, match="model folder not found"):
        run(manifest, tmp_path, variant(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"lacks config.json, model.safetensors"):
        run(manifest, tmp_path, variant(tmp_path / "empty"))


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.test_transcribe import run, variant
from utterflow.asr import transcribe as stage
true = stage.recognise
def slow(*args):
    time.sleep(0.3)
    return true(*args)
stage.recognise = slow
run(Path({manifest!r}), Path({out!r}), variant(Path({model!r})))
"""


def test_killed_in_the_middle_it_resumes_with_the_same_bytes(tiny_whisper_folder, manifest, tmp_path, monkeypatch):
    cfg = variant(tiny_whisper_folder)
    undisturbed = run(manifest, tmp_path / "undisturbed", cfg)
    out = tmp_path / "killed"
    program = KILLED.format(
        tests=str(Path(__file__).parents[1]),
        manifest=str(manifest),
        out=str(out),
        model=str(tiny_whisper_folder),
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and sum(path.stat().st_size for path in out.glob("state/*/*/*.jsonl")) == 0:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "nbest.jsonl").exists()
    computed: list[str] = []
    true = stage.recognise
    monkeypatch.setattr(stage, "recognise", lambda *args: computed.extend(args[2]) or true(*args))
    resumed = run(manifest, out, cfg)
    assert 0 < len(computed) < len(SECONDS)
    assert resumed.read_bytes() == undisturbed.read_bytes()
