"""Back end `transformers`: answers from a model in this process, with or without an adapter.

Shapes: B requests, n answers each, R = B * n rows, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.files import seed_of
from utterflow.llm.requests import NO_NUMBERS, Answer, Batch, Decoding, Request, answer_of
from utterflow.llm.structured import grammar_of
from utterflow.models.kinds import Media, kind_of
from utterflow.sft.tokenize import Prompt

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def load_for_answers(folder: Path, adapter: Path | None, cfg: LanguageModel, device: torch.device) -> Any:
    """The model of `folder`, with the adapter on it if there is one, and without decoding defaults of its own.

    Checkpoints bring a generation_config that samples, penalises or suppresses: only what the configuration says is
    to count. LoRA is built into the model's own modules, so the model itself is returned, not PEFT's wrapper.

    Raises:
        UserError: model or adapter cannot be loaded.
    """
    model = kind_of(cfg).load_model(folder, cfg, device)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model


def versions() -> dict[str, str]:
    """Of the packages that answers come from."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "llguidance")}


def answers(
    batches: Sequence[Batch],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    where: str = "",
    media: Media | None = None,
) -> Iterator[list[Answer]]:
    """Answer each batch: the rows of a batch run together, prompts padded on the left.

    Sampling is by the Gumbel-max trick (Gumbel 1954; Maddison et al. 2014, arXiv:1411.0030): the token with the
    greatest log-probability plus Gumbel noise is a draw from the distribution. Each answer has a stream of noise of
    its own, so that it does not depend on what else is in the batch.

    Args:
        where: the schema's file, for messages.
        media: makes what the model takes for a batch's recordings, from its prompts; None: there are none.

    Raises:
        UserError: the GPU's memory is too small, or the JSON schema cannot be followed.
    """
    grammar = (
        Grammar(grammar_of(decoding.schema, where), tokenizer, model, decoding) if decoding.schema is not None else None
    )
    for batch in batches:
        try:
            yield _answer_batch(batch, model, tokenizer, decoding, grammar, media)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory is too small for this batch: {error}",
                fix="lower `batch_size` (or `num_outputs`) and start again: finished rows are in the journal",
            ) from None


class Grammar:
    """A grammar over a tokenizer's vocabulary; makes one matcher per row."""

    def __init__(self, grammar: str, tokenizer: Any, model: Any, decoding: Decoding) -> None:
        from llguidance.hf import from_tokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise UserError("`json_schema` needs a fast tokenizer (tokenizer.json)", fix="convert the tokenizer")
        self.vocabulary = max(len(tokenizer), int(model.config.get_text_config().vocab_size))
        ends = [token for token in decoding.end_tokens if token < self.vocabulary]
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=self.vocabulary, eos_token=ends)
        self._grammar = grammar

    def matchers(self, rows: int) -> list[Any]:
        from llguidance import LLMatcher

        first = LLMatcher(self._tokenizer, self._grammar)
        return [first, *(first.deep_copy() for _ in range(rows - 1))]


