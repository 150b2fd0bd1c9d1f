"""Rules `dump_beams` and `gather_beams` on tiny stored logits."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kenlm
import numpy as np
import pytest
from scipy.special import log_softmax

from utterflow.beams import dump as stage
from utterflow.beams.dump import DecoderFiles, dump_beams, make_batches
from utterflow.beams.gather import gather_beams
from utterflow.config.beams import Beams
from utterflow.errors import UserError
from utterflow.files import read_jsonl, write_jsonl
from utterflow.gather import Shard
from utterflow.records import BeamsRow, TrialRow, read_records

TOKENS = ["-", "A", "B", "C", "D", "|"]
LEXICON = {"ab": "A B", "abba": "A B B A", "cab": "C A B", "dad": "D A D", "bad": "B A D", "a": "A", "add": "A D D"}
FRAMES = (30, 12, 25, 18, 40, 9, 22, 15, 33, 11)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("utterflow").propagate = True
    caplog.set_level(logging.INFO, logger="utterflow")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> DecoderFiles:
    folder = tmp_path_factory.mktemp("decoder")
    (folder / "tokens.txt").write_text("".join(f"{name}\n" for name in TOKENS))
    (folder / "lexicon.txt").write_text("".join(f"{word} {phones} |\n" for word, phones in LEXICON.items()))
    unigrams = "".join(f"-{1 + i / 10:.1f}\t{word}\t-0.{i + 1}\n" for i, word in enumerate(LEXICON))
    bigrams = "-0.3\t<s> dad\n-0.2\tdad ab\n-0.4\tab </s>\n-0.5\tbad cab\n"
    (folder / "lm.arpa").write_text(
        f"\\data\\\nngram 1={len(LEXICON) + 3}\nngram 2=4\n\n\\1-grams:\n-2\t<unk>\t0\n0\t<s>\t-0.3\n-1.2\t</s>\n"
        f"{unigrams}\n\\2-grams:\n{bigrams}\n\\end\\\n"
    )
    return DecoderFiles(folder / "tokens.txt", folder / "lexicon.txt", folder / "lm.arpa")


def make_logits(seed: int, frames: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 2, (frames, len(TOKENS)))
    return log_softmax(values, axis=1).astype(np.float32)


def write_trials(folder: Path, arrays: list[np.ndarray], shards: int = 1) -> list[Path]:
    """An npz and the trials of each shard."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "logits.npz", *arrays)
    rows = [
        TrialRow(
            id=f"trial{index}",
            index=index,
            npz=str(folder / "logits.npz"),
            array=f"arr_{index}",
            frames=len(array),
            text="dad ab",
            session=f"day{index % 2}",
            logits="unknown",
        ).row()
        for index, array in enumerate(arrays)
    ]
    paths = [folder / f"{index}-of-{shards}.trials.jsonl" for index in range(shards)]
    for index, path in enumerate(paths):
        write_jsonl(path, rows[index::shards])
    return paths


def config(**keys) -> Beams:
    return Beams.model_validate(
        {
            "logits": "l",
            "tokens": "t",
            "lexicon": "x",
            "ngram": "n",
            "beam_size": 60,
            "top_n": 8,
            "batch_size": 3,
            **keys,
        }
    )


def run(
    trials: list[Path],
    out: Path,
    files: DecoderFiles,
    cfg: Beams,
    threads: int = 1,
    state: Path | None = None,
    code: str = "code",
) -> Path:
    """All shards and the gather; the gathered file."""
    shards = len(trials)
    parts = [out / f"{index}-of-{shards}" for index in range(shards)]
    for index, part in enumerate(parts):
        dump_beams(
            trials=trials[index],
            shard=Shard(index, shards),
            files=files,
            cfg=cfg,
            code=code,
            state=state or out / "state",
            threads=threads,
            beams=part.with_suffix(".jsonl"),
            rejected=part.with_suffix(".rejected.jsonl"),
            meta=part.with_suffix(".meta.json"),
        )
    gather_beams(
        trials=trials,
        shards=[part.with_suffix(".jsonl") for part in parts],
        rejected_shards=[part.with_suffix(".rejected.jsonl") for part in parts],
        cfg=cfg.model_dump(mode="json", include={"max_samples", "trial_indices"}),
        code="code",
        beams=out / "beams.jsonl",
        rejected=out / "beams.rejected.jsonl",
        meta=out / "beams.meta.json",
    )
    return out / "beams.jsonl"


