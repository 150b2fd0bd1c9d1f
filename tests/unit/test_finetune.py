"""Fine-tuning: what is learnt, what is kept, and that kills change nothing."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import FULL, Workplace, history, make_rows, make_workplace, metrics, results, train_until_killed

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.files import read_json, read_jsonl, write_jsonl
from utterflow.finetune import checkpoints
from utterflow.finetune.merge import merge_adapter
from utterflow.finetune.trainer import Watch
from utterflow.models.text import load_model, load_tokenizer
from utterflow.records import SftRow
from utterflow.sft.tokenize import IGNORED, encode_prompt, encode_row

MERGED = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    torch.set_num_threads(1)
    return make_workplace(tmp_path)


def mean_loss(folder: Path, rows: Path, adapter: Path | None = None) -> float:
    """Loss per answer token, row by row and without any of the trainer's code."""
    cfg = LanguageModel(model=str(folder))
    tokenizer, model = load_tokenizer(folder, cfg), load_model(folder, cfg, torch.device("cpu"))
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    total, count = 0.0, 0
    for _, row in read_jsonl(rows):
        ids, labels = (torch.tensor(part) for part in encode_row(tokenizer, SftRow.model_validate(row)))
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        trained = labels[1:] != IGNORED
        total += float(torch.nn.functional.cross_entropy(logits[trained], ids[1:][trained], reduction="sum"))
        count += int(trained.sum())
    return total / count


def test_full_fine_tuning_learns_to_answer(place: Workplace) -> None:
    out = place.run(**FULL, epochs=30, batch_size=4, accumulation=1, keep_best=False)
    assert metrics(out)["final_loss"] < 0.3 < history(out)[0]["loss"]
    cfg = LanguageModel(model=str(out / "model"))
    tokenizer, model = load_tokenizer(out / "model", cfg), load_model(out / "model", cfg, torch.device("cpu"))
    row = SftRow.model_validate(make_rows(1, first=4)[0])
    prompt = torch.tensor([encode_prompt(tokenizer, row.messages)])
    answer = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    assert tokenizer.decode(answer[0, prompt.shape[1] :]) == f"{row.target}<|im_end|>"


def test_validation_loss_is_exact_whatever_the_batches(place: Workplace) -> None:
    write_jsonl(place.folder / "validation.jsonl", make_rows(7, first=1000))
    adapter = {"adapter": {"dropout": 0.0}}
    several = place.run("several", **adapter, batch_size=4, accumulation=1)
    expected = mean_loss(place.model, place.folder / "validation.jsonl", several / "adapter")
    assert metrics(several)["final_eval_loss"] == pytest.approx(expected, abs=2e-5)


def test_accumulated_batches_give_what_one_batch_gives(place: Workplace) -> None:
    """Rows of unlike lengths: only a mean over tokens, not over batches, gives the same."""
    same = {"adapter": {"dropout": 0.0}, "group_by_length": False, "log_every": 1, "epochs": 1}
    small = place.run("small", batch_size=2, accumulation=2, **same)
    large = place.run("large", batch_size=4, accumulation=1, **same)
    losses = [[row["loss"] for row in history(out) if row["loss"] is not None] for out in (small, large)]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    weights = [load_file(out / "adapter/adapter_model.safetensors") for out in (small, large)]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-4, rtol=1e-3)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outs = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        monkeypatch.chdir(tmp_path / str(number))
        make_workplace(Path("place"))
        outs.append(tmp_path / str(number) / Workplace(Path("place")).run())
    first, second = map(results, outs)
    assert len(first) == 5
    assert first == second


def interrupted(place: Workplace, monkeypatch: pytest.MonkeyPatch, where: str, step: int, **training: object) -> None:
    """Run a training in this process that is broken off."""

    def stop(self: object, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        original(self, args, state, control)

    original = getattr(Watch, where)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Watch, where, stop)
        place.run("killed", **training)


def killed(place: Workplace, where: str, step: int, **training: object) -> None:
    """Run a training in a process that kills itself; a fork of one that has imported all, but has trained nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["utterflow.finetune.job", "utterflow.finetune.trainer", "peft", "trl"])
    arguments = place.arguments("killed", **training)
    process = context.Process(target=train_until_killed, args=(arguments, place.folder / "killed", where, step))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert not (place.folder / "killed").exists()


RESUMED = {"evaluate_every": 5, "log_every": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Dropout, length groups and a second epoch: random state, order and schedule must all be taken up again."""
    torch.set_num_threads(1)
    return results(make_workplace(tmp_path_factory.mktemp("other")).run("undisturbed", **RESUMED))


@pytest.mark.parametrize(
    ("where", "step", "goes_on_from"),
    [("on_step_end", 8, "checkpoint-5"), ("on_save", 10, "checkpoint-5")],
    ids=["between checkpoints", "while a checkpoint is written"],
)
def test_a_killed_training_ends_as_if_nothing_had_happened(
    place: Workplace, undisturbed: dict[str, bytes], where: str, step: int, goes_on_from: str
) -> None:
    killed(place, where, step, **RESUMED)
    (own,) = (place.state / "finetune").iterdir()
    resumed = checkpoints.prepare(own)
    assert resumed is not None and resumed.name == goes_on_from
    out = place.run("killed", **RESUMED)
    found = results(out)
    differing = {name for name in undisturbed if undisturbed[name] != found[name]}
    assert differing == {"adapter/adapter_config.json"}  # it names the folder of the model
    meta = read_json(out / "training.meta.json")
    assert meta["resumed_from_step"] == 5
    assert not checkpoints.checkpoints(own)


