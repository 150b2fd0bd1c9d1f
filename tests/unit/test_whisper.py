"""Checkpoints as they lie on disks, the decoder's forward pass, languages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from utterflow.asr.search import SearchOptions, beam_search, sample
from utterflow.asr.whisper import (
    Whisper,
    decode,
    detect_languages,
    encode,
    expand,
    features,
    language_code,
    language_tokens,
    load_whisper,
    new_state,
    prompt_tokens,
    reorder,
)
from utterflow.errors import UserError


def load(folder: Path) -> Whisper:
    return load_whisper(folder, torch.device("cpu"), torch.float32)


def changed_copy(source: Path, folder: Path, **settings: object) -> Path:
    """A copy of a checkpoint with other generation settings; None takes one away."""
    shutil.copytree(source, folder)
    path = folder / "generation_config.json"
    merged = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
    return folder


@pytest.fixture(scope="module")
def english_only(tiny_whisper_folder, tmp_path_factory) -> Whisper:
    folder = tmp_path_factory.mktemp("english") / "model"
    return load(changed_copy(tiny_whisper_folder, folder, is_multilingual=False, lang_to_id=None, task_to_id=None))


@pytest.fixture(scope="module")
def log_mel(tiny_whisper):
    generator = np.random.default_rng(2)
    signals = [generator.normal(0, scale, 16000).astype(np.float32) for scale in (0.01, 0.1, 0.3, 0.5, 0.9, 0.05)]
    signals += [np.sin(np.arange(16000) * pitch).astype(np.float32) for pitch in (0.01, 0.1, 1)]
    return features(tiny_whisper, signals)


def cut_in_half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.1.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut_in_half, "cannot load the Whisper checkpoint"),
        (without_a_tensor, r"lacks 1 of the model's weights, e\.g\. model\.decoder\.layers\.1\.fc1\.weight"),
        (without_tokenizer, "tokenizer does not belong to the model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer does not belong to the model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load the Whisper checkpoint"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load the Whisper checkpoint"),
        (lambda folder: (folder / "processor_config.json").unlink(), "cannot load the Whisper checkpoint"),
        (lambda folder: (folder / "generation_config.json").unlink(), "lack no_timestamps_token_id, is_multilingual"),
    ],
    ids=[
        "weights cut off",
        "a tensor missing",
        "no tokenizer",
        "no vocabulary",
        "broken vocabulary",
        "broken config",
        "no feature extractor",
        "no generation settings",
    ],
)
def test_a_damaged_checkpoint_is_a_plain_error(
    tiny_whisper_folder, tmp_path, harm: Callable[[Path], object], message: str
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_whisper_folder, folder)
    harm(folder)
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token_id": None}, "lack eos_token_id"),
        ({"eos_token_id": [28]}, "eos_token_id"),
        ({"lang_to_id": None}, "lack lang_to_id"),
        ({"task_to_id": None, "no_timestamps_token_id": None}, "lack no_timestamps_token_id, task_to_id"),
        ({"no_timestamps_token_id": 134}, "is '<|nospeech|>', not '<|notimestamps|>'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_outdated_or_foreign_generation_settings_are_refused(tiny_whisper_folder, tmp_path, settings, message):
    with pytest.raises(UserError) as caught:
        load(changed_copy(tiny_whisper_folder, tmp_path / "model", **settings))
    assert message in str(caught.value)


def test_settings_of_published_checkpoints_are_taken(tiny_whisper, tiny_whisper_folder, tmp_path):
    """Tables that decoding has no use for, suppressed tokens in two lists, one of them beyond the vocabulary."""
    letters = {token: tiny_whisper.processor.tokenizer.convert_tokens_to_ids(token) for token in "abc"}
    model = load(
        changed_copy(
            tiny_whisper_folder,
            tmp_path / "model",
            alignment_heads=[[0, 0], [1, 1]],
            forced_decoder_ids=[[1, None], [2, 131]],
            max_initial_timestamp_index=50,
            prev_sot_token_id=133,
            return_timestamps=False,
            suppress_tokens=[letters["a"], letters["b"], 50_000],
            begin_suppress_tokens=[letters["c"], tiny_whisper.eos],
        )
    )
    assert model.suppressed[letters["a"]] and model.suppressed[letters["b"]] and not model.suppressed[letters["c"]]
    assert model.suppressed_first[letters["c"]] and model.suppressed_first[model.eos]
    assert not model.suppressed[model.eos]


def test_special_tokens_are_suppressed_even_where_the_tokenizer_does_not_call_them_special(
    tiny_whisper, tiny_whisper_folder, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_whisper_folder, folder)
    (folder / "tokenizer_config.json").unlink()
    model = load(folder)
    generation = model.model.generation_config
    for token in [*generation.lang_to_id.values(), *generation.task_to_id.values(), generation.decoder_start_token_id]:
        assert model.suppressed[token] and tiny_whisper.suppressed[token]


def test_steps_with_a_cache_equal_the_librarys_forward_pass(tiny_whisper, log_mel):
    """Three hypotheses per window, their histories exchanged between the steps."""
    windows, n = 2, 3
    prompt = prompt_tokens(tiny_whisper, "en", "transcribe")
    state = new_state(tiny_whisper, encode(tiny_whisper, log_mel[:windows]), len(prompt) + 4)
    decode(tiny_whisper, state, torch.tensor([[prompt]] * windows))
    expand(state, n)
    generator = np.random.default_rng(0)
    histories = [list(prompt) for _ in range(windows * n)]
    for _ in range(4):
        parents = np.concatenate([generator.integers(0, n, n) + window * n for window in range(windows)])
        reorder(state, torch.from_numpy(parents))
        tokens = generator.integers(0, 28, windows * n)
        histories = [[*histories[parent], int(token)] for parent, token in zip(parents, tokens, strict=True)]
        logits = decode(tiny_whisper, state, torch.from_numpy(tokens).view(windows, n, 1))
        with torch.inference_mode():
            expected = tiny_whisper.model(
                input_features=log_mel[:windows].repeat_interleave(n, 0), decoder_input_ids=torch.tensor(histories)
            ).logits[:, -1]
        torch.testing.assert_close(logits.reshape(windows * n, -1), expected, atol=1e-4, rtol=0)


def test_the_language_is_the_most_probable_language_token(tiny_whisper, log_mel):
    tokens = language_tokens(tiny_whisper)
    start = torch.tensor([[tiny_whisper.model.generation_config.decoder_start_token_id]] * len(log_mel))
    with torch.inference_mode():
        logits = tiny_whisper.model(input_features=log_mel, decoder_input_ids=start).logits[:, -1]
    expected = [max(tokens, key=lambda code: float(row[tokens[code]])) for row in logits]
    assert detect_languages(tiny_whisper, encode(tiny_whisper, log_mel)) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("sampling", [False, True], ids=["beams", "samples"])
def test_windows_of_several_languages_in_one_batch(tiny_whisper, log_mel, sampling):
    prompts = [prompt_tokens(tiny_whisper, code, "transcribe") for code in ("en", "de", "haw", "zh")]
    cross = encode(tiny_whisper, log_mel[:1].expand(4, -1, -1))
    options = SearchOptions(num_beams=4, max_new_tokens=12)

    def search(first: int, last: int):
        part = [item[:, first:last] for item in cross]
        if sampling:
            return sample(tiny_whisper, part, prompts[first:last], [7] * (last - first), 6, options)
        return beam_search(tiny_whisper, part, prompts[first:last], options)

    together = [[item.tokens for item in found] for found in search(0, 4)]
    assert together == [[item.tokens for item in search(index, index + 1)[0]] for index in range(4)]
    assert len({found[0] for found in together}) > 1


@pytest.mark.parametrize("spelling", ["de", "DE", "german", "German"])
def test_languages_as_code_or_name(tiny_whisper, spelling):
    assert language_code(tiny_whisper, spelling) == "de"


def test_unknown_languages_are_plain_errors(tiny_whisper, english_only):
    with pytest.raises(UserError, match=r"'klingon' is not one of the model's[\s\S]*af, am"):
        language_code(tiny_whisper, "klingon")
    with pytest.raises(UserError, match="English-only"):
        language_code(english_only, "de")


def test_english_only_models_have_no_language_token(english_only, log_mel):
    generation = english_only.model.generation_config
    assert detect_languages(english_only, encode(english_only, log_mel)) == ["en"] * len(log_mel)
    assert language_code(english_only, "English") == "en"
    assert prompt_tokens(english_only, "en", "transcribe") == [
        generation.decoder_start_token_id,
        generation.no_timestamps_token_id,
    ]
    with pytest.raises(UserError, match="cannot do task 'translate'"):
        prompt_tokens(english_only, "en", "translate")
