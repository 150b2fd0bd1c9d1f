"""Training models that listen: what is trained, what is learnt, weights of rows, merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_audio import audio_row, save_tiny_audio, write_recording
from tiny_training import ADAPTER, QUICK, history, make_rows, make_workplace, metrics, results

from utterflow.config.language_models import LanguageModel
from utterflow.config.training import Training
from utterflow.errors import UserError
from utterflow.files import read_json, write_jsonl
from utterflow.finetune import trainer as trainer_module
from utterflow.finetune.batches import make_collator
from utterflow.finetune.inputs import WHOLE_MODEL
from utterflow.finetune.job import Outputs, finetune
from utterflow.finetune.merge import merge_adapter
from utterflow.finetune.parts import check_targets, freeze
from utterflow.finetune.settings import lora_settings
from utterflow.finetune.trainer import answer_losses
from utterflow.llm.transformers_backend import load_for_answers
from utterflow.models.audio import family_of
from utterflow.models.kinds import AUDIO
from utterflow.records import RejectedRow, SftRow, read_records
from utterflow.sft.tokenize import part_text

CPU = torch.device("cpu")
ARCHITECTURES = ("qwen2_audio", "qwen2_5_omni")
SECONDS = (0.4, 1.7, 0.9, 1.2, 0.6, 2.1, 0.3)
ENCODER, PROJECTOR = "audio_tower", {"qwen2_audio": "multi_modal_projector", "qwen2_5_omni": "audio_tower.proj"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return [write_recording(folder / f"{number}.wav", seconds, number) for number, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return {name: save_tiny_audio(tmp_path_factory.mktemp(name), name, lively=2) for name in ARCHITECTURES}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows_of(recordings: list[Path], text_rows: int = 2) -> list[dict[str, Any]]:
    """Rows with recordings of different lengths, and some of text alone."""
    heard = [audio_row(number, recording, words=number % 4) for number, recording in enumerate(recordings)]
    return [*heard, *make_rows(text_rows, first=100)]


def model_settings(folder: Path) -> dict[str, Any]:
    return {"model": f"{folder}/", "kind": "audio"}


def run(folder: Path, place: Path, train: list[dict[str, Any]], name: str = "run", **training: Any) -> Path:
    """Train; the folder of the outputs."""
    write_jsonl(place / "train.jsonl", train)
    write_jsonl(place / "validation.jsonl", train[:3])
    finetune_into(place / name, arguments_of(folder, place, **training))
    return place / name


def finetune_into(out: Path, arguments: dict[str, Any]) -> None:
    full = arguments["cfg"]["training"].get("adapter", {}).get("kind") == "none"
    paths = {key: Path(arguments[key]) for key in ("train", "validation", "state")}
    finetune(
        **{**arguments, **paths},
        outputs=Outputs(
            weights=[out / "model" / name for name in WHOLE_MODEL] if full else [out / name for name in ADAPTER],
            history=out / "history.jsonl",
            metrics=out / "metrics.json",
            rejected=out / "rejected.jsonl",
            meta=out / "training.meta.json",
        ),
    )


def arguments_of(folder: Path, place: Path, **training: Any) -> dict[str, Any]:
    return {
        "name": "run",
        "train": str(place / "train.jsonl"),
        "validation": str(place / "validation.jsonl"),
        "cfg": {"training": {**QUICK, **training}, "model": model_settings(folder)},
        "code": "code",
        "state": str(place / "state"),
        "threads": 1,
    }


def logits_of(model: Any, folder: Path, row: dict[str, Any]) -> torch.Tensor:
    processor = AUDIO.load_processor(folder, LanguageModel.model_validate(model_settings(folder)))
    prompt = AUDIO.encode_prompt(processor, SftRow.model_validate(row).messages)
    ids = torch.tensor([prompt.ids])
    with torch.no_grad():
        heard = AUDIO.media_inputs(processor, [prompt])
        return torch.as_tensor(model(input_ids=ids, attention_mask=torch.ones_like(ids), **heard).logits)


def to_train(folder: Path, adapter: dict[str, Any], *, checkpointing: bool) -> Any:
    """The model as the trainer takes it: some of it frozen, with adapters, in training mode."""
    from peft import get_peft_model

    parts = AUDIO.parts(folder)
    training = Training.model_validate({"model": "m", "train": [{"dataset": "d"}], "adapter": adapter})
    model = AUDIO.load_model(folder, LanguageModel.model_validate(model_settings(folder)), CPU)
    freeze(model, parts, training.adapter)
    if training.adapter.kind == "lora":
        model = get_peft_model(model, lora_settings(training, parts))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        if training.adapter.kind == "lora":
            model.enable_input_require_grads()
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("adapter", "encoder", "projector"),
    [
        ({}, False, False),
        ({"audio_encoder": True}, True, False),
        ({"projector": True}, False, True),
        ({"targets": "all-linear", "audio_encoder": True, "projector": True}, True, True),
        ({"targets": "all-linear"}, False, False),
        ({"kind": "none"}, False, False),
        ({"kind": "none", "audio_encoder": True}, True, False),
        ({"kind": "none", "projector": True}, False, True),
        ({"kind": "none", "audio_encoder": True, "projector": True}, True, True),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_gradients_reach_what_is_to_be_trained(
    folders, recordings, architecture, adapter, encoder, projector, checkpointing
):
    folder = folders[architecture]
    model = to_train(folder, {"dropout": 0, **adapter}, checkpointing=checkpointing)
    processor = AUDIO.load_processor(folder, LanguageModel.model_validate(model_settings(folder)))
    answer_losses(model, _batch(processor, rows_of(recordings[:3], text_rows=1)))[0].sum().backward()
    weights = dict(model.named_parameters())
    found = {name: bool(item.grad.abs().max() > 0) for name, item in weights.items() if item.grad is not None}
    trained = {name for name, item in weights.items() if item.requires_grad}
    assert found.keys() == trained
    joined = f".{PROJECTOR[architecture]}."
    in_projector = [name for name in found if joined in f".{name}"]
    in_encoder = [name for name in found if f".{ENCODER}." in f".{name}" and name not in in_projector]
    elsewhere = [name for name in found if name not in in_projector and name not in in_encoder]
    assert (bool(in_encoder), bool(in_projector)) == (encoder, projector)
    assert elsewhere
    assert not any("visual" in name for name in found)
    if adapter.get("kind") == "none":
        assert any("embed_tokens" in name for name in elsewhere)
        assert not encoder or any("conv1" in name for name in in_encoder)
    else:
        assert all("lora_" in name for name in [*elsewhere, *in_encoder])
        assert all("modules_to_save" in name for name in in_projector)
        attention = {name.split(".lora_")[0].rpartition(".")[2] for name in in_encoder}
        if encoder and "targets" not in adapter:
            assert attention == {"q_proj", "k_proj", "v_proj", "out_proj"}
    still = [name for name, moved in found.items() if not moved]
    assert all("lora_A" in name or "k_proj.bias" in name for name in still)  # B is 0 at first; keys' bias is void


def test_a_cut_off_encoder_changes_no_gradient(tmp_path, folders, recordings):
    """With gradient checkpointing, gradients are not passed back through a frozen encoder; the weights are the same."""
    rows = rows_of(recordings[:4])
    plain = run(folders["qwen2_audio"], tmp_path, rows, "plain", max_steps=2)
    saving = run(folders["qwen2_audio"], tmp_path, rows, "saving", max_steps=2, gradient_checkpointing=True)
    one, other = (load_file(out / "adapter/adapter_model.safetensors") for out in (plain, saving))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=name)


def test_gradients_end_at_the_projector_of_a_frozen_encoder(folders, architecture, recordings):
    folder = folders[architecture]
    adapted = to_train(folder, {}, checkpointing=True)
    model = adapted.get_base_model()
    passed: list[str] = []
    model.model.audio_tower.layers[0].register_full_backward_hook(lambda *_: passed.append("encoder"))
    model.model.language_model.layers[0].register_full_backward_hook(lambda *_: passed.append("language model"))
    processor = AUDIO.load_processor(folder, LanguageModel.model_validate(model_settings(folder)))
    answer_losses(adapted, _batch(processor, [audio_row(1, recordings[1])]))[0].sum().backward()
    assert passed == ["language model"]


def _batch(processor: Any, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    items = []
    for row in map(SftRow.model_validate, rows):
        prompt, ids, labels = AUDIO.encode_row(processor, row)
        items.append({"input_ids": ids, "labels": labels, "audio": [part_text(part) for part in prompt.audio]})
    return make_collator(0, flatten=False, media=lambda prompts: AUDIO.media_inputs(processor, prompts))(items)


def test_a_batch_of_text_gives_the_encoder_gradients_of_zero(folders, architecture):
    """Or else other processes, with recordings, would wait for this one's; the loss is as without."""
    folder = folders[architecture]
    processor = AUDIO.load_processor(folder, LanguageModel.model_validate(model_settings(folder)))
    batch = _batch(processor, make_rows(2))
    losses = []
    for adapter in ({"kind": "none", "audio_encoder": True, "projector": True}, {"kind": "none"}):
        model = to_train(folder, adapter, checkpointing=False)
        loss = answer_losses(model, batch)[0].sum()
        loss.backward()
        losses.append(float(loss.detach()))
        ears = [weight for name, weight in model.named_parameters() if ENCODER in name or "projector" in name]
        gradients = [weight.grad for weight in ears if weight.requires_grad]
        assert bool(gradients) == ("audio_encoder" in adapter)
        assert all(grad is not None and not grad.any() for grad in gradients)
    assert losses[0] == losses[1]


