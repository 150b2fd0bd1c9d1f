"""Answers of models that listen: batches, sampling, adapters, the journal, rejected rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_audio import audio_row, save_tiny_audio, write_recording
from transformers import DynamicCache

from utterflow.config.language_models import LanguageModel
from utterflow.config.prediction import Prediction
from utterflow.errors import UserError
from utterflow.files import read_json, write_jsonl
from utterflow.gather import Shard
from utterflow.generate.inputs import Sources
from utterflow.generate.predict import Machine, context_length, end_tokens, generate
from utterflow.llm import transformers_backend
from utterflow.llm.requests import Decoding, Request
from utterflow.llm.transformers_backend import answers, load_for_answers
from utterflow.models.kinds import AUDIO
from utterflow.records import PredictionRow, RejectedRow, SftRow, read_records

CPU = torch.device("cpu")
ARCHITECTURES = ("qwen2_audio", "qwen2_5_omni")
SECONDS = (0.4, 1.7, 3.2, 1.2, 0.6, 2.1, 0.3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    return {name: save_tiny_audio(tmp_path_factory.mktemp(name), name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return [write_recording(folder / f"{number}.wav", seconds, number) for number, seconds in enumerate(SECONDS)]


@pytest.fixture(params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def settings(folder: Path) -> LanguageModel:
    return LanguageModel.model_validate({"model": f"{folder}/", "kind": "audio"})


def rows_of(recordings: Sequence[Path]) -> list[dict[str, Any]]:
    """Recordings and texts of different lengths; one row without a recording, one with two."""
    rows = [audio_row(number, path, words=(number * 5) % 7) for number, path in enumerate(recordings)]
    rows[1]["messages"][0]["content"].insert(1, {"type": "audio", "path": str(recordings[0])})
    rows.append({**rows[0], "id": "text", "messages": [{"role": "user", "content": "what is the capital"}]})
    return rows


def prediction(**keys: Any) -> Prediction:
    return Prediction.model_validate({"dataset": "d", "model": "m", "max_new_tokens": 10, "batch_size": 4, **keys})


def run(
    rows: Sequence[dict[str, Any]],
    out: Path,
    folder: Path,
    cfg: Prediction,
    *,
    adapter: Path | None = None,
    state: Path | None = None,
) -> list[PredictionRow]:
    """Answer the rows in one shard; what was answered, in order."""
    write_jsonl(out / "test.jsonl", rows)
    generate(
        sft=out / "test.jsonl",
        shard=Shard(0, 1),
        sources=Sources(folder, adapter),
        cfg=cfg,
        model_cfg=settings(folder),
        code="code",
        state=state or out / "state",
        machine=Machine(threads=1, gpus=0, vllm_python="absent/python"),
        predictions=out / "0-of-1.jsonl",
        rejected=out / "0-of-1.rejected.jsonl",
        meta=out / "0-of-1.meta.json",
    )
    return list(read_records(out / "0-of-1.jsonl", PredictionRow))


def by_hand(model: Any, processor: Any, row: dict[str, Any], ends: Sequence[int], limit: int) -> list[int]:
    """The most likely tokens one by one, without padding or the library's loop."""
    prompt = AUDIO.encode_prompt(processor, SftRow.model_validate(row).messages)
    heard = AUDIO.media_inputs(processor, [prompt])
    given, made, cache = list(prompt.ids), [], DynamicCache(config=model.config)
    while len(made) < limit and not (made and made[-1] in ends):
        places = torch.arange(cache.get_seq_length(), cache.get_seq_length() + len(given))[None]
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor([given]), position_ids=places, past_key_values=cache, use_cache=True, **heard
            )
        made.append(int(out.logits[0, -1].argmax()))
        given, heard = made[-1:], {}
    return made


def test_answers_are_the_most_likely_tokens(folder, recordings, tmp_path):
    rows = rows_of(recordings)
    processor = AUDIO.load_processor(folder, settings(folder))
    model = AUDIO.load_model(folder, settings(folder), CPU)
    ends = end_tokens(folder, processor.tokenizer)
    found = run(rows, tmp_path, folder, prediction(batch_size=3))
    expected = [by_hand(model, processor, row, ends, 10) for row in rows]
    assert [row.raw[0] for row in found] == [processor.tokenizer.decode(tokens) for tokens in expected]
    assert len({row.raw[0] for row in found}) > len(rows) // 2


@pytest.mark.parametrize(
    "decoding",
    [{}, {"temperature": 1.0}, {"temperature": 0.8, "num_outputs": 3, "top_p": 0.95}],
    ids=["greedy", "sampled", "several"],
)
def test_batches_decide_no_answer(folder, recordings, tmp_path, decoding):
    """Alone, in threes, all at once, in another order: the same answers to the token."""
    rows = rows_of(recordings)
    alone = run(rows, tmp_path / "alone", folder, prediction(batch_size=1, **decoding))
    for size in (3, 8):
        assert run(rows, tmp_path / f"by{size}", folder, prediction(batch_size=size, **decoding)) == alone
    turned = run(rows[::-1], tmp_path / "turned", folder, prediction(batch_size=3, **decoding))
    assert turned[::-1] == alone
    if "num_outputs" in decoding:
        assert any(len(set(row.raw)) == 3 for row in alone)


