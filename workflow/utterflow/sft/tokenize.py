"""Conversations as tokens: the same prompt in training and in generation, loss on the answer and its end only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utterflow.records import Message, SftRow

IGNORED = -100  # label of tokens without loss, as PyTorch's cross_entropy has it
SENTINEL = "utterflowanswer"


# A prompt must not depend on the day: where a template asks for the date, it gets the one that Llama 3's names itself.
FIXED_DATE = (
    "{%- macro strftime_now(pattern) -%}{{ pattern"
    "|replace('%d','26')|replace('%b','Jul')|replace('%B','July')|replace('%m','07')|replace('%y','24')"
    "|replace('%Y','2024')|replace('%H','00')|replace('%M','00')|replace('%S','00')|replace('%a','Fri')"
    "|replace('%A','Friday')|replace('%-d','26')|replace('%j','208') }}{%- endmacro -%}"
)


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The conversation in the chat template's form, up to where the answer begins.

    Raises:
        ValueError: there is no user message, the last message is an answer, a part is not text, a text holds a
            special token, or the template refuses the conversation. The kind of fault stands before the first colon.
    """
    if not any(message.role == "user" for message in messages):
        raise ValueError("no user message: there is nothing to answer")
    if messages[-1].role == "assistant":
        raise ValueError("ends with an answer: the last message must not be the assistant's, its answer is `target`")
    turns = [{"role": item.role, "content": text_of(item)} for item in messages]
    check_plain(tokenizer, *(turn["content"] for turn in turns))
    return _render(tokenizer, turns, answering=True)


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of the prompt, special tokens of the template included.

    Raises:
        ValueError: see `render_prompt`.
    """
    return _encode(tokenizer, render_prompt(tokenizer, messages))


def encode_row(tokenizer: Any, row: SftRow) -> tuple[list[int], list[int]]:
    """Token ids and labels of one training row, of equal length.

    Prompt and answer are tokenised apart and joined, so that the model is trained after just the ids that it is asked
    with later. Labels are `IGNORED` on the prompt and the ids themselves on the answer and its end token.

    Raises:
        ValueError: the row has no answer, or a prompt that cannot be made (see `render_prompt`).
    """
    if row.target is None or not row.target.strip():
        raise ValueError("empty target: there is no answer to learn")
    check_plain(tokenizer, row.target)
    prompt = encode_prompt(tokenizer, row.messages)
    answer = [*_encode(tokenizer, row.target), end_token(tokenizer)]
    return prompt + answer, [IGNORED] * len(prompt) + answer


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
    return next((token for token in _encode(tokenizer, after) if token in special), int(tokenizer.eos_token_id))


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


def _render(tokenizer: Any, turns: list[dict[str, str]], *, answering: bool) -> str:
    """The chat template's text; hybrid models are told not to think aloud first."""
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            turns,
            chat_template=FIXED_DATE + tokenizer.get_chat_template(),
            tokenize=False,
            add_generation_prompt=answering,
            enable_thinking=False,
        )
    except TemplateError as error:
        raise ValueError(f"refused by the chat template: {error}") from None
    return str(text)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
