"""The definitions of the searches, written the slow way: one utterance, no cache, the library's own forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    tokens: tuple[int, ...]
    score: float  # the model's log-probability
    steering: float  # with the diversity penalty


def log_probabilities(whisper, log_mel: Tensor, prompt: list[int], tokens: tuple[int, ...], ngram: int) -> Tensor:
    """[V] log-probabilities of the next token; forbidden ones at minus infinity."""
    inputs = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        logits = whisper.model(input_features=log_mel[None], decoder_input_ids=inputs).logits[0, -1].float()
    logp = logits.log_softmax(-1)
    logp[whisper.suppressed_first if not tokens else whisper.suppressed] = -torch.inf
    if ngram:
        seen = {tokens[start : start + ngram] for start in range(len(tokens) - ngram + 1)}
        for gram in seen:
            if gram[:-1] == tuple(tokens[len(tokens) - ngram + 1 :]):
                logp[gram[-1]] = -torch.inf
    return logp


def group_beam_search(
    whisper, log_mel: Tensor, prompt: list[int], *, beams, groups, penalty, limit, ngram=0, length_penalty=1.0
) -> list[Hypothesis]:
    """Diverse beam search with Hamming diversity; one group is plain beam search. The `beams` best, best first."""
    width = beams // groups
    running = [[Hypothesis((), 0.0, 0.0)] for _ in range(groups)]
    finished: list[list[Hypothesis]] = [[] for _ in range(groups)]
    done = [False] * groups
    for step in range(1, limit + 1):
        chosen: list[int] = []
        for group in range(groups):
            if done[group]:
                continue
            continuations = []
            for beam in running[group]:
                logp = log_probabilities(whisper, log_mel, prompt, beam.tokens, ngram).double()
                for token in torch.isfinite(logp).nonzero().squeeze(1).tolist():
                    value = float(logp[token])
                    lowered = beam.steering + value - penalty * chosen.count(token)
                    continuations.append(Hypothesis((*beam.tokens, token), beam.score + value, lowered))
            continuations.sort(key=lambda item: -item.steering)
            best = continuations[: 2 * width]
            finished[group] += [item for item in best[:width] if item.tokens[-1] == whisper.eos]
            running[group] = [item for item in best if item.tokens[-1] != whisper.eos][:width]
            chosen += [item.tokens[-1] for item in running[group]]
            if not running[group]:
                done[group] = True
            elif len(finished[group]) >= width:
                kept = sorted(
                    (item.steering / len(item.tokens) ** length_penalty for item in finished[group]),
                    reverse=True,
                )
                done[group] = kept[width - 1] >= running[group][0].steering / step**length_penalty
        if all(done):
            break
    result = []
    for group in range(groups):
        pool = finished[group] + ([] if done[group] else running[group])
        pool.sort(key=lambda item: -item.steering / len(item.tokens) ** length_penalty)
        result += pool[:width]
    return sorted(result, key=lambda item: -item.score / len(item.tokens) ** length_penalty)


def sample_one(whisper, log_mel: Tensor, prompt: list[int], uniforms, *, temperature, top_k, top_p, limit, ngram=0):
    """One sample by inverting the cumulative distribution at the given uniform numbers; (tokens, log-probabilities)."""
    tokens: tuple[int, ...] = ()
    values: list[float] = []
    for step in range(limit):
        logp = log_probabilities(whisper, log_mel, prompt, tokens, ngram)
        order = sorted(range(len(logp)), key=lambda token: -float(logp[token]))[: top_k or None]
        weights = torch.softmax(logp[order] / temperature, 0).double().tolist()
        kept, total = [], 0.0
        for token, weight in zip(order, weights, strict=True):
            if total >= top_p:
                break
            kept.append((token, weight))
            total += weight
        target, reached = uniforms[step] * total, 0.0
        for candidate, weight in kept:
            token, reached = candidate, reached + weight
            if reached > target:
                break
        tokens, values = (*tokens, token), [*values, float(logp[token])]
        if token == whisper.eos:
            break
    return tokens, values