def test_the_loss_of_a_batch_is_that_of_its_rows(folders, architecture, recordings):
    folder = folders[architecture]
    cfg = LanguageModel.model_validate(model_settings(folder))
    processor, model = AUDIO.load_processor(folder, cfg), AUDIO.load_model(folder, cfg, CPU)
    rows = rows_of(recordings)
    rows[0]["messages"][0]["content"].append({"type": "audio", "path": str(recordings[3])})
    with torch.no_grad():
        together, tokens = answer_losses(model, _batch(processor, rows))
        apart = [answer_losses(model, _batch(processor, [row])) for row in rows]
    torch.testing.assert_close(together, torch.cat([loss for loss, _ in apart]), rtol=1e-5, atol=1e-4)
    assert torch.equal(tokens, torch.cat([count for _, count in apart]))


LORA = {"r": 8, "audio_encoder": True, "projector": True, "modules_to_save": ["lm_head"]}


@pytest.mark.parametrize("adapter", [LORA, {"kind": "none"}], ids=["lora", "full"])
def test_a_training_learns_and_is_loaded_again(tmp_path, folders, architecture, recordings, adapter):
    """The loss falls far below that of guessing, ln 376 = 5.9; the stored weights have the loss of the trained ones."""
    folder, rows = folders[architecture], rows_of(recordings)
    settings = {"max_steps": 60, "evaluate_every": 20, "learning_rate": 0.02, "keep_best": False, "accumulation": 1}
    out = run(folder, tmp_path, rows, adapter=adapter, **settings)
    losses = [row["eval_loss"] for row in history(out) if row.get("eval_loss") is not None]
    assert losses[-1] < losses[0] < 5.9
    assert losses[-1] < 1.5
    whole = adapter.get("kind") == "none"
    source = out / "model" if whole else folder
    cfg = LanguageModel.model_validate(model_settings(folder))
    model = load_for_answers(source, None if whole else out / "adapter", cfg, CPU)
    processor = AUDIO.load_processor(source, cfg)
    with torch.no_grad():
        again, tokens = answer_losses(model, _batch(processor, rows[:3]))
    if whole:
        before, after = (load_file(path / "model.safetensors") for path in (folder, source))
        names = [name for name in after if "audio_tower" in name or "multi_modal_projector" in name]
        assert names
        assert all(torch.equal(after[name], before[name]) for name in names)
    assert float(again.sum() / tokens.sum()) == pytest.approx(metrics(out)["final_eval_loss"], rel=1e-4)


