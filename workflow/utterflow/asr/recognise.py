"""n-best lists of a batch of recordings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from utterflow.asr.pool import most_different, without_duplicates
from utterflow.asr.search import Candidate, SearchOptions, beam_search, sample
from utterflow.asr.whisper import Whisper, detect_languages, encode, features, language_code, prompt_tokens
from utterflow.asr.windows import Scored, cut_windows, join_windows
from utterflow.config.asr import AsrVariant
from utterflow.files import seed_of
from utterflow.records import Hypothesis

DECIMALS = 4


@dataclass(frozen=True)
class Method:
    """How n-best lists are made, and why not as configured, where that is so."""

    name: str
    fallback: str | None = None


@dataclass(frozen=True)
class Recognised:
    """The n-best list of one recording; empty where the model's scores are not numbers."""

    hypotheses: list[Hypothesis]
    language: str
    windows: int


def choose_method(cfg: AsrVariant) -> Method:
    """The configured method, or the sampling pool where that one cannot run."""
    problem = cfg.search_problem()
    return Method("sampling_pool", problem) if problem else Method(cfg.diversity_method)


def recognise(
    whisper: Whisper, signals: Sequence[NDArray[Any]], ids: Sequence[str], cfg: AsrVariant
) -> list[Recognised]:
    """n-best lists of recordings, at most `cfg.batch_size` windows of them at a time.

    Args:
        signals: recordings [samples] at the model's sample rate.
        ids: their rows' ids, from which the seeds of sampling are made.
    """
    windows: list[NDArray[Any]] = []
    seeds: list[int] = []
    counts: list[int] = []
    for signal, row_id in zip(signals, ids, strict=True):
        parts = cut_windows(signal, whisper.window_samples, whisper.sample_rate)
        windows += parts
        seeds += [seed_of(cfg.seed, row_id, part) for part in range(len(parts))]
        counts.append(len(parts))
    lists: list[list[Scored]] = []
    languages: list[str] = []
    for start in range(0, len(windows), cfg.batch_size):
        part = slice(start, start + cfg.batch_size)
        found, spoken = _recognise_windows(whisper, windows[part], seeds[part], cfg)
        lists += found
        languages += spoken
    results = []
    remaining = zip(lists, languages, strict=True)
    for count in counts:
        own = list(islice(remaining, count))
        own_lists = [item[0] for item in own]
        scored = own_lists[0] if count == 1 else _join(own_lists, cfg)
        results.append(Recognised([_hypothesis(item, cfg) for item in scored], own[0][1], count))
    return results


def _recognise_windows(
    whisper: Whisper, windows: Sequence[NDArray[Any]], seeds: Sequence[int], cfg: AsrVariant
) -> tuple[list[list[Scored]], list[str]]:
    cross = encode(whisper, features(whisper, list(windows)))
    if cfg.language:
        languages = [language_code(whisper, cfg.language)] * len(windows)
    else:
        languages = detect_languages(whisper, cross)
    prompts = [prompt_tokens(whisper, language, cfg.task) for language in languages]
    candidates = search(whisper, cross, prompts, seeds, cfg)
    return [_choose(whisper, found, cfg) for found in candidates], languages


@torch.inference_mode()
def search(
    whisper: Whisper,
    cross: list[Tensor],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    cfg: AsrVariant,
) -> list[list[Candidate]]:
    """Candidates of each window by the configured method, best first."""
    method = choose_method(cfg).name
    grouped = method == "group_beam"
    options = SearchOptions(
        num_beams=cfg.num_beams,
        num_beam_groups=(cfg.num_beam_groups or cfg.num_beams) if grouped else 1,
        diversity_penalty=cfg.diversity_penalty if grouped else 0.0,
        length_penalty=cfg.length_penalty,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        max_new_tokens=cfg.max_new_tokens,
        no_repeat_ngram_size=cfg.no_repeat_ngram_size,
    )
    if method == "sampling_pool":
        return sample(whisper, cross, prompts, seeds, int(cfg.sampling_pool or cfg.num_hypotheses), options)
    return beam_search(whisper, cross, prompts, options)


def _choose(whisper: Whisper, candidates: Sequence[Candidate], cfg: AsrVariant) -> list[Scored]:
    candidates = [candidate for candidate in candidates if math.isfinite(candidate.score)]
    if not candidates:
        return []
    texts = whisper.processor.tokenizer.batch_decode([c.tokens for c in candidates], skip_special_tokens=True)
    scored = [
        Scored(text.strip(), candidate.logprobs, candidate.finished)
        for text, candidate in zip(texts, candidates, strict=True)
    ]
    if choose_method(cfg).name == "sampling_pool":
        distinct = without_duplicates(scored, lambda item: item.text)
        return [distinct[index] for index in most_different([item.text for item in distinct], cfg.num_hypotheses)]
    if cfg.drop_duplicates:
        scored = without_duplicates(scored, lambda item: item.text)
    return scored[: cfg.num_hypotheses]


def _join(lists: Sequence[Sequence[Scored]], cfg: AsrVariant) -> list[Scored]:
    joined = join_windows(lists, 2 * cfg.num_hypotheses, cfg.length_penalty)
    if cfg.drop_duplicates:
        joined = without_duplicates(joined, lambda item: item.text)
    return joined[: cfg.num_hypotheses]


def _hypothesis(item: Scored, cfg: AsrVariant) -> Hypothesis:
    return Hypothesis(
        text=item.text,
        score=round(item.score, DECIMALS),
        mean_logprob=round(item.score / max(len(item.logprobs), 1), DECIMALS),
        num_tokens=len(item.logprobs),
        finished=item.finished,
        token_logprobs=[round(value, DECIMALS) for value in item.logprobs] if cfg.token_scores else None,
    )