def meta_of(path: Path) -> dict:
    return json.loads(path.with_name("beams.meta.json").read_text())


def rejected_of(path: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for _, row in read_jsonl(path.with_name("beams.rejected.jsonl"))}


@pytest.fixture(scope="module")
def arrays() -> list[np.ndarray]:
    return [make_logits(index, frames) for index, frames in enumerate(FRAMES)]


@pytest.fixture(scope="module")
def trials(tmp_path_factory, arrays) -> list[Path]:
    return write_trials(tmp_path_factory.mktemp("logits"), arrays)


def test_lists_hold_distinct_sentences_with_the_models_scores(trials, files, tmp_path):
    cfg = config(word_insertion_bonus=0.5, alpha_ngram=0.7)
    model = kenlm.Model(str(files.ngram))
    rows = list(read_records(run(trials, tmp_path, files, cfg), BeamsRow))
    assert [row.id for row in rows] == [f"trial{index}" for index in range(len(FRAMES))]
    for row in rows:
        assert (row.text, row.session, row.logits) == ("dad ab", f"day{row.index % 2}", "unknown")
        assert 1 < len(row.beams) <= 8 and len({item.text for item in row.beams}) == len(row.beams)
        assert [item.score for item in row.beams] == sorted((item.score for item in row.beams), reverse=True)
        for item in row.beams:
            words = item.text.split()
            assert set(words) <= LEXICON.keys()
            assert item.lm_score == pytest.approx(model.score(item.text) * math.log(10), abs=1e-3)
            total = 0.4 * item.acoustic_score + 0.7 * item.lm_score + 0.5 * len(words)
            assert item.score == pytest.approx(total, abs=1e-3)


def test_characters_go_the_same_way(files, arrays, tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(["<pad>", *"abcd", "|"])}))
    trials = write_trials(tmp_path / "logits", arrays[:4], shards=2)
    decoder = DecoderFiles(tmp_path / "vocab.json", None, files.ngram, files.ngram)
    found = run(trials, tmp_path, decoder, config(decoder="characters", lexicon=None))
    model = kenlm.Model(str(files.ngram))
    for row in read_records(found, BeamsRow):
        assert len(row.beams) == 8
        for item in row.beams:
            assert item.lm_score == pytest.approx(model.score(item.text) * math.log(10), abs=1e-3)


def test_shards_batches_and_processes_do_not_change_the_rows(trials, files, arrays, tmp_path):
    whole = run(trials, tmp_path / "one", files, config())
    three = run(write_trials(tmp_path / "logits", arrays, 3), tmp_path / "three", files, config())
    single = run(trials, tmp_path / "single", files, config(batch_size=1))
    processes = run(trials, tmp_path / "processes", files, config(), threads=3)
    assert whole.read_bytes() == three.read_bytes() == single.read_bytes() == processes.read_bytes()
    assert meta_of(three)["rows"] == {"in": 10, "out": 10, "rejected": 0}
    assert meta_of(three)["lists"] == meta_of(whole)["lists"]


