"""Conversations as tokens: the same prompt in training and in generation, loss on the answer and its end only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from utterflow.files import canonical_json
from utterflow.records import Message, Noise, SftRow

IGNORED = -100  # label of tokens without loss, as PyTorch's cross_entropy has it
SENTINEL = "utterflowanswer"


@dataclass(frozen=True)
class AudioPart:
    """A recording within a prompt, and the noise that is added to it."""

    path: str
    noise: Noise | None = None


@dataclass(frozen=True)
class Prompt:
    """A conversation as a model is asked it: token ids, and the recordings that its placeholders stand for."""

    ids: tuple[int, ...]
    audio: tuple[AudioPart, ...] = ()


# A prompt must not depend on the day: where a template asks for the date, it gets the one that Llama 3's names itself.
FIXED_DATE = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    "|replace('%d','26')|replace('%b','Jul')|replace('%B','July')|replace('%m','07')|replace('%y','24')"
    "|replace('%Y','2024')|replace('%H','00')|replace('%M','00')|replace('%S','00')|replace('%a','Fri')"
    "|replace('%A','Friday')|replace('%-d','26')|replace('%j','208') }}{%- endmacro -%}"
)


def render_prompt(
    tokenizer: Any, messages: Sequence[Message], *, audio_token: str | None = None, thinking: bool = False
) -> str:
    """The conversation in the chat template's form, up to where the answer begins.

    Args:
        audio_token: stands once for each recording; None: the model takes none.
        thinking: let a hybrid model think aloud first.

    Raises:
        ValueError: there is no user message, the last message is an answer, a part is not text (nor a recording), a
            text holds a special token, or the template refuses the conversation or leaves recordings out. The kind of
            fault stands before the first colon.
    """
    if not any(message.role == "user" for message in messages):
        raise ValueError("no user message: there is nothing to answer")
    if messages[-1].role == "assistant":
        raise ValueError("ends with an answer: the last message must not be the assistant's, its answer is `target`")
    turns: list[dict[str, Any]]
    if audio_token is None:
        turns = [{"role": item.role, "content": text_of(item)} for item in messages]
        check_plain(tokenizer, *(turn["content"] for turn in turns))
    else:
        turns = [{"role": item.role, "content": parts_of(item)} for item in messages]
        texts = [text for item in messages for text in _texts(item)]
        check_plain(tokenizer, *texts)
        if any(audio_token in text for text in texts):
            raise ValueError(f"special token in a text: {audio_token}")
    text = _render(tokenizer, turns, answering=True, thinking=thinking)
    if audio_token is not None and text.count(audio_token) != (recordings := len(audio_parts(messages))):
        raise ValueError(
            f"refused by the chat template: it has {text.count(audio_token)} places for {recordings} recordings"
        )
    return text


def encode_prompt(tokenizer: Any, messages: Sequence[Message], *, thinking: bool = False) -> list[int]:
    """Token ids of a prompt of text, special tokens of the template included.

    Raises:
        ValueError: see `render_prompt`.
    """
    return encode(tokenizer, render_prompt(tokenizer, messages, thinking=thinking))


def encode_row(tokenizer: Any, row: SftRow) -> tuple[list[int], list[int]]:
    """Token ids and labels of one training row of text, of equal length: `join_answer` after `encode_prompt`.

    Raises:
        ValueError: the row has no answer, or a prompt that cannot be made (see `render_prompt`).
    """
    answer = encode_answer(tokenizer, row)
    return join_answer(encode_prompt(tokenizer, row.messages), answer)


def encode_answer(tokenizer: Any, row: SftRow) -> list[int]:
    """Token ids of a row's answer and its end token.

    Raises:
        ValueError: the row has no answer, or one with a special token.
    """
    if row.target is None or not row.target.strip():
        raise ValueError("empty target: there is no answer to learn")
    check_plain(tokenizer, row.target)
    return [*encode(tokenizer, row.target), end_token(tokenizer)]


def join_answer(prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a training row, of equal length.

    Prompt and answer are tokenised apart and joined, so that the model is trained after just the ids that it is asked
    with later. Labels are `IGNORED` on the prompt and the ids themselves on the answer and its end token.
    """
    return [*prompt, *answer], [IGNORED] * len(prompt) + list(answer)


def check_plain(tokenizer: Any, *texts: str) -> None:
    """Refuse texts that the tokenizer would read as control: they could end a turn, or an answer, where none ends.

    Raises:
        ValueError: a text holds a special token.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for text in texts:
        if found := next((token for token in special if token in text), None):
            raise ValueError(f"special token in a text: {found}")


def end_token(tokenizer: Any) -> int:
    """Id of the token that ends an answer: the first special one that the chat template puts after it, else eos."""
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SENTINEL}]
    after = _render(tokenizer, turns, answering=False).rpartition(SENTINEL)[2]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in encode(tokenizer, after) if token in special), int(tokenizer.eos_token_id))


def text_of(message: Message) -> str:
    """A message's text; its parts joined.

    Raises:
        ValueError: a part is not text.
    """
    if isinstance(message.content, str):
        return message.content
    kinds = [part.get("type") for part in message.content]
    if other := [str(kind) for kind in kinds if kind != "text"]:
        raise ValueError(f"not text: a part of type {other[0]}, but the model is of kind text")
    return "".join(str(part.get("text", "")) for part in message.content)


def parts_of(message: Message) -> str | list[dict[str, str]]:
    """A message of text and recordings as chat templates take it; without recordings, its text.

    Raises:
        ValueError: a part is neither.
    """
    if isinstance(message.content, str) or all(part.get("type") == "text" for part in message.content):
        return text_of(message)
    kinds = [str(part.get("type")) for part in message.content]
    if other := [kind for kind in kinds if kind not in ("text", "audio")]:
        raise ValueError(f"not text: a part of type {other[0]}, but the model is of kind audio")
    return [
        {"type": "audio"} if part["type"] == "audio" else {"type": "text", "text": str(part.get("text", ""))}
        for part in message.content
    ]


def audio_parts(messages: Sequence[Message]) -> tuple[AudioPart, ...]:
    """The recordings of a conversation, in order.

    Raises:
        ValueError: a part has no path, or a noise that is none.
    """
    return tuple(
        _audio_part(part)
        for message in messages
        if not isinstance(message.content, str)
        for part in message.content
        if part.get("type") == "audio"
    )


def part_text(part: AudioPart) -> str:
    """A recording as one string, for an encoded data set; `read_part` reads it."""
    return canonical_json({"path": part.path, "noise": None if part.noise is None else part.noise.row()})


def read_part(text: str) -> AudioPart:
    """What `part_text` wrote."""
    return _audio_part(json.loads(text))


def _audio_part(part: dict[str, Any]) -> AudioPart:
    if not isinstance(part.get("path"), str) or not part["path"]:
        raise ValueError("no path: a part of type audio needs the `path` of its recording")
    noise = part.get("noise")
    try:
        return AudioPart(part["path"], None if noise is None else Noise.model_validate(noise))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"no noise: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _texts(message: Message) -> list[str]:
    """All text of a message, whatever else it holds."""
    if isinstance(message.content, str):
        return [message.content]
    return ["".join(str(part.get("text", "")) for part in message.content)]


def _render(tokenizer: Any, turns: list[dict[str, Any]], *, answering: bool, thinking: bool = False) -> str:
    """The chat template's text; hybrid models are told not to think aloud first, unless `thinking`."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=FIXED_DATE + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=answering,
            enable_thinking=thinking,
        )
    except TemplateError as error:
        raise ValueError(f"refused by the chat template: {error}") from None
    return str(text)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, nothing added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
