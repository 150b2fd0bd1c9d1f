"""One round of requests to a server, concurrently, within its limits, through its faults."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient, Omit

from utterflow.config.servers import Server
from utterflow.errors import UserError
from utterflow.jobs import log
from utterflow.llm.ask import Keep, Reply, Turn
from utterflow.llm.limits import Bucket, Gate, Ledger, backoff, retry_after
from utterflow.llm.media import MediaError
from utterflow.llm.prices import likely_input_tokens, most_input_tokens, usage_of, worst_cost
from utterflow.llm.wire import BadBodyError, Body, body_of, error_code, error_text, read_reply

PATH = "/chat/completions"
HOPELESS = {401, 402, 403, 404, 405, 407}  # for every question, however often it is asked
AGAIN = {408, 409}
NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
MAX_PAUSES = 12  # in a row, without an answer between them
MAX_WAITS = 20  # that one question sits out
OUTAGE = 20  # questions in a row without an answer; twice the concurrency if that is more
CONNECTIONS = 16  # per client: its pool looks at each of them for each request
SECRET = 12  # characters that a key has at least
ADVICE = {
    401: "the server does not know the key: set the right one",
    402: "the account has no money left: top it up",
    403: "the key may not do this: see its rights, and the terms of the model",
    404: "correct `model`, or `base_url` (it often ends with /v1)",
}
UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Access:
    """Where a server is, and its key: not a dataclass, so that no printed form holds the key."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url, self._key = url, key

    def headers(self) -> dict[str, Any]:
        """For OpenAI's client; what it would take from variables of its own is left out."""
        authorization = Omit() if self._key is None else f"Bearer {self._key}"
        return {"Authorization": authorization, "OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}

    def scrub(self, text: str) -> str:
        """The text without the key. Words such as `EMPTY`, for servers that want any key, are no secret."""
        return text.replace(self._key, "***") if self._key and len(self._key) >= SECRET else text


class Limits:
    """What holds for all rounds of a job."""

    def __init__(self, server: Server, budget: float | None) -> None:
        self.requests = Bucket(server.requests_per_minute)
        self.tokens = Bucket(server.tokens_per_minute)
        self.gate = Gate()
        self.ledger = Ledger(budget)
        self.output_tokens = 0
        self.replies = 0

    def likely_output(self, max_tokens: int) -> int:
        """As many tokens as answers have had on average; before there is any, the most."""
        return min(max_tokens, self.output_tokens // self.replies) if self.replies else max_tokens


@dataclass(frozen=True)
class Fault:
    """Why a request has no answer, and what follows."""

    then: Literal["end", "wait", "retry", "drop"]  # the job, all for a while, this question again, this question
    text: str
    seconds: float | None = None  # to wait
    status: int | None = None
    maybe_billed: bool = False  # the server may have worked on it


@dataclass
class Round:
    """Asks the questions of one round; `problems`, `fatal` and `out_of_budget` say how it ended."""

    server: Server
    temperature: float
    limits: Limits
    access: Access
    keep: Keep
    problems: dict[str, str] = field(default_factory=dict)
    fatal: UserError | None = None
    out_of_budget: bool = False

    def __post_init__(self) -> None:
        self._pending: dict[str, Reply] = {}
        self._committing = asyncio.Lock()
        self._faults: Counter[str] = Counter()
        self._unanswered = 0  # questions in a row

    @property
    def _ends(self) -> bool:
        return self.fatal is not None or self.out_of_budget

    async def run(self, turns: Mapping[str, Turn]) -> None:
        waiting = iter(turns.items())
        try:
            async with contextlib.AsyncExitStack() as clients, asyncio.TaskGroup() as workers:
                for number in range(min(self.server.concurrency, len(turns))):
                    if number % CONNECTIONS == 0:
                        client = await clients.enter_async_context(_client(self.server, self.access))
                    workers.create_task(self._work(waiting, client))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def keep_pending(self) -> None:
        """Keep what arrived and is not kept yet: after an interruption, when nothing runs any more."""
        pending, self._pending = self._pending, {}
        if pending:
            self.keep(pending)

    def log_faults(self) -> None:
        for text, count in self._faults.most_common(10):
            log.warning("%d times: %s", count, text)

    async def _work(self, waiting: Iterator[tuple[str, Turn]], client: AsyncOpenAI) -> None:
        for key, turn in waiting:
            try:
                body = await self._body(turn)
            except MediaError as error:
                self.problems[key] = str(error)
                continue
            reply = await self._ask(turn, body, client)
            if isinstance(reply, Reply):
                await self._commit(key, reply)
            elif reply is not None:
                self.problems[key] = reply
            if self._ends:
                return

    async def _body(self, turn: Turn) -> Body:
        if all(isinstance(message.content, str) for message in turn.messages):
            return body_of(self.server, turn, self.temperature)
        return await asyncio.to_thread(body_of, self.server, turn, self.temperature)

    async def _commit(self, key: str, reply: Reply) -> None:
        """Keep a reply, together with those that came while the last ones were being written."""
        self._pending[key] = reply
        async with self._committing:
            if key in self._pending:
                batch, self._pending = self._pending, {}
                await asyncio.to_thread(self.keep, batch)

    async def _ask(self, turn: Turn, body: Body, client: AsyncOpenAI) -> Reply | str | None:
        """The reply, or why there is none; None where the round ends before it."""
        tries = waits = 0
        while not self._ends:
            found = await self._attempt(turn, body, client)
            if found is None or isinstance(found, Reply):
                return found
            self._note(found)
            if found.then == "wait" and waits < MAX_WAITS:
                waits += 1
                self._pause(found)
            elif found.then == "retry" and tries < self.server.retries:
                tries += 1
                await asyncio.sleep(backoff(tries - 1))
            elif found.then == "end":
                self.fatal = self.fatal or self._hopeless(found)
            else:
                self._count_unanswered(found)
                return f"no answer: {found.text}, asked {tries + waits + 1} times"
        return None

    async def _attempt(self, turn: Turn, body: Body, client: AsyncOpenAI) -> Reply | Fault | None:
        """One request, when the limits and the budget let it; None where the round ends before it."""
        limits, prices = self.limits, self.server.prices
        most = most_input_tokens(turn.messages, turn.schema, body.audio_seconds)
        estimate = likely_input_tokens(turn.messages, turn.schema, body.audio_seconds)
        estimate += limits.likely_output(turn.max_tokens)
        worst = worst_cost(most, turn.max_tokens, prices) if prices else 0.0
        await limits.tokens.take(estimate)
        await limits.requests.take(1)
        await limits.gate.passed()
        if self._ends:
            return None
        if not await limits.ledger.reserve(worst):
            self.out_of_budget = True
            return None
        cost = worst
        try:
            found = await self._request(body, turn.max_tokens, most, client)
            if isinstance(found, Reply):
                cost = usage_of(found, prices).cost or 0.0
                limits.gate.answered()
                limits.replies += 1
                limits.output_tokens += found.output_tokens
                limits.tokens.correct(found.input_tokens + found.output_tokens - estimate)
                self._unanswered = 0
            elif not found.maybe_billed:
                cost = 0.0
                limits.tokens.correct(-estimate)
        finally:
            await limits.ledger.settle(worst, cost)
        return found

    async def _request(self, body: Body, max_tokens: int, most_input: int, client: AsyncOpenAI) -> Reply | Fault:
        try:
            async with asyncio.timeout(self.server.timeout):
                response = await client.post(
                    PATH, body=body.fields, cast_to=httpx2.Response, options={"headers": self.access.headers()}
                )
            return read_reply(self.access.scrub(response.text), most_input, max_tokens)
        except (TimeoutError, APITimeoutError):
            return Fault("retry", f"timeout: nothing within {self.server.timeout:g} s", maybe_billed=True)
        except APIStatusError as error:
            return self._status_fault(error)
        except APIConnectionError as error:
            cause = error.__cause__ or error
            text = self.access.scrub(f"connection: {type(cause).__name__} {str(cause)[:200]}".strip())
            return Fault("retry", text, maybe_billed=not isinstance(cause, UNSENT))
        except BadBodyError as error:
            return Fault("retry", f"bad response: {error}", maybe_billed=True)

    def _status_fault(self, error: APIStatusError) -> Fault:
        status = error.status_code
        text = self.access.scrub(f"HTTP {status}: {error_text(error.body)}")
        if status in HOPELESS or (status == 429 and error_code(error.body) in NO_QUOTA):
            return Fault("end", text, status=status)
        asked_to_wait = retry_after(error.response.headers)
        if status == 429 or (asked_to_wait is not None and (status in AGAIN or status >= 500)):
            return Fault("wait", text, seconds=asked_to_wait, status=status)
        return Fault("retry" if status in AGAIN or status >= 500 else "drop", text, status=status)

    def _note(self, fault: Fault) -> None:
        """Log the first fault of each kind; all are counted."""
        kind = fault.text[:60]
        self._faults[kind] += 1
        if self._faults[kind] == 1 and len(self._faults) <= 10:
            log.warning("%s", fault.text)

    def _pause(self, fault: Fault) -> None:
        gate = self.limits.gate
        before = gate.in_a_row
        seconds = gate.pause(fault.seconds)
        if gate.in_a_row > before:
            log.warning("the server wants a pause: all requests wait %.1f s", seconds)
        if gate.in_a_row > MAX_PAUSES:
            self.fatal = self.fatal or UserError(
                f"the server asked for {MAX_PAUSES} pauses in a row without giving an answer; the last reason: "
                f"{fault.text}",
                where=self.access.url,
                fix="start again later (answers so far are in the journal); lower `concurrency`, `requests_per_minute` "
                "or `tokens_per_minute` to what the account allows",
            )

    def _count_unanswered(self, fault: Fault) -> None:
        self._unanswered += 1
        if self._unanswered >= max(OUTAGE, 2 * self.server.concurrency):
            self.fatal = self.fatal or UserError(
                f"{self._unanswered} questions in a row got no answer; the last reason: {fault.text}",
                where=self.access.url,
                fix="see whether the server is up and takes such requests (`structured`, `extra`, `max_tokens_field`), "
                "and start again: answers so far are in the journal",
            )

    def _hopeless(self, fault: Fault) -> UserError:
        return UserError(
            f"the server refuses: {fault.text}",
            where=f"{self.access.url}, model {self.server.model}",
            fix=ADVICE.get(fault.status or 0, "mend what it complains of")
            + (f" in {self.server.key_env}" if fault.status == 401 and self.server.key_env else "")
            + "; answers so far are in the journal",
        )


@contextlib.contextmanager
def ended_by_signal(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """SIGTERM ends what runs on the loop as Ctrl-C does: with KeyboardInterrupt, after what arrived is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def end() -> None:
        nonlocal told
        told = True
        for task in asyncio.all_tasks(loop):
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield
    except asyncio.CancelledError:
        if told:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _client(server: Server, access: Access) -> AsyncOpenAI:
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    return AsyncOpenAI(
        api_key="unused",
        base_url=access.url,
        timeout=server.timeout,
        max_retries=0,
        http_client=DefaultAsyncHttpxClient(limits=limits, timeout=server.timeout),
    )