def test_a_merged_model_is_that_of_base_and_adapter(tmp_path, folders, architecture, recordings):
    folder, rows = folders[architecture], rows_of(recordings)
    adapter = {"targets": "all-linear", "audio_encoder": True, "projector": True, "dropout": 0}
    out = run(folder, tmp_path, rows, adapter=adapter, learning_rate=0.05)
    merged = tmp_path / "merged"
    merge_adapter(
        [out / "adapter/adapter_model.safetensors", out / "adapter/adapter_config.json"],
        weights=[merged / name for name in WHOLE_MODEL],
        meta=tmp_path / "merged.meta.json",
        cfg={"model": model_settings(folder)},
        code="code",
    )
    cfg = LanguageModel.model_validate(model_settings(folder))
    before = logits_of(AUDIO.load_model(folder, cfg, CPU), folder, rows[1])
    apart = logits_of(load_for_answers(folder, out / "adapter", cfg, CPU), folder, rows[1])
    together = logits_of(
        AUDIO.load_model(merged, LanguageModel.model_validate(model_settings(merged)), CPU), merged, rows[1]
    )
    torch.testing.assert_close(together, apart, atol=2e-4, rtol=1e-3)
    assert float((before - together).abs().max()) > 0.05
    assert family_of(merged).network == family_of(folder).network