def test_a_finished_training_is_put_out_again_without_training(place: Workplace, monkeypatch) -> None:
    first = results(place.run())
    for path in (place.folder / "run").rglob("*"):
        if path.is_file():
            path.unlink()
    monkeypatch.setattr("utterflow.finetune.job.run_training", lambda spec: pytest.fail("trained again"))
    assert results(place.run()) == first


def test_another_setting_is_another_training(place: Workplace) -> None:
    place.run("one")
    place.run("two", learning_rate=0.02)
    place.run("three", learning_rate=0.02, runtime=99, mem_mb=9000)
    assert len(list((place.state / "finetune").iterdir())) == 2


def test_a_checkpoint_that_would_run_code_is_refused(place: Workplace, tmp_path: Path, monkeypatch) -> None:
    settings = {"evaluate_every": 5}
    interrupted(place, monkeypatch, "on_step_end", 8, **settings)
    (checkpoint,) = (place.state / "finetune").glob("*/checkpoint-5")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Evil()))
    checkpoints.mark_complete(checkpoint)
    with pytest.raises(UserError, match="may not be loaded"):
        place.run("killed", **settings)
    assert not (tmp_path / "executed").exists()


def test_two_trainings_never_share_a_state_folder(tmp_path: Path) -> None:
    with (
        checkpoints.locked(tmp_path),
        pytest.raises(UserError, match="another process"),
        checkpoints.locked(tmp_path),
    ):
        pass
    with checkpoints.locked(tmp_path):
        pass


def test_the_best_checkpoint_is_kept(place: Workplace) -> None:
    settings = {**FULL, "epochs": 8, "learning_rate": 0.05, "scheduler": "constant", "evaluate_every": 4}
    out = place.run(**settings)
    found, curve = metrics(out), [(row["eval_loss"], row["step"]) for row in history(out) if row["eval_loss"]]
    assert (found["best_eval_loss"], found["best_step"]) == min(curve)
    assert found["kept_step"] == found["best_step"] < found["steps"]
    kept = mean_loss(out / "model", place.folder / "validation.jsonl")
    assert kept == pytest.approx(found["best_eval_loss"], abs=1e-4)
    last = place.run("last", **settings, keep_best=False)
    assert metrics(last)["kept_step"] == metrics(last)["steps"]
    assert mean_loss(last / "model", place.folder / "validation.jsonl") == pytest.approx(
        metrics(last)["final_eval_loss"], abs=1e-4
    )


def test_patience_ends_a_training_and_survives_a_kill(place: Workplace, monkeypatch) -> None:
    settings = {
        "learning_rate": 1.0, "scheduler": "constant", "epochs": 10,
        "evaluate_every": 2, "patience": 2, "warmup_ratio": 0,
    }  # fmt: skip
    out = place.run("whole", **settings)
    found = metrics(out)
    assert found["stopped_early"] and found["steps"] < found["planned_steps"]
    assert found["steps"] == found["best_step"] + 4
    (own,) = (place.state / "finetune").iterdir()
    shutil.rmtree(own)
    interrupted(place, monkeypatch, "on_save", found["steps"], **settings)
    assert results(place.run("killed", **settings)) == results(out)


def test_rows_too_long_are_rejected_and_never_cut(place: Workplace) -> None:
    with pytest.raises(UserError, match="max_rejected"):
        place.run(max_length=32)
    out = place.run(max_length=32, max_rejected=0.9)
    found = metrics(out)
    lost = [row for _, row in read_jsonl(out / "rejected.jsonl")]
    assert found["rows"] == {"in": 30, "out": 30 - len(lost), "rejected": len(lost)}
    assert found["train"]["longest"] <= 32
    assert all(row["reason"].startswith("too long: ") for row in lost) and lost


def test_a_set_without_usable_rows_is_an_error(place: Workplace) -> None:
    write_jsonl(place.folder / "train.jsonl", [])
    with pytest.raises(UserError, match="no row to train on"):
        place.run()