def test_finished_trials_are_not_decoded_again(trials, files, arrays, tmp_path, monkeypatch):
    state = tmp_path / "state"
    first = run(trials, tmp_path / "first", files, config(), state=state)
    monkeypatch.setattr(stage, "_attempt", lambda *_: pytest.fail("decoded again"))
    again = run(trials, tmp_path / "again", files, config(batch_size=5, threads=2), state=state)
    assert again.read_bytes() == first.read_bytes()
    assert meta_of(again)["from_journal"] == len(FRAMES)
    moved = write_trials(tmp_path / "moved", arrays[:7], shards=2)
    assert len(list(read_records(run(moved, tmp_path / "fewer", files, config(), state=state), BeamsRow))) == 7
    run(trials, tmp_path / "chosen", files, config(max_samples=4), state=state)


@pytest.mark.parametrize("change", ["logits", "cfg", "code", "lexicon"])
def test_what_a_list_depends_on_starts_anew(trials, files, arrays, tmp_path, monkeypatch, change):
    state = tmp_path / "state"
    run(trials, tmp_path / "first", files, config(), state=state)
    decoded = []
    true = stage._attempt
    monkeypatch.setattr(stage, "_attempt", lambda *args: decoded.append(args) or true(*args))
    other, cfg, code = files, config(), "code"
    if change == "logits":
        trials = write_trials(tmp_path / "other", [make_logits(99, FRAMES[0]), *arrays[1:]])
    elif change == "cfg":
        cfg = config(alpha_ngram=0.9)
    elif change == "code":
        code = "other"
    else:
        (tmp_path / "lexicon.txt").write_text(files.lexicon.read_text() + "da D A |\n")
        other = DecoderFiles(files.tokens, tmp_path / "lexicon.txt", files.ngram)
    run(trials, tmp_path / "again", other, cfg, state=state, code=code)
    assert len(decoded) == (1 if change == "logits" else len(FRAMES))


def test_trials_that_cannot_be_decoded_are_rejected_and_the_rest_kept(files, arrays, tmp_path):
    bad = list(arrays)
    bad[1] = np.full_like(bad[1], np.nan)
    bad[3] = bad[3][:, :4]
    bad[4] = bad[4][:0]
    bad[6] = np.full_like(bad[6], -1000.0)
    bad[6][:, 2] = 0.0  # nothing but B: no sentence
    trials = write_trials(tmp_path / "logits", bad, shards=3)
    found = run(trials, tmp_path, files, config(max_rejected=1, token_prune=5, beam_prune_threshold=5))
    reasons = rejected_of(found)
    assert list(reasons) == ["trial1", "trial3", "trial4", "trial6"]
    assert "not numbers" in reasons["trial1"] and "no frames" in reasons["trial4"]
    assert "have 4, the tokens are 6" in reasons["trial3"]
    assert reasons["trial6"].startswith("no hypothesis")
    assert [row.index for row in read_records(found, BeamsRow)] == [0, 2, 5, 7, 8, 9]
    assert meta_of(found)["rows"] == {"in": 10, "out": 6, "rejected": 4}
    with pytest.raises(UserError, match="max_rejected"):
        run(trials, tmp_path / "strict", files, config())
    again = run(trials, tmp_path, files, config(max_rejected=1, token_prune=5, beam_prune_threshold=5))
    assert rejected_of(again) == reasons


def test_the_first_trials_are_those_of_the_partition(files, arrays, tmp_path):
    trials = write_trials(tmp_path / "logits", arrays, shards=3)
    found = run(trials, tmp_path / "first", files, config(max_samples=4))
    assert [row.index for row in read_records(found, BeamsRow)] == [0, 1, 2, 3]
    part = json.loads((tmp_path / "first/0-of-3.meta.json").read_text())
    assert part["rows"]["in"] == 2 and part["not_chosen"] == 2


