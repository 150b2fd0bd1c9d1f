"""The protocol of OpenAI's chat completions: a turn as a request's body, a response's body as a reply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utterflow.config.servers import Server
from utterflow.llm.ask import Reply, Turn, split_thinking
from utterflow.llm.media import message_keys, sent_part
from utterflow.records import Message

WORDS = "Answer with one JSON value and nothing else. It must follow this JSON schema:\n{schema}"


class BadBodyError(ValueError):
    """A response that is no answer, though the server calls it one."""


@dataclass(frozen=True)
class Body:
    """A request's body, and the seconds of audio in it."""

    fields: dict[str, Any]
    audio_seconds: float


def key_fields(server: Server, turn: Turn, temperature: float) -> dict[str, Any]:
    """The body with each recording and image named by the digest of its file."""
    return {**_fields(server, turn, temperature), "messages": message_keys(_with_words(turn, server))}


def body_of(server: Server, turn: Turn, temperature: float) -> Body:
    """The body to send.

    Raises:
        MediaError: a recording or an image cannot be used.
    """
    seconds = 0.0
    messages = []
    for message in _with_words(turn, server):
        content: Any = message.content
        if not isinstance(content, str):
            sent = [sent_part(part) for part in content]
            seconds += sum(length for _, length in sent)
            content = [part for part, _ in sent]
        messages.append({"role": message.role, "content": content})
    return Body({**_fields(server, turn, temperature), "messages": messages}, seconds)


def _fields(server: Server, turn: Turn, temperature: float) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": server.model, server.max_tokens_field: turn.max_tokens}
    if server.send_temperature:
        fields["temperature"] = temperature
        if temperature > 0:
            fields["seed"] = turn.seed
    if turn.schema is not None and server.structured == "json_schema":
        form = {"name": "answer", "strict": True, "schema": dict(turn.schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": form}
    elif turn.schema is not None and server.structured == "json_object":
        fields["response_format"] = {"type": "json_object"}
    return {**fields, **server.extra}


def _with_words(turn: Turn, server: Server) -> tuple[Message, ...]:
    """The messages; the schema stands in the system message where the server cannot be given it otherwise."""
    if turn.schema is None or server.structured == "json_schema":
        return turn.messages
    return with_schema_in_words(turn.messages, turn.schema)


def with_schema_in_words(messages: tuple[Message, ...], schema: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages with a schema in the system message."""
    words = WORDS.format(schema=json.dumps(schema, ensure_ascii=False))
    first = messages[0]
    if first.role == "system" and isinstance(first.content, str):
        return (Message(role="system", content=f"{first.content}\n\n{words}"), *messages[1:])
    return (Message(role="system", content=words), *messages)


def read_reply(text: str, most_input: int, max_tokens: int) -> Reply:
    """The reply in a response's body.

    Args:
        most_input: taken for the prompt's tokens where the server does not count them; `max_tokens` for the answer's.

    Raises:
        BadBodyError: it is not JSON, is an error, or holds no answer.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise BadBodyError(f"the body is not JSON ({len(text)} characters: {' '.join(text[:80].split())})") from None
    if isinstance(data, dict) and data.get("error"):
        raise BadBodyError(f"an error as an answer: {error_text(data)}")
    try:
        choice = data["choices"][0]
        message = choice["message"]
        content = _text(message.get("content"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BadBodyError("the body holds no `choices` with a message") from None
    finish = _text(choice.get("finish_reason")) or "stop"
    answer, thoughts = split_thinking(content, thinks=False)
    reasoning = message.get("reasoning_content") or message.get("reasoning") or thoughts
    usage = _mapping(data.get("usage"))
    details = _mapping(usage.get("prompt_tokens_details"))
    cached = _count(details.get("cached_tokens")) or _count(usage.get("prompt_cache_hit_tokens")) or 0
    thinking = _count(_mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")) or 0
    counted = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    return Reply(
        content=answer,
        reasoning=None if reasoning is None else _text(reasoning),
        finish=finish,
        input_tokens=most_input if counted[0] is None else counted[0],
        cached_tokens=cached,
        output_tokens=max_tokens if counted[1] is None else counted[1],
        reasoning_tokens=thinking,
        problem=_refusal(message, finish),
    )


def error_text(body: Any, limit: int = 300) -> str:
    """What an error's body says, on one line."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(_text(str(message)).split())[:limit]


def error_code(body: Any) -> str | None:
    """The code in an error's body, such as `insufficient_quota`."""
    error = body.get("error", body) if isinstance(body, dict) else None
    return str(error.get("code") or error.get("type")) if isinstance(error, dict) else None


def _refusal(message: Mapping[str, Any], finish: str) -> str | None:
    if message.get("refusal"):
        return f"refused: {' '.join(_text(message['refusal']).split())[:300]}"
    return "refused: the server's content filter ended the answer" if finish == "content_filter" else None


def _text(content: Any) -> str:
    """An answer's text; some servers give it in parts. Halves of characters, which no file can hold, become `?`."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return "" if content is None else str(content).encode("utf-8", "replace").decode()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
