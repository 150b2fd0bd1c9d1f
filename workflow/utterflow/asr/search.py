"""Beam search, diverse beam search and sampling over a batch of windows.

Hypotheses are ranked by total log-probability / tokens ** length_penalty; tokens count the end token. A token's
log-probability is the model's own (log-softmax of the raw logits, in float32): neither temperature nor diversity
penalty enters it. Suppressed tokens and repeated n-grams have probability zero; the rest is not renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utterflow.asr.whisper import DecoderState, Whisper, decode, expand, keep, new_state, reorder

RETIRE_SHARE = 0.75  # drop finished rows from the batch when at most this share is still running


@dataclass(frozen=True)
class SearchOptions:
    """What the search needs of an ASR variant."""

    num_beams: int = 5
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 128
    no_repeat_ngram_size: int = 0


@dataclass(frozen=True)
class Candidate:
    """A hypothesis as tokens (end token included where it finished) with their log-probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool
    rank_score: float = field(compare=False)

    @property
    def score(self) -> float:
        return float(sum(self.logprobs))


def rank(logprob: float, length: int, length_penalty: float) -> float:
    """Total log-probability / length ** length_penalty."""
    return float(logprob / max(length, 1) ** length_penalty)


@torch.inference_mode()
def beam_search(
    whisper: Whisper, cross: list[Tensor], prompts: Sequence[Sequence[int]], options: SearchOptions
) -> list[list[Candidate]]:
    """Beam search (one group) or diverse beam search (several groups).

    Diverse beam search is Algorithm 1 of Vijayakumar et al. 2016 with Hamming diversity: at each step the groups choose
    one after another, and a token's score is lowered by `diversity_penalty` for each beam of an earlier group that
    chose it at this step. The lowered scores accumulate and steer the search of their group only; hypotheses are
    ranked by the model's own log-probability.

    In each group the 2 * beams best continuations are looked at: an end token among the best `beams` finishes a
    hypothesis, the best others run on. A group ends when it holds `beams` finished hypotheses and its best running
    one, at its present length, could not enter them.

    Args:
        cross: per layer, keys and values [2, B, H, S, d/H], from `encode`.
        prompts: B prompts of equal length.

    Returns:
        For each window all finished hypotheses (and those cut at max_new_tokens), best first.
    """
    windows, beams, groups = len(prompts), options.num_beams, options.num_beam_groups
    width = beams // groups
    limit, state = _start(whisper, cross, len(prompts[0]), options)
    logits = decode(whisper, state, torch.tensor(prompts, device=whisper.device)[:, None])
    expand(state, beams)
    logits = logits.expand(windows, beams, -1)

    tokens = np.zeros((windows, beams, limit), np.int64)
    logprobs = np.zeros((windows, beams, limit))
    steering = np.where(np.arange(beams) % width == 0, 0.0, -np.inf) * np.ones((windows, 1))
    running = np.ones((windows, groups), bool)
    items = np.arange(windows)
    finished: list[list[list[_Finished]]] = [[[] for _ in range(groups)] for _ in range(windows)]

    for step in range(limit):
        logp = _log_probabilities(whisper, logits, tokens[:, :, :step], step, options)
        value, token, logprob, parent = _best_continuations(logp, steering, groups, width, beams)
        chosen_parent = np.tile(np.arange(beams), (len(items), 1))
        chosen_token = np.full((len(items), beams), whisper.eos)
        chosen_logprob = np.zeros((len(items), beams))
        chosen_value = np.full((len(items), beams), -np.inf)
        for group in range(groups):
            beam_slice = slice(group * width, (group + 1) * width)
            earlier = np.where(np.repeat(running[:, :group], width, axis=1), chosen_token[:, : group * width], -1)
            lowered = value[:, group] - options.diversity_penalty * (
                token[:, group, :, None] == earlier[:, None, :]
            ).sum(-1)
            order = np.argsort(-lowered, axis=1, kind="stable")[:, : 2 * width]
            best = {
                name: np.take_along_axis(array[:, group], order, 1)
                for name, array in (("token", token), ("logprob", logprob), ("parent", parent))
            }
            best_value = np.take_along_axis(lowered, order, 1)
            ended = best["token"] == whisper.eos
            for row, place in zip(*np.nonzero(ended[:, :width]), strict=True):
                if running[row, group] and np.isfinite(best_value[row, place]):
                    origin = best["parent"][row, place]
                    finished[items[row]][group].append(
                        _Finished(
                            (*tokens[row, origin, :step], whisper.eos),
                            (*logprobs[row, origin, :step], best["logprob"][row, place]),
                            rank(best_value[row, place], step + 1, options.length_penalty),
                        )
                    )
            going_on = np.argsort(ended, axis=1, kind="stable")[:, :width]
            chosen_parent[:, beam_slice] = np.take_along_axis(best["parent"], going_on, 1)
            chosen_token[:, beam_slice] = np.take_along_axis(best["token"], going_on, 1)
            chosen_logprob[:, beam_slice] = np.take_along_axis(best["logprob"], going_on, 1)
            chosen_value[:, beam_slice] = np.take_along_axis(best_value, going_on, 1)

        tokens = np.take_along_axis(tokens, chosen_parent[:, :, None], 1)
        logprobs = np.take_along_axis(logprobs, chosen_parent[:, :, None], 1)
        tokens[:, :, step], logprobs[:, :, step], steering = chosen_token, chosen_logprob, chosen_value
        for row, group in zip(*np.nonzero(running), strict=True):
            best_running = steering[row, group * width : (group + 1) * width].max()
            running[row, group] = not _group_is_done(
                finished[items[row]][group], width, best_running, step + 1, options
            )
        if not running.any():
            break
        if step + 1 == limit:
            _cut_off(finished, tokens, logprobs, steering, items, running, width, options)
            break

        parents = torch.from_numpy((np.arange(len(items))[:, None] * beams + chosen_parent).ravel())
        reorder(state, parents.to(whisper.device))
        alive = running.any(1)
        if alive.mean() <= RETIRE_SHARE:
            kept = np.flatnonzero(alive)
            rows = (kept[:, None] * beams + np.arange(beams)).ravel()
            keep(state, _to(whisper, kept), _to(whisper, rows))
            tokens, logprobs, steering = tokens[kept], logprobs[kept], steering[kept]
            running, items = running[kept], items[kept]
        logits = decode(whisper, state, _to(whisper, tokens[:, :, step, None]))
    return [_ranked(groups_of_window, width, whisper.eos, options.length_penalty) for groups_of_window in finished]