def test_trials_are_chosen_by_position(files, arrays, tmp_path, caplog):
    trials = write_trials(tmp_path / "logits", arrays, shards=3)
    found = run(trials, tmp_path / "some", files, config(trial_indices=[8, 1, 0, 12, 31]))
    assert [row.index for row in read_records(found, BeamsRow)] == [0, 1, 8]
    warnings = [record.getMessage() for record in caplog.records if "trial_indices" in record.getMessage()]
    assert len(warnings) == 2 and "[12]" in warnings[0] and "[31]" in warnings[1]
    both = run(trials, tmp_path / "both", files, config(trial_indices=[8, 1, 0], max_samples=2))
    assert [row.index for row in read_records(both, BeamsRow)] == [0, 1]


def test_short_lists_and_collapse_are_said(files, arrays, tmp_path, caplog):
    frames = [TOKENS.index(name) for name in "DAD|AB|"]
    clear = np.where(np.eye(len(TOKENS))[frames], 0, -np.inf).astype(np.float32)
    found = run(write_trials(tmp_path / "clear", [clear] * 4), tmp_path / "narrow", files, config())
    assert [[item.text for item in row.beams] for row in read_records(found, BeamsRow)] == [["dad ab"]] * 4
    assert "collapsed beams: all 4 trials have a single hypothesis" in caplog.text
    assert "4 of 4 trials have fewer than top_n = 8 hypotheses (mean 1.0)" in caplog.text
    assert "raise `beam_prune_threshold`" in caplog.text
    caplog.clear()
    trials = write_trials(tmp_path / "logits", arrays[:4])
    wide = run(trials, tmp_path / "wide", files, config(top_n=3, beam_size=1000))
    assert "hypotheses" not in caplog.text
    assert meta_of(wide)["lists"] == {"trials": 4, "hypotheses": 12, "distinct": 12, "single": 0, "below_top_n": 0}