def test_token_ids_of_a_batch_are_those_of_each_alone(folder, recordings):
    """The back end itself, asked by another caller, its batches in any order: nothing is left over in the model."""
    processor = AUDIO.load_processor(folder, settings(folder))
    model = load_for_answers(folder, None, settings(folder), CPU)
    prompts = [AUDIO.encode_prompt(processor, SftRow.model_validate(row).messages) for row in rows_of(recordings)]
    requests = [Request(str(number), item.ids, number, item.audio) for number, item in enumerate(prompts)]
    ends = end_tokens(folder, processor.tokenizer)
    decoding = Decoding(8, 0.0, 1.0, 0, 1, ends, None)

    def asked(*batches: Sequence[Request]) -> dict[str, Any]:
        found = answers(
            batches, model, processor.tokenizer, decoding, media=lambda items: AUDIO.media_inputs(processor, items)
        )
        pairs = zip(batches, found, strict=True)
        return {request.id: answer for batch, made in pairs for request, answer in zip(batch, made, strict=True)}

    alone = asked(*[[request] for request in requests])
    assert asked(requests) == alone
    assert asked(requests[5:], requests[:1], requests[1:5][::-1]) == alone


def test_what_is_heard_decides_the_answer(folder, recordings, tmp_path):
    """Another recording of the same length, and noise on the same recording, give other prompts' answers."""
    other = write_recording(tmp_path / "other.wav", SECONDS[1], 77)
    rows = [audio_row(0, recordings[1]), audio_row(1, other), audio_row(2, recordings[1])]
    noise = {"snr_db": -10.0, "color": 0.0, "seed": 1}
    rows[2]["messages"][0]["content"][0]["noise"] = noise
    found = run(rows, tmp_path, folder, prediction())
    assert len({row.prompt_tokens for row in found}) == 1
    assert len({row.raw[0] for row in found}) == 3


def test_a_changed_recording_is_asked_again(folder, recordings, tmp_path):
    cfg = prediction(temperature=1.0)
    own = write_recording(tmp_path / "own.wav", 1, 1)
    rows = [audio_row(0, own), audio_row(1, recordings[1])]
    first = run(rows, tmp_path / "a", folder, cfg, state=tmp_path / "state")
    again = run(rows, tmp_path / "b", folder, cfg, state=tmp_path / "state")
    assert again == first
    assert read_json(tmp_path / "b/0-of-1.meta.json")["rows"]["from_journal"] == 2
    write_recording(own, 1, 2)
    changed = run(rows, tmp_path / "c", folder, cfg, state=tmp_path / "state")
    assert read_json(tmp_path / "c/0-of-1.meta.json")["rows"]["from_journal"] == 1
    assert changed[0] != first[0]
    assert changed[1] == first[1]


def test_rows_that_cannot_be_heard_are_rejected(folder, recordings, tmp_path):
    processor = AUDIO.load_processor(folder, settings(folder))
    long = write_recording(tmp_path / "long.wav", processor.extractor.n_samples / 16_000 + 1, 1)
    rows = [audio_row(0, recordings[0]), audio_row(1, long), audio_row(2, tmp_path / "absent.wav")]
    rows.append(audio_row(3, recordings[0]))
    rows[3]["messages"][0]["content"][1]["text"] = "<|AUDIO|>"
    found = run(rows, tmp_path, folder, prediction(max_rejected=0.9))
    assert [row.id for row in found] == ["row0"]
    lost = {row.id: row.reason for row in read_records(tmp_path / "0-of-1.rejected.jsonl", RejectedRow)}
    assert lost["row1"].startswith("recording too long")
    assert lost["row2"].startswith("recording missing")
    assert lost["row3"].startswith("special token in a text")


def test_an_adapter_answers(folder, recordings, tmp_path):
    """One with parts in the encoder and a projector of its own, loaded without the trainer's class around it."""
    from peft import get_peft_model

    from utterflow.config.training import Training
    from utterflow.finetune.settings import lora_settings

    adapter = {"audio_encoder": True, "projector": True, "targets": "all-linear"}
    training = Training.model_validate({"model": "m", "train": [{"dataset": "d"}], "adapter": adapter})
    torch.manual_seed(3)
    model = get_peft_model(
        AUDIO.load_model(folder, settings(folder), CPU), lora_settings(training, AUDIO.parts(folder))
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(tmp_path / "adapter")
    rows = rows_of(recordings)[:4]
    processor = AUDIO.load_processor(folder, settings(folder))
    ends = end_tokens(folder, processor.tokenizer)
    expected = [processor.tokenizer.decode(by_hand(model.eval(), processor, row, ends, 10)) for row in rows]
    found = run(rows, tmp_path, folder, prediction(), adapter=tmp_path / "adapter")
    assert [row.raw[0] for row in found] == expected
    assert [row.raw for row in found] != [row.raw for row in run(rows, tmp_path / "plain", folder, prediction())]


def test_recordings_are_heard_once_for_all_answers(folder, recordings, tmp_path, monkeypatch):
    heard: list[int] = []
    load = transformers_backend.load_for_answers

    def watched(*given: Any) -> Any:
        model = load(*given)
        model.model.audio_tower.register_forward_hook(lambda *_: heard.append(1))
        return model

    monkeypatch.setattr(transformers_backend, "load_for_answers", watched)
    cfg = prediction(batch_size=2, num_outputs=4, temperature=1.0)
    run([audio_row(number, path) for number, path in enumerate(recordings[:4])], tmp_path, folder, cfg)
    assert len(heard) == 2


def test_answers_follow_a_schema(folder, recordings, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false}'
    )
    cfg = prediction(json_schema=str(schema), max_new_tokens=40)
    found = run(rows_of(recordings)[:3], tmp_path, folder, cfg)
    assert all(row.parsed in ([{"a": True}], [{"a": False}]) for row in found)


def test_vllm_is_refused(folder, recordings, tmp_path):
    with pytest.raises(UserError, match="answers text only"):
        run(rows_of(recordings), tmp_path, folder, prediction(backend="vllm"))


def test_the_context_of_a_model_that_listens(folder):
    assert context_length(folder) == 1024