@dataclass(frozen=True)
class _Finished:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    steering: float  # rank within its group, diversity penalty included


def _best_continuations(
    logp: Tensor, steering: NDArray[Any], groups: int, width: int, beams: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The continuations of each group that can matter: value, token, log-probability, parent beam; each [B, G, K].

    The penalty only lowers, and at most `width` continuations for each beam of an earlier group, so the 2 * width best
    after it are among the 2 * width + width * (beams - width) best before it.
    """
    windows, _, vocabulary = logp.shape
    base = torch.from_numpy(steering).to(logp.device, torch.float32)
    scores = (logp + base[:, :, None]).view(windows, groups, width * vocabulary)
    count = min(2 * width + (width * (beams - width) if groups > 1 else 0), width * vocabulary)
    value, index = scores.topk(count, dim=-1)
    logprob = logp.view(windows, groups, width * vocabulary).gather(-1, index)
    place = index.cpu().numpy()
    parent = place // vocabulary + np.arange(groups)[None, :, None] * width
    return value.double().cpu().numpy(), place % vocabulary, logprob.double().cpu().numpy(), parent


def _group_is_done(
    finished: list[_Finished], width: int, best_running: float, length: int, options: SearchOptions
) -> bool:
    if not np.isfinite(best_running):
        return True
    if len(finished) < width:
        return False
    worst_kept = sorted((item.steering for item in finished), reverse=True)[width - 1]
    return worst_kept >= rank(float(best_running), length, options.length_penalty)


def _cut_off(
    finished: list[list[list[_Finished]]],
    tokens: NDArray[Any],
    logprobs: NDArray[Any],
    steering: NDArray[Any],
    items: NDArray[Any],
    running: NDArray[Any],
    width: int,
    options: SearchOptions,
) -> None:
    """Add the beams that still run at max_new_tokens."""
    length = tokens.shape[2]
    for row, group in zip(*np.nonzero(running), strict=True):
        for beam in range(group * width, (group + 1) * width):
            if np.isfinite(steering[row, beam]):
                finished[items[row]][group].append(
                    _Finished(
                        tuple(tokens[row, beam]),
                        tuple(logprobs[row, beam]),
                        rank(steering[row, beam], length, options.length_penalty),
                    )
                )


def _ranked(groups: list[list[_Finished]], width: int, eos: int, length_penalty: float) -> list[Candidate]:
    """The `width` best of each group first, by model score; then the rest, which only fill gaps left by duplicates."""
    kept: list[Candidate] = []
    spare: list[Candidate] = []
    for group in groups:
        for place, item in enumerate(sorted(group, key=lambda item: -item.steering)):
            candidate = _candidate(item.tokens, item.logprobs, eos, length_penalty)
            (kept if place < width else spare).append(candidate)
    return [*sorted(kept, key=lambda c: -c.rank_score), *sorted(spare, key=lambda c: -c.rank_score)]


def _candidate(tokens: Sequence[int], logprobs: Sequence[float], eos: int, length_penalty: float) -> Candidate:
    values = tuple(float(value) for value in logprobs)
    return Candidate(
        tuple(int(token) for token in tokens),
        values,
        bool(tokens) and tokens[-1] == eos,
        rank(sum(values), len(values), length_penalty),
    )


@torch.inference_mode()
def sample(
    whisper: Whisper,
    cross: list[Tensor],
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    samples: int,
    options: SearchOptions,
) -> list[list[Candidate]]:
    """Draw `samples` hypotheses per window.

    A token is drawn by inverting the cumulative distribution (after temperature, top-k, top-p) at a uniform number that
    depends on the window's seed, the sample and the step alone: so the draws of a window do not depend on its batch.

    Returns:
        For each window its samples, best first.
    """
    windows = len(prompts)
    limit, state = _start(whisper, cross, len(prompts[0]), options)
    uniform = np.stack([np.random.default_rng(seed).random((limit, samples)) for seed in seeds])
    logits = decode(whisper, state, torch.tensor(prompts, device=whisper.device)[:, None])
    expand(state, samples)
    logits = logits.expand(windows, samples, -1)

    tokens = np.full((windows, samples, limit), whisper.eos, np.int64)
    logprobs = np.zeros((windows, samples, limit))
    lengths = np.full((windows, samples), limit)
    items = np.arange(windows)
    slots = np.tile(np.arange(samples), (windows, 1))
    active = np.ones((windows, samples), bool)

    for step in range(limit):
        history = tokens[items[:, None], slots, :step]
        logp = _log_probabilities(whisper, logits, history, step, options)
        drawn, logprob = _draw(logp, uniform[items[:, None], step, slots], options)
        window_index, place = np.nonzero(active)
        owner, slot = items[window_index], slots[window_index, place]
        tokens[owner, slot, step] = drawn[window_index, place]
        logprobs[owner, slot, step] = logprob[window_index, place]
        ended = drawn[window_index, place] == whisper.eos
        lengths[owner[ended], slot[ended]] = step + 1
        active[window_index[ended], place[ended]] = False
        if not active.any() or step + 1 == limit:
            break
        if active.mean() <= RETIRE_SHARE:
            items, slots, active, kept, rows = _retire(items, slots, active)
            keep(state, _to(whisper, kept), _to(whisper, rows))
        following = tokens[items[:, None], slots, step]
        logits = decode(whisper, state, _to(whisper, following[:, :, None]))
    found = []
    for window in range(windows):
        candidates = [
            _candidate(
                tokens[window, slot, : lengths[window, slot]].tolist(),
                logprobs[window, slot, : lengths[window, slot]].tolist(),
                whisper.eos,
                options.length_penalty,
            )
            for slot in range(samples)
        ]
        found.append(sorted(candidates, key=lambda candidate: -candidate.rank_score))
    return found


def _retire(
    items: NDArray[Any], slots: NDArray[Any], active: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Drop finished rows: every window keeps as many rows as the window with most running ones."""
    kept = np.flatnonzero(active.any(1))
    width = int(active[kept].sum(1).max())
    front = np.argsort(~active[kept], axis=1, kind="stable")[:, :width]
    rows = (kept[:, None] * active.shape[1] + front).ravel()
    return (
        items[kept],
        np.take_along_axis(slots[kept], front, 1),
        np.take_along_axis(active[kept], front, 1),
        kept,
        rows,
    )


def _draw(logp: Tensor, uniform: NDArray[Any], options: SearchOptions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw one token per row from log-probabilities [B, n, V]; tokens and their log-probabilities, [B, n]."""
    size = logp.shape[-1]
    best, index = logp.topk(min(options.top_k or size, size), dim=-1)
    probability = (best / options.temperature).softmax(-1)
    cumulative = probability.double().cumsum(-1)
    if options.top_p < 1:
        kept = cumulative - probability < options.top_p
        cumulative = (probability * kept).double().cumsum(-1)
    target = torch.from_numpy(uniform).to(logp.device)[..., None] * cumulative[..., -1:]
    place = (cumulative <= target).sum(-1, keepdim=True).clamp_max(index.shape[-1] - 1)
    return index.gather(-1, place)[..., 0].cpu().numpy(), best.gather(-1, place)[..., 0].double().cpu().numpy()


def _start(
    whisper: Whisper, cross: list[Tensor], prompt_length: int, options: SearchOptions
) -> tuple[int, DecoderState]:
    limit = min(options.max_new_tokens, whisper.max_positions - prompt_length)
    return limit, new_state(whisper, cross, prompt_length + limit)


def _log_probabilities(
    whisper: Whisper, logits: Tensor, history: NDArray[Any], step: int, options: SearchOptions
) -> Tensor:
    """Log-softmax with suppressed tokens and repeated n-grams at minus infinity, [B, n, V]."""
    logp = logits.log_softmax(-1)
    logp = logp.masked_fill(whisper.suppressed_first if step == 0 else whisper.suppressed, -torch.inf)
    windows, places, banned = repeated_ngrams(history, options.no_repeat_ngram_size)
    if len(banned):
        inside = places < logp.shape[1]
        windows, places, banned = windows[inside], places[inside], banned[inside]
        logp[_to(whisper, windows), _to(whisper, places), _to(whisper, banned)] = -torch.inf
    return logp


def repeated_ngrams(history: NDArray[Any], size: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Tokens that would complete an n-gram for the second time.

    Args:
        history: tokens so far, [B, n, t].
        size: n of the n-gram; 0 bans nothing.

    Returns:
        window, hypothesis and token indices of the bans.
    """
    length = history.shape[2]
    starts = length - size + 1
    if size < 1 or starts < 1:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    match = np.ones((*history.shape[:2], starts), bool)
    for offset in range(size - 1):
        match &= history[:, :, offset : offset + starts] == history[:, :, length - size + 1 + offset, None]
    windows, places, begins = np.nonzero(match)
    return windows, places, history[windows, places, begins + size - 1]


def _to(whisper: Whisper, array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(whisper.device)