def test_the_library_reads_a_trained_qwen2_audio(tmp_path, folders, recordings):
    from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

    out = run(folders["qwen2_audio"], tmp_path, rows_of(recordings), adapter={"kind": "none", "projector": True})
    assert read_json(out / "model/config.json")["architectures"] == ["Qwen2AudioForConditionalGeneration"]
    _, loading = Qwen2AudioForConditionalGeneration.from_pretrained(out / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert AutoProcessor.from_pretrained(out / "model").audio_token == "<|AUDIO|>"


def test_equal_trainings_and_resumed_ones_are_equal(tmp_path, folders, recordings):
    """One is interrupted after its second checkpoint; the other state folder holds no trace of it."""
    folder, rows = folders["qwen2_audio"], rows_of(recordings)
    settings = {"epochs": 3, "adapter": {"dropout": 0.1, "projector": True}}
    expected = results(run(folder, tmp_path / "a", rows, **settings))
    write_jsonl(tmp_path / "b/train.jsonl", rows)
    write_jsonl(tmp_path / "b/validation.jsonl", rows[:3])
    mark = trainer_module.mark_complete

    def failing(folder: Path, *, ended: bool = False) -> None:
        mark(folder, ended=ended)
        if len(list(folder.parent.glob("checkpoint-*"))) == 2:
            raise KeyboardInterrupt

    arguments = arguments_of(folder, tmp_path / "b", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "mark_complete", failing)
        with pytest.raises(KeyboardInterrupt):
            finetune_into(tmp_path / "b/run", arguments)
    finetune_into(tmp_path / "b/run", arguments)
    found = results(tmp_path / "b/run")
    assert read_json(tmp_path / "b/run/training.meta.json")["resumed_from_step"]
    assert found == expected


def test_a_changed_recording_is_another_training(tmp_path, folders, recordings):
    folder, rows = folders["qwen2_audio"], rows_of(recordings[:3])
    own = write_recording(tmp_path / "own.wav", 1, 1)
    rows[0]["messages"][0]["content"][0]["path"] = str(own)
    run(folder, tmp_path, rows, max_steps=1)
    write_recording(own, 1, 2)
    run(folder, tmp_path, rows, max_steps=1)
    assert len(list((tmp_path / "state/finetune").iterdir())) == 2


def test_rows_that_cannot_be_heard_are_rejected_with_their_reason(tmp_path, folders, recordings):
    rows = rows_of(recordings[:4])
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    rows[1]["messages"][0]["content"][0]["path"] = str(tmp_path / "broken.wav")
    rows[2]["messages"][0]["content"][0]["path"] = str(write_recording(tmp_path / "long.wav", 4.5, 1))
    rows[3]["messages"][0]["content"][0]["path"] = str(tmp_path / "absent.wav")
    out = run(folders["qwen2_audio"], tmp_path, rows, max_steps=1, max_rejected=0.9)
    lost = {row.id: row.reason for row in read_records(out / "rejected.jsonl", RejectedRow)}
    assert list(lost) == ["row1", "row2", "row3"]
    for reason, start in zip(lost.values(), ("broken", "too long: 4.5 s", "missing"), strict=True):
        assert reason.startswith(f"recording {start}")
    assert metrics(out)["rows"]["in"] == len(rows) + 3


def test_a_text_model_refuses_recordings_and_says_so(tmp_path, recordings):
    place = make_workplace(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", [*make_rows(3), audio_row(100, recordings[0])])
    out = place.run(max_steps=1, max_rejected=0.9)
    assert "of type audio" in next(read_records(out / "rejected.jsonl", RejectedRow)).reason


def test_targets_that_only_the_encoder_has_are_explained(folders, architecture):
    folder = folders[architecture]
    model = AUDIO.load_model(folder, LanguageModel.model_validate(model_settings(folder)), CPU)

    def check(**adapter: Any) -> None:
        training = {"model": "m", "train": [{"dataset": "d"}], "adapter": adapter}
        check_targets(model, Training.model_validate(training), AUDIO.parts(folder))

    check(targets=["q_proj", "gate_proj"])
    check(targets=["q_proj", "out_proj"], audio_encoder=True)
    with pytest.raises(UserError, match="no module 'out_proj' in what is trained") as caught:
        check(targets=["q_proj", "out_proj"])
    assert "audio_encoder: true" in str(caught.value)
    with pytest.raises(UserError, match="no module 'query'") as caught:
        check(targets=["query"])
    assert "fc1" not in str(caught.value)
    assert "q_proj" in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "audio"])