def test_without_validation_the_last_step_is_kept(place: Workplace) -> None:
    write_jsonl(place.folder / "validation.jsonl", [])
    found = metrics(place.run(max_steps=5))
    assert (found["steps"], found["kept_step"], found["best_step"], found["validation"]) == (5, 5, None, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"scheduler": "linear", "warmup_ratio": 1.0},
        {"scheduler": "constant", "optimizer": "adafactor"},
        {"scheduler": "constant_with_warmup", "warmup_ratio": 0.5, "optimizer": "adamw_torch_fused"},
        {"scheduler": "cosine_with_min_lr", "weight_decay": 0.1, "max_grad_norm": 0.1},
        {"precision": "bf16", "gradient_checkpointing": True},
        {"epochs": 0.4, "group_by_length": False, "seed": 7},
        {"max_steps": 17, "packing": True, "max_length": 128},
        {"adapter": {"targets": "all-linear", "rslora": True, "r": 4, "alpha": 4, "modules_to_save": ["lm_head"]}},
        {"report_to": "tensorboard"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_every_setting_trains(place: Workplace, settings: dict[str, object]) -> None:
    out = place.run(**settings)
    found, curve = metrics(out), history(out)
    assert found["steps"] == found["planned_steps"]
    assert all(math.isfinite(row["loss"]) for row in curve if row["loss"] is not None)
    if settings.get("warmup_ratio") == 1.0:
        rates = [row["learning_rate"] for row in curve if row["learning_rate"] is not None]
        assert rates == sorted(rates) and rates[-1] < 0.01
    if settings.get("scheduler") == "cosine_with_min_lr":
        assert curve[-2]["learning_rate"] == pytest.approx(0.001, rel=0.2)
    if settings.get("precision") == "bf16":
        assert found["precision"] == "bf16"
    if "adapter" in settings:
        saved = read_json(out / "adapter/adapter_config.json")
        assert saved["use_rslora"] and saved["r"] == 4
        assert saved["target_modules"] == sorted(saved["target_modules"]) and any(
            name.endswith("gate_proj") for name in saved["target_modules"]
        )
        assert any("lm_head" in name for name in load_file(out / "adapter/adapter_model.safetensors"))
    if "report_to" in settings:
        assert list((place.state / "tensorboard" / "run").glob("events*"))


def test_gradient_checkpointing_changes_no_loss(place: Workplace) -> None:
    plain = history(place.run("plain", adapter={"dropout": 0.0}))
    saving = history(place.run("saving", adapter={"dropout": 0.0}, gradient_checkpointing=True))
    assert [row["loss"] for row in plain] == [
        pytest.approx(row["loss"], abs=1e-5) if row["loss"] else None for row in saving
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapter": {"targets": ["query"]}}, "no module 'query'.*q_proj"),
        ({"adapter": {"targets": ["lm_head"]}}, "modules_to_save"),
        ({"adapter": {"quantize": "nf4"}, "gpus": 1}, "bitsandbytes"),
        ({"optimizer": "paged_adamw_8bit"}, "bitsandbytes"),
        ({"report_to": "wandb"}, "wandb"),
        ({"gpus": 1}, "no GPU"),
        ({"gpus": 1, "processes": 2}, "one process per GPU"),
        ({"nodes": 2}, "no job of a Slurm cluster"),
    ],
)
def test_what_cannot_be_done_is_said(place: Workplace, settings: dict[str, object], words: str, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name in ("bitsandbytes", "wandb") else 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match=f"(?s){words}"):
        place.run(**settings)


def test_float16_weights_are_not_trained_in_full(place: Workplace) -> None:
    arguments = place.arguments(**FULL)
    arguments["cfg"]["model"]["dtype"] = "float16"
    from tiny_training import run_arguments

    with pytest.raises(UserError, match="float16"):
        run_arguments(arguments, place.folder / "out")


def test_kinds_not_built_yet_are_named(place: Workplace) -> None:
    arguments = place.arguments()
    arguments["cfg"]["model"]["kind"] = "vision"
    from tiny_training import run_arguments

    with pytest.raises(UserError, match="vision can be neither trained nor asked yet"):
        run_arguments(arguments, place.folder / "out")


def test_a_loss_that_is_no_number_ends_the_training(place: Workplace) -> None:
    with pytest.raises(UserError, match="no longer a number"):
        place.run(**FULL, learning_rate=1e30, scheduler="constant", warmup_ratio=0, max_grad_norm=1e30, log_every=1)


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_merged_weights_answer_like_model_and_adapter(tmp_path: Path, architecture: str) -> None:
    from peft import PeftModel

    place = make_workplace(tmp_path, architecture=architecture)
    out = place.run(learning_rate=0.05, adapter={"targets": "all-linear"})
    cfg = LanguageModel(model=str(place.model))
    adapter = [out / "adapter/adapter_model.safetensors", out / "adapter/adapter_config.json"]
    merge_adapter(
        adapter,
        weights=[tmp_path / "merged" / name for name in MERGED],
        meta=tmp_path / "merged.meta.json",
        cfg={"model": cfg.model_dump(mode="json")},
        code="code",
    )
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == sorted(MERGED)
    tokenizer = load_tokenizer(tmp_path / "merged", LanguageModel(model=str(tmp_path / "merged")))
    ids = torch.tensor([encode_prompt(tokenizer, SftRow.model_validate(make_rows(1)[0]).messages)])
    base = load_model(place.model, cfg, torch.device("cpu"))
    merged = load_model(tmp_path / "merged", LanguageModel(model=str(tmp_path / "merged")), torch.device("cpu"))
    with torch.no_grad():
        before = base(input_ids=ids).logits
        apart = PeftModel.from_pretrained(base, str(out / "adapter")).eval()(input_ids=ids).logits
        together = merged(input_ids=ids).logits
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert float((before - together).abs().max()) > 0.01
