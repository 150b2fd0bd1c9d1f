"""Back end `api`: a server that speaks the protocol of OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from utterflow.config.servers import Server
from utterflow.errors import UserError
from utterflow.files import digest_of
from utterflow.jobs import log
from utterflow.llm.api_round import Access, Limits, Round, ended_by_signal
from utterflow.llm.ask import BudgetReachedError, Keep, Reply, Turn, Usage
from utterflow.llm.prices import usage_of
from utterflow.llm.wire import key_fields


def server_of(cfg: Mapping[str, Any], placement: Mapping[str, Any]) -> Server:
    """The server's section from its two parts: what results depend on, and where and how fast it is asked.

    Args:
        placement: keys of `Server`; an empty string or None stands for a key that is not set.
    """
    given = {name: value for name, value in placement.items() if value not in ("", None)}
    return Server.model_validate({**cfg, **given})


def open_server(
    server: Server,
    *,
    temperature: float = 0.0,
    budget: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> ServerBackend:
    """A server to ask. Nothing is sent, and no key read, before there is a question to send.

    Args:
        budget: what this job may spend, journalled answers included: `server.budget` over the number of jobs.
        environ: where key and address may stand; the process's environment where left out.
    """
    return ServerBackend(server, temperature, budget, os.environ if environ is None else environ)


class ServerBackend:
    """A server with this job's limits; `close` it at the end."""

    def __init__(self, server: Server, temperature: float, budget: float | None, environ: Mapping[str, str]) -> None:
        self.digest = digest_of({"model": server.model})
        self._server, self._temperature, self._environ = server, temperature, environ
        self._limits = Limits(server, budget)
        self._counted: set[str] = set()
        self._runner: asyncio.Runner | None = None

    def asked(self, turn: Turn) -> Mapping[str, Any]:
        fields = key_fields(self._server, turn, self._temperature)
        return {**fields, "again": turn.again} if turn.again else fields

    def grown(self, max_tokens: int) -> int | None:
        more = min(self._server.max_tokens_limit, round(max_tokens * self._server.grow_on_empty))
        return more if more > max_tokens else None

    def usage(self, reply: Reply) -> Usage:
        return usage_of(reply, self._server.prices)

    def count(self, replies: Mapping[str, Reply]) -> None:
        fresh = replies.keys() - self._counted
        self._limits.ledger.spent += sum(self.usage(replies[key]).cost or 0.0 for key in sorted(fresh))
        self._counted |= fresh

    def answers(self, turns: Mapping[str, Turn], found: Mapping[str, Reply], keep: Keep) -> Mapping[str, str]:
        check_parts(turns.values(), self._server)
        self._counted |= turns.keys()
        missing = {key: turn for key, turn in turns.items() if key not in found}
        if not missing:
            return {}
        access = Access(_address(self._server, self._environ), _key(self._server, self._environ))
        log.info("server %s, model %s, %d requests at a time", access.url, self._server.model, self._server.concurrency)
        asking = Round(self._server, self._temperature, self._limits, access, keep)
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            with ended_by_signal(self._runner.get_loop()):
                self._runner.run(asking.run(missing))
        except BaseException:
            self.close()
            raise
        finally:
            asking.keep_pending()
            asking.log_faults()
        if asking.fatal is not None:
            raise asking.fatal
        if asking.out_of_budget:
            ledger, prices = self._limits.ledger, self._server.prices
            raise BudgetReachedError(ledger.spent, ledger.budget or 0.0, prices.currency if prices else "")
        return asking.problems

    def close(self) -> None:
        """End the event loop; what it is writing is written first."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None


def check_parts(turns: Iterable[Turn], server: Server) -> None:
    """Refuse questions with parts that the server does not take: it would answer as if they were not there.

    Raises:
        UserError: the kind of part, and the question.
    """
    taken = {"text", *server.accepts}
    for turn in turns:
        for message in turn.messages:
            kinds = [] if isinstance(message.content, str) else [part.get("type") for part in message.content]
            if other := [str(kind) for kind in kinds if kind not in taken]:
                raise UserError(
                    f"the server takes no {other[0]}: it would answer without having "
                    f"{'heard' if other[0] == 'audio' else 'seen'} it",
                    where=f"server model {server.model}, question {turn.id}",
                    fix=f"write `accepts: [{other[0]}]` if the model does take it; else ask without it, or ask another "
                    "server or model",
                )


def _address(server: Server, environ: Mapping[str, str]) -> str:
    """The first address that the environment holds, else the configured one.

    Raises:
        UserError: an address of the environment is none, or holds credentials.
    """
    for name in server.base_url_env:
        if not (url := environ.get(name, "").strip()):
            continue
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{name} is no address", fix="write one such as https://api.deepseek.com, or unset it")
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"{name} holds credentials: an address is logged, a key never",
                fix="write the bare address, and the key into the variable that `key_env` names",
            )
        return url
    return server.base_url


def _key(server: Server, environ: Mapping[str, str]) -> str | None:
    """The server's key; None where it wants none.

    Raises:
        UserError: the variable is not set, or holds what no header can.
    """
    if server.key_env is None:
        return None
    key = environ.get(server.key_env, "").strip()
    if not key:
        raise UserError(
            f"the environment variable {server.key_env} is not set: it is to hold the server's key",
            where=f"server model {server.model}",
            fix=f"export {server.key_env}=... in the shell that starts snakemake; on a cluster it goes to the jobs",
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {server.key_env} holds characters that no key has",
            fix="set it anew, without line breaks",
        )
    return key
