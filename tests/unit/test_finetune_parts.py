"""The parts of fine-tuning: order, packing, settings, checkpoints, launching."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_lm import save_tiny_lm
from tiny_training import make_rows

from utterflow.config.language_models import LanguageModel
from utterflow.config.training import DeepSpeed, Training
from utterflow.errors import UserError
from utterflow.files import write_jsonl
from utterflow.finetune import checkpoints
from utterflow.finetune.batches import (
    check_packing,
    epoch_order,
    make_collator,
    pad_packed,
    pad_sequences,
    padding_share,
)
from utterflow.finetune.data import encode_set, first_order, tokens_seen
from utterflow.finetune.launch import ON_EACH_NODE, launch_command, launch_environment, run_processes
from utterflow.finetune.processes import error_line
from utterflow.finetune.resources import node_threads, slurm_resources
from utterflow.finetune.settings import deepspeed_settings, steps_per_epoch, total_steps, warmup_steps
from utterflow.models.text import load_model, load_tokenizer
from utterflow.sft.tokenize import IGNORED, encode_row


def training(**settings: object) -> Training:
    return Training.model_validate({"model": "m", "train": [{"dataset": "d"}], **settings})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    torch.set_num_threads(1)
    folder = save_tiny_lm(tmp_path_factory.mktemp("tiny"))
    cfg = LanguageModel(model=str(folder))
    return load_tokenizer(folder, cfg), load_model(folder, cfg, torch.device("cpu"))


@pytest.mark.parametrize("grouped", [True, False])
def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch_only(grouped: bool) -> None:
    lengths = [(number * 37) % 101 for number in range(203)]
    torch.manual_seed(1)
    first = epoch_order(lengths, 8, grouped=grouped, seed=3, epoch=0)
    torch.manual_seed(2)
    assert first == epoch_order(lengths, 8, grouped=grouped, seed=3, epoch=0)
    assert sorted(first) == list(range(203))
    assert first != epoch_order(lengths, 8, grouped=grouped, seed=3, epoch=1)
    assert first != epoch_order(lengths, 8, grouped=grouped, seed=4, epoch=0)


def test_grouped_batches_hold_rows_of_like_length_the_longest_first_and_no_other_order() -> None:
    lengths = [(number * 37) % 101 + 1 for number in range(400)]
    order = epoch_order(lengths, 8, grouped=True, seed=0, epoch=0)
    assert lengths[order[0]] == max(lengths)
    assert padding_share(lengths, order, 8) < 0.12
    assert padding_share(lengths, epoch_order(lengths, 8, grouped=False, seed=0, epoch=0), 8) > 0.35
    means = [sum(lengths[index] for index in order[start : start + 8]) for start in range(8, 400, 8)]
    rising = sum(one < other for one, other in pairwise(means))
    assert 0.3 < rising / len(means) < 0.7


def test_padding_share_counts_what_the_collator_pads() -> None:
    rows = [{"input_ids": [1] * length, "labels": [1] * length} for length in (3, 9, 20)]
    batches = [pad_sequences(rows[:2], 0), pad_sequences(rows[2:], 0)]
    seen = sum(batch["input_ids"].numel() for batch in batches)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 16), (1, 24)]
    assert padding_share([3, 9, 20], [0, 1, 2], 2) == pytest.approx(1 - 32 / seen)


def losses(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Negative log-probabilities of the trained tokens, in order."""
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    trained = labels[:, 1:] != IGNORED
    return torch.nn.functional.cross_entropy(logits[trained], labels[:, 1:][trained], reduction="none")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_packed_rows_have_the_loss_and_gradient_that_they_have_apart(tmp_path, architecture: str, attention: str):
    folder = save_tiny_lm(tmp_path, architecture)
    cfg = LanguageModel(model=str(folder), attention=attention)
    tokenizer, model = load_tokenizer(folder, cfg), load_model(folder, cfg, torch.device("cpu"))
    write_jsonl(tmp_path / "rows.jsonl", make_rows(12))
    settings = training(packing=True, max_length=128)
    packed = encode_set(tmp_path / "rows.jsonl", lambda row: encode_row(tokenizer, row), settings, train=True)
    plain = encode_set(tmp_path / "rows.jsonl", lambda row: encode_row(tokenizer, row), training(), train=True)
    assert 1 < packed.statistics.sequences < 12
    assert max(packed.lengths) <= 128 and sum(packed.lengths) == packed.statistics.tokens == plain.statistics.tokens
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    sequences = [packed.sequences[index] for index in range(len(packed.sequences))]
    rows = [plain.sequences[index] for index in range(len(plain.sequences))]
    for batch in (
        make_collator(0, flatten=False)(rows),
        make_collator(0, flatten=False)(sequences),
        make_collator(0, flatten=True)(sequences),
    ):
        model.zero_grad()
        per_token = losses(model, batch)
        per_token.sum().backward()
        found.append((per_token.detach().sort().values, model.model.layers[0].self_attn.q_proj.weight.grad.clone()))
    for per_token, gradient in found[1:]:
        torch.testing.assert_close(per_token, found[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-4, rtol=1e-4)


def test_a_packed_batch_for_flash_attention_is_one_row() -> None:
    sequences = [
        {"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3], "seq_lengths": [2, 1]},
        {"input_ids": [4, 5], "labels": [IGNORED, 5], "seq_lengths": [2]},
    ]
    batch = make_collator(0, flatten=True)(sequences)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0, 1, 0, 1, 2]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3, IGNORED, 5, IGNORED, IGNORED, IGNORED]]
    assert "attention_mask" not in batch
    assert pad_packed(sequences, 0)["position_ids"].tolist() == [[0, 1, 0, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4, 5]]


