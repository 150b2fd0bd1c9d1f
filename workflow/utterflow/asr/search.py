"""Beam search, diverse beam search and sampling over a batch of windows.

Hypotheses are ranked by total log-probability / tokens ** length_penalty; tokens count the end token. A token's
log-probability is the model's own (log-softmax of the raw logits, in float32): neither temperature nor diversity
penalty enters it. Suppressed tokens and repeated n-grams have probability zero; the rest is not renormalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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

    @property
    def width(self) -> int:
        """Beams of a group."""
        return self.num_beams // self.num_beam_groups


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
    limit, state = _start(whisper, cross, len(prompts[0]), options)
    logits = decode(whisper, state, torch.tensor(prompts, device=whisper.device)[:, None])
    expand(state, options.num_beams)
    logits = logits.expand(-1, options.num_beams, -1)
    beams = _first_beams(len(prompts), limit, options)
    finished: list[list[list[_Finished]]] = [[[] for _ in range(options.num_beam_groups)] for _ in prompts]

    for step in range(limit):
        logp = _log_probabilities(whisper, logits, beams.tokens[:, :, :step], step, options)
        parents = _advance(
            beams, finished, _best_continuations(logp, beams.steering, options), step, whisper.eos, options
        )
        _end_groups(beams, finished, step + 1, options)
        if not beams.running.any():
            break
        if step + 1 == limit:
            _cut_off(beams, finished, options)
            break
        reorder(state, _to(whisper, (np.arange(len(parents))[:, None] * options.num_beams + parents).ravel()))
        alive = np.flatnonzero(beams.running.any(1))
        if len(alive) <= RETIRE_SHARE * len(beams.items):
            rows = (alive[:, None] * options.num_beams + np.arange(options.num_beams)).ravel()
            keep(state, _to(whisper, alive), _to(whisper, rows))
            beams = beams.only(alive)
        logits = decode(whisper, state, _to(whisper, beams.tokens[:, :, step, None]))
    return [_ranked(groups, options.width, whisper.eos, options.length_penalty) for groups in finished]


@dataclass
class _Beams:
    """The running hypotheses of the windows that are still in the batch."""

    tokens: NDArray[Any]  # [B, n, limit]
    logprobs: NDArray[Any]  # [B, n, limit]
    steering: NDArray[Any]  # [B, n] accumulated log-probability less diversity penalties
    running: NDArray[Any]  # [B, groups] bool
    items: NDArray[Any]  # [B] the windows' places in the caller's batch

    def only(self, rows: NDArray[Any]) -> _Beams:
        return _Beams(self.tokens[rows], self.logprobs[rows], self.steering[rows], self.running[rows], self.items[rows])


@dataclass(frozen=True)
class _Continuations:
    """Candidate next tokens, best first; arrays of one shape."""

    value: NDArray[Any]  # steering score with this token
    token: NDArray[Any]
    logprob: NDArray[Any]
    parent: NDArray[Any]  # beam that it continues

    def group(self, group: int) -> _Continuations:
        return _Continuations(*(array[:, group] for array in (self.value, self.token, self.logprob, self.parent)))

    def take(self, order: NDArray[Any]) -> _Continuations:
        arrays = (self.value, self.token, self.logprob, self.parent)
        return _Continuations(*(np.take_along_axis(array, order, 1) for array in arrays))


@dataclass(frozen=True)
class _Finished:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    steering: float  # rank within its group, diversity penalty included


def _first_beams(windows: int, limit: int, options: SearchOptions) -> _Beams:
    """Each group starts from one empty hypothesis; its other beams are dead until the first step fills them."""
    count = options.num_beams
    return _Beams(
        tokens=np.zeros((windows, count, limit), np.int64),
        logprobs=np.zeros((windows, count, limit)),
        steering=np.tile(np.where(np.arange(count) % options.width == 0, 0.0, -np.inf), (windows, 1)),
        running=np.ones((windows, options.num_beam_groups), bool),
        items=np.arange(windows),
    )


def _best_continuations(logp: Tensor, steering: NDArray[Any], options: SearchOptions) -> _Continuations:
    """The continuations of each group that can matter, before penalties; arrays [B, groups, K].

    The penalty only lowers, and at most `width` continuations for each beam of an earlier group, so the 2 * width best
    after it are among the 2 * width + width * (beams - width) best before it.
    """
    windows, beams, vocabulary = logp.shape
    groups, width = options.num_beam_groups, options.width
    base = torch.from_numpy(steering).to(logp.device, torch.float32)
    scores = (logp + base[:, :, None]).view(windows, groups, width * vocabulary)
    count = min(2 * width + (width * (beams - width) if groups > 1 else 0), width * vocabulary)
    value, index = scores.topk(count, dim=-1)
    logprob = logp.view(windows, groups, width * vocabulary).gather(-1, index)
    place = index.cpu().numpy()
    parent = place // vocabulary + np.arange(groups)[None, :, None] * width
    return _Continuations(value.double().cpu().numpy(), place % vocabulary, logprob.double().cpu().numpy(), parent)


def _advance(
    beams: _Beams,
    finished: list[list[list[_Finished]]],
    continuations: _Continuations,
    step: int,
    eos: int,
    options: SearchOptions,
) -> NDArray[Any]:
    """Let the groups choose one after another, and extend the beams; the beam that each one continues, [B, n]."""
    width = options.width
    chosen: list[_Continuations] = []
    spoken = np.zeros((len(beams.items), 0), np.int64)
    for group in range(options.num_beam_groups):
        offered = continuations.group(group)
        penalty = options.diversity_penalty * (offered.token[:, :, None] == spoken[:, None, :]).sum(-1)
        lowered = replace(offered, value=offered.value - penalty)
        best = lowered.take(np.argsort(-lowered.value, axis=1, kind="stable")[:, : 2 * width])
        _finish(beams, finished, best, group, step, eos, options)
        going_on = best.take(np.argsort(best.token == eos, axis=1, kind="stable")[:, :width])
        chosen.append(going_on)
        spoken = np.hstack([spoken, np.where(beams.running[:, group, None], going_on.token, -1)])
    parents = np.hstack([part.parent for part in chosen])
    beams.tokens = np.take_along_axis(beams.tokens, parents[:, :, None], 1)
    beams.logprobs = np.take_along_axis(beams.logprobs, parents[:, :, None], 1)
    beams.tokens[:, :, step] = np.hstack([part.token for part in chosen])
    beams.logprobs[:, :, step] = np.hstack([part.logprob for part in chosen])
    beams.steering = np.hstack([part.value for part in chosen])
    return parents


def _finish(
    beams: _Beams,
    finished: list[list[list[_Finished]]],
    best: _Continuations,
    group: int,
    step: int,
    eos: int,
    options: SearchOptions,
) -> None:
    """Store the hypotheses that an end token among the best `width` continuations finishes."""
    width = options.width
    ends = (best.token[:, :width] == eos) & beams.running[:, group, None] & np.isfinite(best.value[:, :width])
    for row, place in zip(*np.nonzero(ends), strict=True):
        origin = best.parent[row, place]
        finished[beams.items[row]][group].append(
            _Finished(
                (*beams.tokens[row, origin, :step], eos),
                (*beams.logprobs[row, origin, :step], best.logprob[row, place]),
                rank(best.value[row, place], step + 1, options.length_penalty),
            )
        )


def _end_groups(beams: _Beams, finished: list[list[list[_Finished]]], length: int, options: SearchOptions) -> None:
    """Mark the groups that no running hypothesis can improve."""
    width = options.width
    for row, group in zip(*np.nonzero(beams.running), strict=True):
        best_running = float(beams.steering[row, group * width : (group + 1) * width].max())
        done = sorted((item.steering for item in finished[beams.items[row]][group]), reverse=True)
        full = len(done) >= width and done[width - 1] >= rank(best_running, length, options.length_penalty)
        beams.running[row, group] = np.isfinite(best_running) and not full


def _cut_off(beams: _Beams, finished: list[list[list[_Finished]]], options: SearchOptions) -> None:
    """Add the beams that still run at max_new_tokens."""
    width, length = options.width, beams.tokens.shape[2]
    for row, group in zip(*np.nonzero(beams.running), strict=True):
        for beam in range(group * width, (group + 1) * width):
            if np.isfinite(beams.steering[row, beam]):
                finished[beams.items[row]][group].append(
                    _Finished(
                        tuple(beams.tokens[row, beam]),
                        tuple(beams.logprobs[row, beam]),
                        rank(beams.steering[row, beam], length, options.length_penalty),
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
    Samples with the same prefix share one row of the decoder until they part.

    Returns:
        For each window its samples, best first.
    """
    windows = len(prompts)
    limit, state = _start(whisper, cross, len(prompts[0]), options)
    uniform = np.stack([np.random.default_rng(seed).random((limit, samples)) for seed in seeds])
    logits = decode(whisper, state, torch.tensor(prompts, device=whisper.device)[:, None])

    tokens = np.full((windows, samples, limit), whisper.eos, np.int64)
    logprobs = np.zeros((windows, samples, limit))
    lengths = np.full((windows, samples), limit)
    active = np.ones((windows, samples), bool)
    items = np.arange(windows)  # [B'] windows that still have running samples
    owner = np.zeros((windows, 1), np.int64)  # [B', m] for each row of the decoder, a sample with that prefix
    row = np.zeros((windows, samples), np.int64)  # [B', samples] for each sample, the row of its prefix

    for step in range(limit):
        logp = _log_probabilities(whisper, logits, tokens[items[:, None], owner, :step], step, options)
        drawn, logprob = _draw(logp, row, uniform[items, step], options)
        running = active[items]
        tokens[items, :, step] = np.where(running, drawn, whisper.eos)
        logprobs[items, :, step] = np.where(running, logprob, 0.0)
        ended = running & (drawn == whisper.eos)
        lengths[items] = np.where(ended, step + 1, lengths[items])
        active[items] = running & ~ended
        if not active.any() or step + 1 == limit:
            break
        kept, parents, owner, row = _branch(row, drawn, active[items], owner.shape[1])
        keep(state, _to(whisper, kept), _to(whisper, parents))
        items = items[kept]
        logits = decode(whisper, state, _to(whisper, tokens[items[:, None], owner, step, None]))
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


