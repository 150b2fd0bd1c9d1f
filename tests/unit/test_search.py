"""The decoder against slow implementations of the definitions and against the library's own beam search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from slow_search import group_beam_search, sample_one
from transformers import GenerationConfig, GenerationMixin

from utterflow.asr import search
from utterflow.asr.search import SearchOptions, beam_search, repeated_ngrams, sample
from utterflow.asr.whisper import encode, features, load_whisper, prompt_tokens
from utterflow.audio import add_noise, load_audio
from utterflow.records import Noise

LIMIT = 14


@pytest.fixture(scope="module")
def log_mel(tiny_whisper):
    generator = np.random.default_rng(1)
    signals = [
        generator.normal(0, 0.3, int(seconds * 16000)).astype(np.float32) for seconds in (0.4, 1.9, 1.1, 0.7, 1.5)
    ]
    return features(tiny_whisper, signals)


@pytest.fixture(scope="module")
def prompt(tiny_whisper):
    return prompt_tokens(tiny_whisper, "en", "transcribe")


def run_beams(whisper, log_mel, prompt, **options):
    options = SearchOptions(max_new_tokens=LIMIT, **options)
    return beam_search(whisper, encode(whisper, log_mel), [prompt] * len(log_mel), options)


@pytest.mark.parametrize(
    ("beams", "groups", "penalty", "length_penalty", "ngram"),
    [
        (5, 1, 0.0, 1.0, 3),
        (4, 1, 0.0, 0.0, 0),
        (3, 1, 0.0, 2.0, 2),
        (5, 5, 1.0, 1.0, 3),
        (6, 2, 0.5, 1.0, 2),
        (6, 3, 2.0, 0.5, 0),
        (1, 1, 0.0, 1.0, 0),
    ],
)
def test_beams_equal_the_definition(tiny_whisper, log_mel, prompt, beams, groups, penalty, length_penalty, ngram):
    found = run_beams(
        tiny_whisper,
        log_mel,
        prompt,
        num_beams=beams,
        num_beam_groups=groups,
        diversity_penalty=penalty,
        length_penalty=length_penalty,
        no_repeat_ngram_size=ngram,
    )
    for index in range(len(log_mel)):
        expected = group_beam_search(
            tiny_whisper,
            log_mel[index],
            prompt,
            beams=beams,
            groups=groups,
            penalty=penalty,
            limit=LIMIT,
            ngram=ngram,
            length_penalty=length_penalty,
        )
        assert [item.tokens for item in found[index][:beams]] == [item.tokens for item in expected]
        assert [item.score for item in found[index][:beams]] == pytest.approx(
            [item.score for item in expected], abs=1e-4
        )


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(5, 1, 0.0), (5, 5, 1.0)])
def test_beams_equal_the_definition_on_the_demo_model(repository, beams, groups, penalty):
    demo = repository / "resources/demo"
    whisper = load_whisper(demo / "models/whisper-nano", torch.device("cpu"), torch.float32)
    clips = sorted((demo / "slurp/audio").glob("*.opus"))[:3]
    noise = [Noise(snr_db=0.0, color=0.5, seed=seed) for seed in range(len(clips))]
    signals = [add_noise(load_audio(clip), one) for clip, one in zip(clips, noise, strict=True)]
    log_mel = features(whisper, signals)
    prompt = prompt_tokens(whisper, "en", "transcribe")
    options = {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": penalty, "no_repeat_ngram_size": 3}
    found = run_beams(whisper, log_mel, prompt, **options)
    for index in range(len(clips)):
        expected = group_beam_search(
            whisper, log_mel[index], prompt, beams=beams, groups=groups, penalty=penalty, limit=LIMIT, ngram=3
        )
        assert [item.tokens for item in found[index][:beams]] == [item.tokens for item in expected]
        assert [item.score for item in found[index][:beams]] == pytest.approx(
            [item.score for item in expected], abs=1e-4
        )
        assert all(item.finished for item in found[index][:2])


def test_searches_end_both_ways(tiny_whisper, log_mel, prompt):
    candidates = [item for found in run_beams(tiny_whisper, log_mel, prompt, num_beams=5) for item in found]
    assert {item.finished for item in candidates} == {True, False}
    assert len({len(item.tokens) for item in candidates}) > 3


def test_plain_beams_equal_the_library(tiny_whisper, log_mel, prompt):
    forbidden = tiny_whisper.suppressed.nonzero().squeeze(1).tolist()
    config = GenerationConfig(
        num_beams=5,
        num_return_sequences=5,
        max_new_tokens=LIMIT,
        do_sample=False,
        eos_token_id=tiny_whisper.eos,
        pad_token_id=tiny_whisper.eos,
        decoder_start_token_id=prompt[0],
        suppress_tokens=forbidden,
        begin_suppress_tokens=[tiny_whisper.eos],
        no_repeat_ngram_size=3,
        output_scores=True,
        return_dict_in_generate=True,
    )
    inputs = torch.tensor([prompt] * len(log_mel))
    library = GenerationMixin.generate(tiny_whisper.model, log_mel, decoder_input_ids=inputs, generation_config=config)
    found = run_beams(tiny_whisper, log_mel, prompt, num_beams=5, no_repeat_ngram_size=3)
    ours = [item for candidates in found for item in candidates[:5]]
    for item, sequence, score in zip(ours, library.sequences, library.sequences_scores, strict=True):
        padded = list(item.tokens) + [tiny_whisper.eos] * (len(sequence) - len(prompt) - len(item.tokens))
        assert padded == sequence[len(prompt) :].tolist()
        assert item.rank_score == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature", "ngram"), [(5, 0.9, 1.0, 3), (0, 1.0, 0.7, 0), (0, 0.5, 1.3, 2)]
)
def test_samples_equal_the_definition(tiny_whisper, log_mel, prompt, top_k, top_p, temperature, ngram):
    options = SearchOptions(
        temperature=temperature, top_k=top_k, top_p=top_p, no_repeat_ngram_size=ngram, max_new_tokens=LIMIT
    )
    seeds = [3, 4, 5, 6, 7]
    found = sample(tiny_whisper, encode(tiny_whisper, log_mel), [prompt] * 5, seeds, 4, options)
    for index, seed in enumerate(seeds):
        uniforms = np.random.default_rng(seed).random((LIMIT, 4))
        expected = [
            sample_one(
                tiny_whisper,
                log_mel[index],
                prompt,
                uniforms[:, slot],
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                limit=LIMIT,
                ngram=ngram,
            )
            for slot in range(4)
        ]
        assert sorted(item.tokens for item in found[index]) == sorted(tokens for tokens, _ in expected)
        by_tokens = dict(expected)
        for item in found[index]:
            assert item.logprobs == pytest.approx(by_tokens[item.tokens], abs=1e-4)
        ranks = [item.rank_score for item in found[index]]
        assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize("groups", [1, 5])
def test_batch_of_one_equals_batch_of_many(tiny_whisper, log_mel, prompt, groups):
    options = {"num_beams": 5, "num_beam_groups": groups, "diversity_penalty": float(groups > 1)}
    together = run_beams(tiny_whisper, log_mel, prompt, **options)
    for index, many in enumerate(together):
        alone = run_beams(tiny_whisper, log_mel[index : index + 1], prompt, **options)[0]
        assert [item.tokens for item in alone[:5]] == [item.tokens for item in many[:5]]
        assert [item.score for item in alone[:5]] == pytest.approx([item.score for item in many[:5]], abs=1e-4)


@pytest.mark.parametrize("method", ["beam", "group_beam"])
def test_retiring_finished_rows_changes_nothing(tiny_whisper, log_mel, prompt, monkeypatch, method):
    kept = []
    true = search.keep
    monkeypatch.setattr(
        search, "keep", lambda state, *rows: kept.append([len(part) for part in rows]) or true(state, *rows)
    )
    cross = encode(tiny_whisper, log_mel)
    options = SearchOptions(
        max_new_tokens=40,
        num_beams=2,
        num_beam_groups=2 if method == "group_beam" else 1,
        diversity_penalty=0.5,
        length_penalty=0.0,
        no_repeat_ngram_size=2,
    )

    def run(share: float):
        kept.clear()
        monkeypatch.setattr(search, "RETIRE_SHARE", share)
        found = beam_search(tiny_whisper, cross, [prompt] * 5, options)
        items = [item for one in found for item in one]
        return [(item.tokens, item.finished) for item in items], [item.score for item in items]

    expected, scores = run(-1.0)
    assert not kept
    for share in (0.75, 1.0):
        hypotheses, own_scores = run(share)
        assert hypotheses == expected
        assert own_scores == pytest.approx(scores, abs=1e-4)
        assert kept
    assert len({windows for windows, _ in kept}) > 2, "windows retire one after another"


def test_samples_do_not_depend_on_the_batch(tiny_whisper, log_mel, prompt):
    options = SearchOptions(max_new_tokens=LIMIT, top_k=10)
    cross = encode(tiny_whisper, log_mel)
    together = sample(tiny_whisper, cross, [prompt] * 5, range(5), 20, options)
    for index, many in enumerate(together):
        alone = sample(tiny_whisper, [part[:, index : index + 1] for part in cross], [prompt], [index], 20, options)[0]
        assert [item.tokens for item in alone] == [item.tokens for item in many]


@pytest.mark.parametrize(("top_k", "samples"), [(1, 9), (2, 30)])
def test_samples_with_one_prefix_share_one_row(tiny_whisper, log_mel, prompt, monkeypatch, top_k, samples):
    rows: list[int] = []
    true = search.decode
    monkeypatch.setattr(
        search, "decode", lambda whisper, state, tokens: rows.append(tokens.shape[1]) or true(whisper, state, tokens)
    )
    options = SearchOptions(max_new_tokens=LIMIT, top_k=top_k)
    found = sample(tiny_whisper, encode(tiny_whisper, log_mel), [prompt] * 5, range(5), samples, options)
    for length, count in enumerate(rows):
        prefixes = [{item.tokens[:length] for item in candidates if len(item.tokens) > length} for candidates in found]
        assert count == max(map(len, prefixes))
    assert (max(rows) == 1) == (top_k == 1)


def test_hypotheses_hold_text_and_end_tokens_only(tiny_whisper, log_mel, prompt):
    for candidates in run_beams(tiny_whisper, log_mel, prompt, num_beams=5):
        for item in candidates:
            assert not any(tiny_whisper.suppressed[token] for token in item.tokens)
            assert tiny_whisper.eos not in item.tokens[:-1]
            assert item.tokens[0] != tiny_whisper.eos


@pytest.mark.parametrize("size", [1, 2, 3])
def test_repeated_ngrams_are_those_of_a_plain_loop(size):
    history = np.random.default_rng(0).integers(0, 3, (4, 2, 9))
    expected = set()
    for window in range(4):
        for place in range(2):
            row = history[window, place].tolist()
            tail = row[len(row) - size + 1 :]
            for begin in range(len(row) - size + 1):
                if row[begin : begin + size - 1] == tail:
                    expected.add((window, place, row[begin + size - 1]))
    assert set(zip(*(array.tolist() for array in repeated_ngrams(history, size)), strict=True)) == expected
    assert expected


def test_no_ngram_occurs_twice(tiny_whisper, log_mel, prompt):
    for candidates in run_beams(tiny_whisper, log_mel, prompt, num_beams=5, no_repeat_ngram_size=2):
        for item in candidates:
            pairs = list(zip(item.tokens, item.tokens[1:], strict=False))
            assert len(pairs) == len(set(pairs))
