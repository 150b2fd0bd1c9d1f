"""What is asked of a language model, how, and what comes back: the same for every back end.

A back end is a function `answers(batches, ..., decoding) -> Iterator[list[Answer]]`: one list per batch, in order,
with one answer per request. It forms no batches of its own and knows no journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from utterflow.sft.tokenize import AudioPart as AudioPart

Finish = Literal["stop", "length"]
Batch = Sequence["Request"]


@dataclass(frozen=True)
class Request:
    """One prompt."""

    id: str
    prompt: tuple[int, ...]  # token ids
    seed: int  # of its draws, where answers are sampled
    audio: tuple[AudioPart, ...] = ()  # recordings that the prompt's placeholders stand for


@dataclass(frozen=True)
class Decoding:
    """How answers are made; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    num_outputs: int
    end_tokens: tuple[int, ...]  # ids, the chat template's first
    schema: Mapping[str, Any] | None  # JSON schema that answers must follow


@dataclass(frozen=True)
class Answer:
    """`num_outputs` answers to one request, or why there are none."""

    texts: tuple[str, ...] = ()  # without special tokens, stripped
    raw: tuple[str, ...] = ()  # with them
    finish: tuple[Finish, ...] = ()
    output_tokens: tuple[int, ...] = ()  # end token included
    problem: str | None = None


NO_NUMBERS = "no answer: the model gives values that are not numbers (float16 can overflow: try another dtype)"


def cut_at_end(tokens: Sequence[int], end_tokens: Sequence[int]) -> tuple[list[int], Finish]:
    """The tokens up to the first end token, that one included, and how the answer ended."""
    for place, token in enumerate(tokens):
        if token in end_tokens:
            return list(tokens[: place + 1]), "stop"
    return list(tokens), "length"


def answer_of(tokenizer: Any, sequences: Sequence[Sequence[int]], end_tokens: Sequence[int]) -> Answer:
    """Text of the answers to one request from their token ids; what follows an end token is left out."""
    ended = [cut_at_end(tokens, end_tokens) for tokens in sequences]
    bare = [tokens[:-1] if finish == "stop" else tokens for tokens, finish in ended]
    return Answer(
        texts=tuple(_decode(tokenizer, tokens, bare=True).strip() for tokens in bare),
        raw=tuple(_decode(tokenizer, tokens, bare=False) for tokens, _ in ended),
        finish=tuple(finish for _, finish in ended),
        output_tokens=tuple(len(tokens) for tokens, _ in ended),
    )


def _decode(tokenizer: Any, tokens: Sequence[int], *, bare: bool) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=bare, clean_up_tokenization_spaces=False))