def _branch(
    row: NDArray[Any], drawn: NDArray[Any], active: NDArray[Any], width: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The rows of the next step: one per distinct prefix of the samples that run on.

    Args:
        row: [B, samples] row of each sample's prefix, of `width` rows per window.
        drawn: [B, samples] the tokens drawn.
        active: [B, samples] which samples run on.

    Returns:
        windows [B'] that have any; the rows [B' * m] that the new ones continue; `owner` [B', m] and `row`
        [B', samples] of the new rows. Windows with fewer than m prefixes repeat their first.
    """
    kept = np.flatnonzero(active.any(1))
    slots = [np.flatnonzero(active[window]) for window in kept]
    prefixes = [
        np.unique(drawn[window, own] * width + row[window, own], return_index=True, return_inverse=True)[1:]
        for window, own in zip(kept, slots, strict=True)
    ]
    count = max(len(first) for first, _ in prefixes)
    owner = np.zeros((len(kept), count), np.int64)
    next_row = np.zeros((len(kept), row.shape[1]), np.int64)
    for place, (own, (first, inverse)) in enumerate(zip(slots, prefixes, strict=True)):
        owner[place] = own[first[0]]
        owner[place, : len(first)] = own[first]
        next_row[place, own] = inverse
    parents = (kept[:, None] * width + np.take_along_axis(row[kept], owner, 1)).ravel()
    return kept, parents, owner, next_row


def _draw(
    logp: Tensor, row: NDArray[Any], uniform: NDArray[Any], options: SearchOptions
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Draw a token for each sample: log-probabilities [B, m, V], row and uniform [B, samples] -> tokens and their
    log-probabilities, [B, samples]."""
    size = logp.shape[-1]
    best, index = logp.topk(min(options.top_k or size, size), dim=-1)
    probability = (best / options.temperature).softmax(-1)
    cumulative = probability.double().cumsum(-1)
    if options.top_p < 1:
        kept = cumulative - probability < options.top_p
        cumulative = (probability * kept).double().cumsum(-1)
    rows = torch.from_numpy(row).to(logp.device)[..., None]
    own = cumulative.gather(1, rows.expand(-1, -1, index.shape[-1]))
    target = torch.from_numpy(uniform).to(logp.device)[..., None] * own[..., -1:]
    place = (own <= target).sum(-1).clamp_max(index.shape[-1] - 1) + rows[..., 0] * index.shape[-1]
    return index.flatten(1).gather(1, place).cpu().numpy(), best.flatten(1).gather(1, place).double().cpu().numpy()


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