def test_weights_scale_the_loss_of_their_rows(tmp_path, folders, recordings, kind, monkeypatch):
    """sum_i w_i * nll_i / answer tokens, by hand; weights of 1 are as none; the validation loss knows no weights."""
    place = make_workplace(tmp_path / "text", train=4, validation=2)
    rows = make_rows(4) if kind == "text" else rows_of(recordings[:3], text_rows=1)
    given: list[tuple[float, float]] = []
    plain = trainer_module.Finetuner.compute_loss

    def by_hand(self: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        loss = plain(self, model, inputs, *more, **named)
        items = named.get("num_items_in_batch", more[-1] if more else None)
        with torch.no_grad():
            losses, _ = answer_losses(model, inputs)
        weights = inputs.get("weights", torch.ones(len(losses)))
        given.append((float(loss.detach()), float((losses * weights).sum() / items)))
        return loss

    monkeypatch.setattr(trainer_module.Finetuner, "compute_loss", by_hand)

    def trained(name: str, weights: list[float | None]) -> dict[str, bytes]:
        weighted = [
            row if weight is None else {**row, "weight": weight} for row, weight in zip(rows, weights, strict=True)
        ]
        settings = {"max_steps": 2, "adapter": {"dropout": 0}, "accumulation": 1}
        if kind == "audio":
            return results(run(folders["qwen2_audio"], tmp_path / name, weighted, **settings))
        write_jsonl(place.folder / "train.jsonl", weighted)
        write_jsonl(place.folder / "validation.jsonl", weighted[:2])
        return results(place.run(name, **settings))

    without, ones = trained("without", [None] * 4), trained("ones", [1.0] * 4)
    assert without == ones
    given.clear()
    other = trained("other", [0.25, 3.0, 1.0, 1.0])
    assert other["adapter/adapter_model.safetensors"] != ones["adapter/adapter_model.safetensors"]
    assert given
    for loss, expected in given:
        assert loss == pytest.approx(expected, rel=1e-5)
    first = [json.loads(kept["history.jsonl"].splitlines()[0]) for kept in (ones, other)]
    assert first[0].keys() == first[1].keys()


def test_weights_and_packing_do_not_go_together(tmp_path):
    place = make_workplace(tmp_path, train=4)
    write_jsonl(tmp_path / "train.jsonl", [{**row, "weight": 2.0} for row in make_rows(4)])
    with pytest.raises(UserError, match="rows with weights cannot be packed"):
        place.run(packing=True)


@pytest.mark.parametrize(
    ("deepspeed", "adapter", "fix"),
    [({"stage": 3}, {}, "stage 2"), ({"stage": 2}, {"projector": True}, "leave encoder and projector as they are")],
)
def test_deepspeed_wants_recordings_in_all_rows_or_none(tmp_path, folders, recordings, deepspeed, adapter, fix):
    with pytest.raises(UserError, match="some rows have recordings and some have none") as caught:
        run(
            folders["qwen2_audio"],
            tmp_path,
            rows_of(recordings[:3]),
            deepspeed=deepspeed,
            adapter=adapter,
            processes=2,
        )
    assert fix in str(caught.value)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path, folders, recordings):
    """Of three rows with a recording and five without, some step has one of each: one process's encoder is idle."""
    folder, rows = folders["qwen2_audio"], rows_of(recordings[:3], text_rows=5)
    adapter = {"dropout": 0, "audio_encoder": True, "projector": True}
    settings = {"max_steps": 4, "group_by_length": False, "adapter": adapter, "log_every": 1}
    one = run(folder, tmp_path / "one", rows, batch_size=2, accumulation=1, **settings)
    two = run(folder, tmp_path / "two", rows, batch_size=1, accumulation=1, processes=2, **settings)
    for alone, together in zip(history(one), history(two), strict=True):
        for name in ("loss", "eval_loss"):
            if alone.get(name) is not None:
                assert together[name] == pytest.approx(alone[name], rel=1e-4)
