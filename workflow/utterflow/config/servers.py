"""Section `servers`: OpenAI-compatible servers that answer questions."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from utterflow.config.base import Section, key, required

ASKS = "generate_rationale"
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
SECRET = re.compile(r"api_?key|authorization|secret|password", re.IGNORECASE)


class Prices(Section):
    """What a server charges, per million tokens."""

    input: float = required("tokens of prompts", ASKS, ge=0, examples=[0.28])
    output: float = required("tokens of answers, those of the reasoning included", ASKS, ge=0, examples=[0.42])
    cached_input: float | None = key(None, "tokens of prompts that the server had cached; null: as `input`", ASKS, ge=0)
    currency: str = key("USD", "of the prices, and of `budget`", ASKS, min_length=1)


class Server(Section):
    """A server that speaks the protocol of OpenAI's chat completions."""

    model: str = required("name of the model, as the server has it", ASKS, min_length=1, examples=["deepseek-reasoner"])
    base_url: str = required("address of its API", "none", examples=["https://api.deepseek.com"])
    base_url_env: tuple[str, ...] = key(
        (), "environment variables that may hold another address; the first that is set wins", "none"
    )
    key_env: str | None = key(
        None, "environment variable with the API key; null: the server wants none", "none", pattern=VARIABLE
    )
    structured: Literal["json_schema", "json_object", "none"] = key(
        "json_object", "what the server can: answers by a JSON schema, any JSON object, or only text", ASKS
    )
    accepts: tuple[Literal["audio", "image"], ...] = key((), "what its messages may hold beside text", ASKS)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = key(
        "max_tokens", "name of the request's field for the longest answer", ASKS
    )
    send_temperature: bool = key(
        True, "false for models that refuse a temperature, such as OpenAI's that reason: they sample as they do", ASKS
    )
    extra: dict[str, Any] = key({}, "fields added to each request, as the server's manual names them", ASKS)
    grow_on_empty: float = key(
        2.0, "an answer that its reasoning left no tokens for is asked again with so many times the tokens", ASKS, ge=1
    )
    max_tokens_limit: int = key(32_768, "to at most this many tokens", ASKS, ge=16)
    prices: Prices | None = Field(default=None, description="for the cost of a run, and for `budget`")
    budget: float | None = key(
        None,
        "what all jobs of one stage may cost together; asking stops before it is passed; needs `prices`",
        "none",
        gt=0,
    )
    concurrency: int = key(16, "requests at a time, per job", "none", ge=1, le=10_000)
    requests_per_minute: int | None = key(None, "at most, per job", "none", ge=1)
    tokens_per_minute: int | None = key(None, "at most, of prompts and answers, per job", "none", ge=1)
    timeout: float = key(120.0, "seconds without an answer until a request is given up", "none", gt=0)
    retries: int = key(2, "further tries after errors of server or network, with growing pauses", "none", ge=0)

    @field_validator("base_url")
    @classmethod
    def _no_secrets(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("write an address such as https://api.deepseek.com")
        if parts.username or parts.password or parts.query:
            raise ValueError("a key never stands in an address: put it into an environment variable, see `key_env`")
        return url

    @field_validator("base_url_env")
    @classmethod
    def _variables(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in names if not re.fullmatch(VARIABLE, name)]:
            raise ValueError(f"{wrong[0]!r} is no name of an environment variable")
        return names

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        own = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "response_format", "stream"}
        if taken := sorted(own & set(extra)):
            raise ValueError(f"`{taken[0]}` is set by the workflow: leave it out")
        if secret := next((name for name in extra if SECRET.search(name)), None):
            raise ValueError(f"`{secret}`: a key never stands in a configuration: see `key_env`")
        return extra

    @model_validator(mode="after")
    def _budget_needs_prices(self) -> Server:
        if self.budget is not None and self.prices is None:
            raise ValueError("`budget` needs `prices`: without them the cost is not known")
        return self