def test_a_model_that_lets_packed_rows_see_each_other_is_refused(tiny, monkeypatch) -> None:
    _, model = tiny
    check_packing(model, torch.device("cpu"))
    forward = type(model).forward
    monkeypatch.setattr(type(model), "forward", lambda self, position_ids=None, **rest: forward(self, **rest))
    with pytest.raises(UserError, match=r"packing: false"):
        check_packing(model, torch.device("cpu"))


def test_rejected_rows_keep_their_reasons_and_ids_come_once(tiny, tmp_path: Path) -> None:
    tokenizer, _ = tiny
    rows = make_rows(4)
    rows[1]["target"] = " "
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = encode_set(tmp_path / "rows.jsonl", lambda row: encode_row(tokenizer, row), training(), train=True)
    assert [(row.id, row.reason.split(":")[0]) for row in found.rejected] == [("row1", "empty target")]
    assert (found.statistics.rows, found.statistics.rejected) == (3, 1)
    answers = [encode_row(tokenizer, row)[1] for row in map(_sft, (rows[0], rows[2], rows[3]))]
    assert found.statistics.answer_tokens == sum(label != IGNORED for labels in answers for label in labels)
    write_jsonl(tmp_path / "rows.jsonl", [rows[0], rows[0]])
    with pytest.raises(UserError, match="twice"):
        encode_set(tmp_path / "rows.jsonl", lambda row: encode_row(tokenizer, row), training(), train=True)


def _sft(row):
    from utterflow.records import SftRow

    return SftRow.model_validate(row)


@pytest.mark.parametrize(
    ("settings", "sequences", "per_epoch", "steps"),
    [
        ({"batch_size": 4, "accumulation": 4, "epochs": 3}, 100, 7, 21),
        ({"batch_size": 4, "accumulation": 4, "epochs": 0.5}, 100, 7, 4),
        ({"batch_size": 3, "accumulation": 2, "processes": 2}, 13, 2, 6),
        ({"max_steps": 9}, 100, 7, 9),
    ],
)
def test_steps(settings: dict[str, object], sequences: int, per_epoch: int, steps: int) -> None:
    """The trainer's own number is compared with this one where trainings run (`planned_steps`)."""
    assert steps_per_epoch(training(**settings), sequences) == per_epoch
    assert total_steps(training(**settings), sequences) == steps