class NextToken(LogitsProcessor):
    """Turns the model's logits [R, V] into scores whose maximum is the next token of each row.

    In this order: rows with values that are no numbers are ended, the grammar is applied, then temperature, top-k and
    top-p, then the noise of sampling.
    """

    def __init__(self, requests: Sequence[Request], width: int, decoding: Decoding, grammar: Grammar | None) -> None:
        n, rows = decoding.num_outputs, len(requests) * decoding.num_outputs
        self.width, self.decoding, self.grammar = width, decoding, grammar
        self.broken = np.zeros(rows, dtype=bool)
        self.matchers = grammar.matchers(rows) if grammar else []
        self.warpers = LogitsProcessorList()
        self.noise: list[np.random.Generator] = []
        if decoding.temperature > 0:
            if decoding.temperature != 1:
                self.warpers.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k > 0:
                self.warpers.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                self.warpers.append(TopPLogitsWarper(decoding.top_p))
            self.noise = [
                np.random.Generator(np.random.Philox(seed_of(request.seed, number)))
                for request in requests
                for number in range(n)
            ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ends = torch.tensor(self.decoding.end_tokens, device=input_ids.device)
        ended = torch.isin(input_ids[:, self.width :], ends).any(1).cpu().numpy()
        fault = (scores.isnan() | (scores == torch.inf)).any(1).cpu().numpy()
        self.broken |= fault & ~ended
        if self.grammar:
            allowed = self._allowed(input_ids[:, self.width :], ended, self.grammar.vocabulary)[:, : scores.shape[1]]
            scores = scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)
        scores = self.warpers(cast(Any, input_ids), cast(Any, scores))
        if self.noise:
            scores = scores + gumbel(self.noise, scores.shape[1], scores.device)
        if self.broken.any():
            scores = scores.clone()
            scores[torch.from_numpy(self.broken).to(scores.device)] = -torch.inf
            scores[torch.from_numpy(self.broken).to(scores.device), self.decoding.end_tokens[0]] = 0
        return scores

    def _allowed(self, generated: Tensor, ended: NDArray[Any], vocabulary: int) -> NDArray[np.bool_]:
        """Tokens that the grammar allows next [R, vocabulary], after what was generated [R, tokens so far]."""
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        bits = allocate_token_bitmask(len(self.matchers), vocabulary)
        last = generated[:, -1].tolist() if generated.shape[1] else None
        for row, matcher in enumerate(self.matchers):
            if ended[row] or self.broken[row]:
                continue
            if last is not None and not matcher.consume_token(last[row]):
                raise RuntimeError(f"the grammar refuses a token that it allowed: {matcher.get_error()}")
            fill_next_token_bitmask(matcher, bits, row)
        return np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little").astype(bool)


def gumbel(generators: Sequence[np.random.Generator], size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise [R, size], a row per generator: -log of exponential draws, which is never infinite here."""
    draws = np.stack([generator.standard_exponential(size, dtype=np.float32) for generator in generators])
    return -torch.from_numpy(draws).to(device).clamp_(min=torch.finfo(torch.float32).tiny).log_()


@torch.inference_mode()
def _answer_batch(
    batch: Batch, model: Any, tokenizer: Any, decoding: Decoding, grammar: Grammar | None, media: Media | None
) -> list[Answer]:
    """Recordings are heard once, when the prompts' keys and values are made; what follows reads these."""
    n = decoding.num_outputs
    heard = {} if media is None else media([Prompt(request.prompt, request.audio) for request in batch])
    ids, mask = _padded([request.prompt for request in batch], tokenizer.pad_token_id, model.device)
    chooser = NextToken(batch, ids.shape[1], decoding, grammar)
    made = model.generate(
        input_ids=ids.repeat_interleave(n, 0),
        attention_mask=mask.repeat_interleave(n, 0),
        past_key_values=_shared_prompts(model, ids, mask, n, heard) if ids.shape[1] > 1 and (n > 1 or heard) else None,
        logits_processor=LogitsProcessorList([chooser]),
        generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(decoding.end_tokens),
            pad_token_id=tokenizer.pad_token_id,
        ),
    )
    generated = made[:, ids.shape[1] :].tolist()
    rows = [slice(index * n, (index + 1) * n) for index in range(len(batch))]
    return [
        Answer(problem=NO_NUMBERS)
        if chooser.broken[own].any()
        else answer_of(tokenizer, generated[own], decoding.end_tokens)
        for own in rows
    ]


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [B, L], padded on the left, and the mask of what is no padding [B, L]."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _shared_prompts(model: Any, ids: Tensor, mask: Tensor, n: int, heard: Mapping[str, Tensor]) -> DynamicCache:
    """Keys and values of all prompt tokens but the last: computed once per prompt [B, ...], then n times each.

    Args:
        heard: what the model takes for the recordings; the last token of a prompt is no placeholder.
    """
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **{name: value.to(model.device) for name, value in heard.items()},
    )
    cache.batch_repeat_interleave(n)
    return cache


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    if missing := [name for name in ADAPTER_FILES if not (adapter / name).is_file()]:
        raise UserError(f"the adapter is incomplete: it lacks {', '.join(missing)}", where=str(adapter))
    try:
        loaded = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the adapter does not fit the model: {error}",
            where=str(adapter),
            fix="take the model that the adapter was trained on",
        ) from None
    return loaded.get_base_model().eval()