@pytest.mark.parametrize("chosen", [0, 2])
def test_shards_without_trials(files, arrays, tmp_path, chosen):
    trials = write_trials(tmp_path / "logits", arrays[:chosen] or arrays[:1], shards=3)
    keys = {} if chosen else {"trial_indices": [5]}
    found = run(trials, tmp_path, files, config(**keys), threads=2)
    assert [row.index for row in read_records(found, BeamsRow)] == list(range(chosen))
    assert meta_of(found)["rows"] == {"in": chosen, "out": chosen, "rejected": 0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lexicon", "", r"no words in this lexicon[\s\S]*lexicon"),
        ("lexicon", "ab A X |\n", r"'X'[\s\S]*lexicon, line 1"),
        ("tokens", "A\nB\n", "no blank"),
        ("ngram", "nonsense", "not a language model"),
    ],
)
def test_decoder_files_that_cannot_be_used_are_plain_errors(trials, files, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    changed = DecoderFiles(**{**files.named(), name: tmp_path / name})
    with pytest.raises(UserError, match=message):
        run(trials, tmp_path, changed, config())


def test_the_script_ends_without_a_traceback(repository, trials, files, tmp_path):
    cfg = config(ngram=None).model_dump(mode="json", exclude={"threads", "mem_mb", "runtime"})
    (tmp_path / "lexicon.txt").write_text("\n")
    program = f"""
import sys
from types import SimpleNamespace as Bag
snakemake = Bag(
    log=[{str(tmp_path / "job.log")!r}], threads=1, wildcards=Bag(shard="0", shards="1"),
    input=Bag(trials={str(trials[0])!r}, tokens={str(files.tokens)!r}, lexicon=[{str(tmp_path / "lexicon.txt")!r}],
              ngram=[], arpa=[]),
    output=Bag(beams="b.jsonl", rejected="r.jsonl", meta="m.json"),
    params=Bag(cfg={cfg!r}, code="code"),
)
exec(compile(open({str(repository / "workflow/scripts/dump_beams.py")!r}).read(), "dump_beams.py", "exec"))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 1 and "no words in this lexicon" in done.stderr and "Traceback" not in done.stderr
    assert "no words in this lexicon" in (tmp_path / "job.log").read_text()
    (tmp_path / "lexicon.txt").write_text(files.lexicon.read_text())
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(read_records(tmp_path / "b.jsonl", BeamsRow))) == len(FRAMES)


def test_batches_do_not_depend_on_what_is_done(trials):
    rows = list(read_records(trials[0], TrialRow))
    batches = make_batches(rows, 4)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    frames = [row.frames for batch in batches for row in batch]
    assert frames == sorted(frames, reverse=True)


def test_a_trial_that_no_shard_holds_is_a_plain_error(trials, files, tmp_path):
    found = run(trials, tmp_path, files, config())
    part = tmp_path / "0-of-1.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    arguments = {
        "trials": trials,
        "shards": [part],
        "rejected_shards": [tmp_path / "0-of-1.rejected.jsonl"],
        "code": "code",
        "beams": found,
        "rejected": tmp_path / "beams.rejected.jsonl",
        "meta": tmp_path / "beams.meta.json",
    }
    part.write_text("".join(lines[:4] + lines[5:]))
    with pytest.raises(UserError, match=r"'trial4' of the trials is missing"):
        gather_beams(**arguments, cfg={"max_samples": None, "trial_indices": None})
    part.write_text("".join(lines))
    with pytest.raises(UserError, match=r"'trial2' is not in the trials"):
        gather_beams(**arguments, cfg={"max_samples": 2, "trial_indices": None})


def test_a_killed_process_ends_the_job_with_a_plain_error(trials, files, tmp_path, monkeypatch):
    state = tmp_path / "state"
    true = stage._attempt

    def fatal(decode, log_probs):
        if len(log_probs) == min(FRAMES):
            os.kill(os.getpid(), signal.SIGKILL)
        return true(decode, log_probs)

    monkeypatch.setattr(stage, "_attempt", fatal)
    with pytest.raises(UserError, match=r"process was killed[\s\S]*mem_mb"):
        run(trials, tmp_path / "killed", files, config(), threads=2, state=state)
    monkeypatch.setattr(stage, "_attempt", true)
    resumed = run(trials, tmp_path / "resumed", files, config(), threads=2, state=state)
    undisturbed = run(trials, tmp_path / "undisturbed", files, config())
    assert meta_of(resumed)["from_journal"] > 0
    assert resumed.read_bytes() == undisturbed.read_bytes()


KILLED = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from unit.test_dump_beams import config, run
from utterflow.beams import dump as stage
from utterflow.beams.dump import DecoderFiles
true = stage._attempt
def slow(*args):
    with open({out!r} + ".processes", "a") as handle:
        handle.write(f"{{os.getpid()}}\\n")
    time.sleep(0.5)
    return true(*args)
stage._attempt = slow
files = DecoderFiles(*map(Path, json.loads({files!r})))
run([Path({trials!r})], Path({out!r}), files, config(), threads={threads})
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_in_the_middle_it_resumes_with_the_same_bytes(trials, files, tmp_path, monkeypatch, threads):
    undisturbed = run(trials, tmp_path / "undisturbed", files, config())
    out = tmp_path / "killed"
    program = KILLED.format(
        tests=str(Path(__file__).parents[1]),
        trials=str(trials[0]),
        out=str(out),
        files=json.dumps([str(path) for path in files.named().values()]),
        threads=threads,
    )
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and sum(path.stat().st_size for path in out.glob("state/*/*/*.jsonl")) == 0:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "0-of-1.jsonl").exists()
    decoded = []
    true = stage._attempt
    monkeypatch.setattr(stage, "_attempt", lambda *args: decoded.append(args) or true(*args))
    resumed = run(trials, out, files, config())
    assert 0 < len(decoded) < len(FRAMES)
    assert resumed.read_bytes() == undisturbed.read_bytes()
    workers = {int(line) for line in Path(f"{out}.processes").read_text().split()} - {process.pid}
    assert len(workers) == (threads if threads > 1 else 0)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.1)
    assert not any(map(alive, workers))


def alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