def test_warmup_is_a_share_of_all_steps() -> None:
    assert [warmup_steps(training(warmup_ratio=share), 50) for share in (0, 0.03, 0.5, 1)] == [0, 2, 25, 50]


def test_tokens_seen_over_parts_of_epochs() -> None:
    lengths, settings = [5, 7, 11, 13], training(batch_size=1, group_by_length=False)
    assert tokens_seen(lengths, settings, 2) == 72
    order = first_order(lengths, settings)
    assert tokens_seen(lengths, settings, 0.5) == lengths[order[0]] + lengths[order[1]]


def test_deepspeed_settings() -> None:
    two = deepspeed_settings(DeepSpeed(stage=2, offload_optimizer=True), on_gpu=False)
    assert two["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert "optimizer" not in two and "offload_param" not in two["zero_optimization"]
    three = deepspeed_settings(DeepSpeed(stage=3, offload_parameters=True), on_gpu=True)["zero_optimization"]
    assert three["stage3_gather_16bit_weights_on_model_save"] and three["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("settings", "resources"),
    [
        ({}, {"nodes": 1}),
        ({"gpus": 4}, {"nodes": 1, "gpu": 4}),
        ({"nodes": 2, "processes": 2}, {"nodes": 2, "tasks": 2, "mpi": "srun"}),
        ({"nodes": 2, "gpus": 4}, {"nodes": 2, "tasks": 2, "mpi": "srun", "tasks_per_gpu": 0, "gres": "gpu:4"}),
    ],
)
def test_slurm_resources(settings: dict[str, object], resources: dict[str, object]) -> None:
    assert slurm_resources(training(**settings)) == resources


def test_threads_of_a_node_are_those_of_its_processes() -> None:
    assert node_threads(training(gpus=4, threads=3)) == 12


SPEC = Path("results/.state/finetune/x/spec.json")


def test_one_node_is_started_by_torchrun() -> None:
    command = launch_command(training(processes=3), {}, SPEC)
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[3:] == [
        "--standalone", "--nproc-per-node=3", "--max-restarts=0", "-m", "utterflow.finetune.worker", str(SPEC),
    ]  # fmt: skip


def test_several_nodes_are_started_by_srun_with_one_torchrun_each() -> None:
    environment = {"SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": "2"}
    command = launch_command(training(nodes=2, gpus=4), environment, SPEC, host="node7", threads=3)
    assert command == [
        "srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12", "--gres=gpu:4", "--overlap",
        "--kill-on-bad-exit=1", *ON_EACH_NODE, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
        "--master-addr=node7", "--master-port=20041", "--nproc-per-node=4", "--max-restarts=0",
        "-m", "utterflow.finetune.worker", str(SPEC),
    ]  # fmt: skip


def test_several_nodes_need_a_slurm_job_with_as_many() -> None:
    with pytest.raises(UserError, match=r"no job of a Slurm cluster[\s\S]*profiles/slurm"):
        launch_command(training(nodes=2), {}, SPEC)
    with pytest.raises(UserError, match="job 41 has 1"):
        launch_command(training(nodes=2), {"SLURM_JOB_ID": "41", "SLURM_JOB_NUM_NODES": "1"}, SPEC)


def test_a_step_over_nodes_does_not_inherit_the_present_step() -> None:
    given = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "1", "SLURM_CPU_BIND": "x", "SRUN_DEBUG": "3", "HOME": "/h"}
    several = launch_environment(given, threads=2, several_nodes=True)
    assert several.keys() & given.keys() == {"SLURM_JOB_ID", "HOME"}
    assert (several["OMP_NUM_THREADS"], several["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]) == ("2", "1")
    assert launch_environment(given, threads=2, several_nodes=False).keys() >= given.keys()


def test_the_last_lines_of_a_failed_process_are_told() -> None:
    program = "import sys; [print('line', n) for n in range(99)]; sys.exit('rank 1: no such layer')"
    with pytest.raises(UserError) as error:
        run_processes([sys.executable, "-c", program], os.environ)
    assert "code 1" in str(error.value) and "rank 1: no such layer" in str(error.value)
    assert "line 98" in str(error.value) and "line 5\n" not in str(error.value)


def test_what_torchrun_prints_after_a_failure_does_not_push_away_its_reason() -> None:
    program = (
        "import sys; print('killed: no memory'); print('E1 api.py] failed (exitcode: -9) local_rank: 0')\n"
        "[print('frame', n) for n in range(99)]; print('srun: error: node2: Out Of Memory'); sys.exit(1)"
    )
    with pytest.raises(UserError) as error:
        run_processes([sys.executable, "-c", program], os.environ)
    assert [line.strip() for line in error.value.what.splitlines()[1:]] == [
        "| killed: no memory",
        "| E1 api.py] failed (exitcode: -9) local_rank: 0",
        "| srun: error: node2: Out Of Memory",
    ]


def test_errors_that_two_processes_write_on_one_line_are_told() -> None:
    told = error_line(UserError("no such layer"))
    with pytest.raises(UserError, match=r"^no such layer$"):
        run_processes([sys.executable, "-c", f"import sys; print({told + told!r}); sys.exit(1)"], os.environ)


def test_the_error_of_a_process_is_that_of_the_job() -> None:
    told = error_line(UserError("model folder not found", where="m", fix="fetch it"))
    with pytest.raises(UserError) as error:
        run_processes([sys.executable, "-c", f"import sys; print({told!r}); sys.exit(1)"], os.environ)
    assert (error.value.what, error.value.where, error.value.fix) == ("model folder not found", "m", "fetch it")


def is_alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(path: Path) -> int:
    for _ in range(600):
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"


def test_sigterm_ends_the_processes_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    timer = threading.Thread(target=lambda: (wait_for(note), os.kill(os.getpid(), signal.SIGTERM)))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run_processes([sys.executable, "-c", SLEEPER, str(note)], os.environ)
    timer.join()
    assert not is_alive(wait_for(note))


def test_no_process_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = (
        "import os, sys\nfrom utterflow.finetune.launch import run_processes\n"
        f"run_processes([sys.executable, '-c', {SLEEPER!r}, {str(note)!r}], os.environ)"
    )
    library = str(Path(__file__).parents[2] / "workflow")
    launcher = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": library})
    child = wait_for(note)
    launcher.kill()
    launcher.wait()
    for _ in range(100):
        if not is_alive(child):
            return
        time.sleep(0.05)
    raise AssertionError("the training process lives on")


def checkpoint(state: Path, step: int, *, ended: bool = False, complete: bool = True) -> Path:
    folder = state / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text("0123")
    if complete:
        checkpoints.mark_complete(folder, ended=ended)
    return folder


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert checkpoints.prepare(tmp_path) is None
    checkpoint(tmp_path, 9)
    torn = checkpoint(tmp_path, 10)
    (torn / "weights").write_text("01")
    checkpoint(tmp_path, 11, complete=False)
    assert checkpoints.prepare(tmp_path) == tmp_path / "checkpoint-9"
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["checkpoint-9"]


def test_a_checkpoint_at_the_end_is_not_gone_on_from(tmp_path: Path) -> None:
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 7, ended=True)
    assert checkpoints.prepare(tmp_path) == tmp_path / "checkpoint-5"


def test_the_newest_and_the_best_checkpoint_stay(tmp_path: Path) -> None:
    for step in (2, 10, 4, 6):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 12, complete=False)
    checkpoints.prune(tmp_path, str(tmp_path / "checkpoint-4"))
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == [
        "checkpoint-4",
        "checkpoint-10",
        "checkpoint-12",
    ]
