"""Models that listen: prompts with recordings, features, what is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from tiny_audio import OMNI_TEMPLATE, audio_row, save_tiny_audio, write_recording

from utterflow.audio import load_audio
from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.models.audio import (
    AudioProcessor,
    audio_inputs,
    encode_audio_prompt,
    features_of,
    load_audio_model,
    load_audio_processor,
)
from utterflow.models.kinds import AUDIO
from utterflow.records import Message, Noise, SftRow
from utterflow.sft.tokenize import IGNORED, AudioPart, Prompt, part_text, read_part

CPU = torch.device("cpu")
ARCHITECTURES = ("qwen2_audio", "qwen2_5_omni")
SECONDS = (0.08, 0.31, 1.0, 1.003, 2.7, 3.99, 4.0)


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


def settings(folder: Path, **keys: Any) -> LanguageModel:
    return LanguageModel.model_validate({"model": f"{folder}/", "kind": "audio", **keys})


def processor_of(folder: Path, **keys: Any) -> AudioProcessor:
    return load_audio_processor(folder, settings(folder, **keys))


def messages(*content: Any) -> list[Message]:
    parts = [
        {"type": "audio", "path": str(part)} if isinstance(part, Path) else {"type": "text", "text": part}
        for part in content
    ]
    return [Message(role="user", content=parts)]


def test_prompts_of_qwen2_audio_are_those_of_its_own_processor(folders, recordings):
    from transformers import AutoProcessor

    processor = processor_of(folders["qwen2_audio"])
    library = AutoProcessor.from_pretrained(folders["qwen2_audio"])
    for recording in recordings:
        prompt = encode_audio_prompt(processor, messages(recording, "what is the capital"))
        turns = [
            {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "what is the capital"}]},
        ]
        expected = library(
            text=library.apply_chat_template(turns, add_generation_prompt=True, tokenize=False),
            audio=[load_audio(recording)],
            sampling_rate=16_000,
            return_tensors="pt",
        )
        assert list(prompt.ids) == expected["input_ids"][0].tolist()
        given = audio_inputs(processor, [prompt])
        assert torch.equal(given["input_features"], expected["input_features"])
        assert torch.equal(given["feature_attention_mask"], expected["feature_attention_mask"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_prompts_of_omni_are_those_of_its_own_processor(folders, recordings, side):
    """The library's class cannot be made without torchvision, but what it does with audio can be called."""
    from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

    processor = processor_of(folders["qwen2_5_omni"])
    processor.extractor.padding_side = side
    library = SimpleNamespace(feature_extractor=processor.extractor, audio_token="<|AUDIO|>")
    library.replace_audio_token = partial(Qwen2_5OmniProcessor.replace_audio_token, library)
    for recording in recordings:
        prompt = encode_audio_prompt(processor, messages(recording, "what is the capital"))
        made, (placeholders,) = Qwen2_5OmniProcessor._process_audio(
            library, [load_audio(recording)], sampling_rate=16_000, return_attention_mask=True, return_tensors="pt"
        )
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
            f"<|audio_bos|>{placeholders}<|audio_eos|>what is the capital<|im_end|>\n<|im_start|>assistant\n"
        )
        assert list(prompt.ids) == processor.tokenizer(text)["input_ids"]
        given = audio_inputs(processor, [prompt])
        heard = made["feature_attention_mask"].bool()
        assert torch.equal(given["feature_attention_mask"], torch.ones(1, int(heard.sum()), dtype=torch.long))
        assert torch.equal(given["input_features"][0], made["input_features"][0][:, heard[0]])


def test_a_hub_checkpoint_of_omni_gives_its_thinker(folders):
    """All weights are found under the names that the published checkpoint has."""
    with safe_open(folders["qwen2_5_omni"] / "model.safetensors", "pt") as stored:
        names = list(stored.keys())
        trained = stored.get_tensor("thinker.audio_tower.proj.weight")
    beginnings = ("thinker.audio_tower.", "thinker.visual.", "thinker.model.layers.", "thinker.lm_head.", "talker.")
    assert all(any(name.startswith(beginning) for name in names) for beginning in beginnings)
    model = load_audio_model(folders["qwen2_5_omni"], settings(folders["qwen2_5_omni"]), CPU)
    assert torch.equal(model.model.audio_tower.proj.weight, trained)
    assert not [name for name, _ in model.named_parameters() if "talker" in name]


