"""Tokens and what they cost: of a reply, and beforehand of a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utterflow.config.servers import Prices
from utterflow.files import canonical_json
from utterflow.llm.ask import Reply, Usage
from utterflow.records import Message

BYTES_PER_TOKEN = 3.5  # of English text, for the limit of tokens per minute
TURN_TOKENS = 16  # what a chat template adds to a message, at most
TEMPLATE_TOKENS = 64  # and to a conversation
AUDIO_TOKENS = 50  # of a second, at most; models take 10 (OpenAI) to 32 (Gemini)
IMAGE_TOKENS = 4096  # at most


def usage_of(reply: Reply, prices: Prices | None) -> Usage:
    """A reply's tokens with their cost at these prices."""
    cost = None if prices is None else cost_of(reply.input_tokens, reply.cached_tokens, reply.output_tokens, prices)
    return Usage(reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens, cost)


def cost_of(input_tokens: float, cached_tokens: float, output_tokens: float, prices: Prices) -> float:
    """Cost of tokens; the cached ones are part of the input, those of the reasoning part of the output."""
    cached_price = prices.input if prices.cached_input is None else prices.cached_input
    fresh = max(0.0, input_tokens - cached_tokens)
    return (fresh * prices.input + cached_tokens * cached_price + output_tokens * prices.output) / 1e6


def most_input_tokens(messages: Sequence[Message], schema: Mapping[str, Any] | None, audio_seconds: float) -> int:
    """A bound that a prompt's tokens stay below.

    A tokenizer over bytes makes at most one token of a byte; a schema is counted twice, as it may stand in the text and
    in the request.
    """
    audio = round(AUDIO_TOKENS * audio_seconds)
    return TEMPLATE_TOKENS + sum(_bytes(message) + TURN_TOKENS for message in messages) + _schema_bytes(schema) + audio


def likely_input_tokens(messages: Sequence[Message], schema: Mapping[str, Any] | None, audio_seconds: float) -> int:
    """About how many tokens a prompt has."""
    most = most_input_tokens(messages, schema, 0)
    return round(most / BYTES_PER_TOKEN + AUDIO_TOKENS * audio_seconds / 2)


def worst_cost(input_tokens: int, max_tokens: int, prices: Prices) -> float:
    """What a question costs at most: no token of it cached, or all of them, and the longest answer."""
    return max(cost_of(input_tokens, cached, max_tokens, prices) for cached in (0, input_tokens))


def _bytes(message: Message) -> int:
    if isinstance(message.content, str):
        return len(message.content.encode())
    images = len([part for part in message.content if part.get("type") == "image"])
    text = sum(len(str(part.get("text") or "").encode()) for part in message.content)
    return text + images * IMAGE_TOKENS


def _schema_bytes(schema: Mapping[str, Any] | None) -> int:
    return 0 if schema is None else 2 * len(canonical_json(schema).encode()) + TEMPLATE_TOKENS