def test_logits_are_those_of_the_library_and_only_where_asked(folder, recordings):
    """With prompts of different lengths, one of them without a recording, padded on the right."""
    import transformers

    processor = processor_of(folder)
    model = load_audio_model(folder, settings(folder), CPU)
    library = getattr(transformers, type(model).__name__).from_pretrained(folder).eval()
    asked = [messages(recordings[2], "one"), messages("two three"), messages(recordings[4], recordings[1], "two")]
    prompts = [encode_audio_prompt(processor, item) for item in asked]
    width = max(len(prompt.ids) for prompt in prompts)
    ids = torch.tensor([[*prompt.ids, *[0] * (width - len(prompt.ids))] for prompt in prompts])
    mask = torch.tensor([[1] * len(prompt.ids) + [0] * (width - len(prompt.ids)) for prompt in prompts])
    given = {"input_ids": ids, "attention_mask": mask, **audio_inputs(processor, prompts)}
    with torch.no_grad():
        expected = library(**given).logits
        torch.testing.assert_close(model(**given).logits, expected)
        torch.testing.assert_close(model(**given, logits_to_keep=2).logits, expected[:, -2:])
        kept = torch.tensor([3, 5])
        torch.testing.assert_close(model(**given, logits_to_keep=kept).logits, expected[:, kept])


def test_only_the_answer_and_its_end_are_trained(folder, recordings):
    processor = processor_of(folder)
    row = SftRow.model_validate(audio_row(3, recordings[0]))
    prompt, ids, labels = AUDIO.encode_row(processor, row)
    pieces = processor.tokenizer.convert_ids_to_tokens(ids)
    print(
        "\n".join(
            f"{'trained' if label != IGNORED else '-':8} {piece}" for piece, label in zip(pieces, labels, strict=True)
        )
    )
    assert tuple(ids[: len(prompt.ids)]) == prompt.ids
    assert labels[: len(prompt.ids)] == [IGNORED] * len(prompt.ids)
    assert processor.tokenizer.decode([label for label in labels if label != IGNORED]) == "number 3<|im_end|>"
    assert labels[len(prompt.ids) :] == ids[len(prompt.ids) :]
    assert pieces.count("<|AUDIO|>") == 2


def test_noise_is_added_to_what_is_heard(folder, recordings):
    processor = processor_of(folder)
    noise = Noise(snr_db=0, color=1, seed=3)
    clean, mask = features_of(processor, AudioPart(str(recordings[2])))
    noisy, noisy_mask = features_of(processor, AudioPart(str(recordings[2]), noise))
    assert torch.equal(mask, noisy_mask)
    assert float((clean - noisy).abs().max()) > 0.1
    assert torch.equal(noisy, features_of(processor, AudioPart(str(recordings[2]), noise))[0])
    assert read_part(part_text(AudioPart("a b.wav", noise))) == AudioPart("a b.wav", noise)
    assert read_part(part_text(AudioPart("a.wav"))) == AudioPart("a.wav")


def test_what_cannot_be_heard_is_named(folder, recordings, tmp_path):
    processor = processor_of(folder)
    window = processor.extractor.n_samples / 16_000
    long = write_recording(tmp_path / "long.wav", window + 0.01, 1)
    exact = write_recording(tmp_path / "exact.wav", window, 1)
    soundfile.write(tmp_path / "short.wav", np.zeros(800), 16_000)
    (tmp_path / "broken.wav").write_bytes(recordings[3].read_bytes()[:9000])
    (tmp_path / "empty.wav").touch()
    for name, reason in (
        ("long.wav", f"recording too long: {window:.1f} s, the model hears {window:g} s"),
        ("short.wav", "recording too short: 0.050 s"),
        ("broken.wav", "recording broken: .*truncated"),
        ("empty.wav", "recording empty"),
        ("absent.wav", "recording missing"),
    ):
        with pytest.raises(ValueError, match=reason):
            encode_audio_prompt(processor, messages(tmp_path / name, "what"))
    assert long.is_file()
    assert encode_audio_prompt(processor, messages(exact, "what")).ids.count(processor.audio_id) == 25 * window


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"type": "text", "text": "a <|AUDIO|> b"}], "special token in a text"),
        ([{"type": "text", "text": "a <|AUD"}, {"type": "text", "text": "IO|> b"}], "special token in a text"),
        ([{"type": "text", "text": "<|audio_eos|>"}], "special token in a text"),
        ([{"type": "image", "path": "a.png"}], "a part of type image"),
        ([{"type": "audio"}], "no path"),
        ([{"type": "audio", "path": "a.wav", "noise": {"snr_db": 3}}], "no noise"),
    ],
)
def test_bad_parts_are_named(folder, content, reason):
    with pytest.raises(ValueError, match=reason):
        encode_audio_prompt(processor_of(folder), [Message(role="user", content=content)])


def test_a_placeholder_that_the_tokenizer_does_not_mark_as_special_is_no_way_in(folders, tmp_path, recordings):
    folder = shutil.copytree(folders["qwen2_audio"], tmp_path / "model")
    stored = json.loads((folder / "tokenizer.json").read_text())
    for token in stored["added_tokens"]:
        token["special"] = token["special"] and "AUDIO" not in token["content"]
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    kept = json.loads((folder / "tokenizer_config.json").read_text())
    for name in ("extra_special_tokens", "model_specific_special_tokens", "audio_token"):
        kept.pop(name, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    processor = processor_of(folder)
    assert "<|AUDIO|>" not in processor.tokenizer.all_special_tokens
    with pytest.raises(ValueError, match="special token in a text"):
        encode_audio_prompt(processor, messages(recordings[0], "and <|AUDIO|>"))


def test_a_template_without_a_place_for_recordings_is_refused(folder, tmp_path, recordings):
    plain = tmp_path / "plain.jinja"
    plain.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    with pytest.raises(UserError, match="no place for recordings"):
        processor_of(folder, chat_template=str(plain))
    twice = tmp_path / "twice.jinja"
    twice.write_text(OMNI_TEMPLATE.replace("<|AUDIO|>", "<|AUDIO|><|AUDIO|>"))
    processor = processor_of(folder, chat_template=str(twice))
    with pytest.raises(ValueError, match="2 places for 1 recordings"):
        encode_audio_prompt(processor, messages(recordings[0]))


def test_a_checkpoint_without_a_template_of_its_own_gets_that_of_its_architecture(folders, tmp_path, recordings):
    """As Qwen2-Audio on the hub, whose tokenizer brings one that knows text only."""
    folder = shutil.copytree(folders["qwen2_audio"], tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    prompt = encode_audio_prompt(processor_of(folder), messages(recordings[0], "what"))
    expected = encode_audio_prompt(processor_of(folders["qwen2_audio"]), messages(recordings[0], "what"))
    assert prompt == expected


def test_folders_that_cannot_be_used_are_named(folders, tmp_path):
    folder = shutil.copytree(folders["qwen2_5_omni"], tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"lacks preprocessor_config\.json"):
        processor_of(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="not a known model of kind audio: its type is llama"):
        processor_of(folder)
    with pytest.raises(UserError, match="model folder not found"):
        processor_of(tmp_path / "absent")


def test_a_recording_that_changes_during_the_job_is_noticed(folder, tmp_path):
    processor = processor_of(folder)
    recording = write_recording(tmp_path / "a.wav", 1, 1)
    prompt = encode_audio_prompt(processor, messages(recording, "what"))
    write_recording(recording, 1.5, 1)
    with pytest.raises(UserError, match="changed while the job ran"):
        audio_inputs(processor, [prompt])
    recording.unlink()
    with pytest.raises(UserError, match="recording missing"):
        audio_inputs(processor, [prompt])
    assert audio_inputs(processor, [Prompt((1, 2))]) == {}


def test_saved_processors_are_read_again_by_us_and_the_library(folder, tmp_path, recordings):
    from transformers import AutoFeatureExtractor

    before = processor_of(folder)
    before.save_pretrained(tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    after = processor_of(tmp_path)
    asked = messages(recordings[3], "what")
    assert encode_audio_prompt(after, asked) == encode_audio_prompt(before, asked)
    assert after.extractor.n_samples == before.extractor.n_samples
    assert AutoFeatureExtractor.from_pretrained(tmp_path).n_samples == before.extractor.n_samples
