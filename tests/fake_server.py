"""A server that speaks the protocol of OpenAI's chat completions: made-up answers, and faults on order.

Not a model: `answer` and `fault` say what it does with a request. What it answered is counted per request body.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

Body = Mapping[str, Any]
# Answer: the text, or fields of the reply's choice and usage (content, reasoning_content, finish_reason, usage, ...).
Answer = Callable[[Body], str | dict[str, Any]]
# Fault of a request, by its body and how often it was asked before: `status` with `headers` and `body`, or `what`:
# drop (no response), cut (half of the body), garbage (no JSON), hang (no response for so many `seconds`).
FaultPlan = Callable[[Body, int], dict[str, Any] | None]


def last_text(body: Body) -> str:
    """The text of a request's last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def question_key(body: Body) -> str:
    return json.dumps(body, sort_keys=True)


class FakeServer:
    """Runs in a thread between `with` and its end; `url` is its address."""

    def __init__(
        self, answer: Answer | None = None, fault: FaultPlan | None = None, latency: float = 0.0, key: str | None = None
    ) -> None:
        self.answer: Answer = answer or (lambda body: f"re: {last_text(body)}")
        self.fault: FaultPlan = fault or (lambda body, before: None)
        self.latency, self.key = latency, key
        self.asked: Counter[str] = Counter()  # requests that arrived whole, by body
        self.answered: Counter[str] = Counter()  # answers that were written whole, by body
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []  # of requests, seconds on the loop's clock
        self.in_flight = self.most_in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> FakeServer:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one request, write one response; False: the connection is to end."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.split(": ", 1) for line in head[1:] if ": " in line)
        headers = {name.lower(): value for name, value in fields}
        path = head[0].split(" ")[1]
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        key = question_key(body)
        before = self.asked[key]
        self.asked[key] += 1
        self.bodies.append(body)
        self.headers.append(headers)
        self.times.append(self._loop.time())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            return await self._respond(writer, path, headers, body, before)
        finally:
            self.in_flight -= 1

    async def _respond(
        self, writer: asyncio.StreamWriter, path: str, headers: Mapping[str, str], body: Body, before: int
    ) -> bool:
        given = headers.get("authorization", "")
        fault = self.fault(body, before)
        if path != "/v1/chat/completions":
            fault = {"status": 404, "body": {"error": {"message": f"no {path}"}}}
        elif self.key is not None and given != f"Bearer {self.key}":
            fault = {"status": 401, "body": {"error": {"message": f"Incorrect API key provided: {given}"}}}
        if fault is None:
            data = json.dumps(completion(self.answer(body), body)).encode()
            writer.write(_head(200, {}, len(data)) + data)
            await writer.drain()
            self.answered[question_key(body)] += 1
            return True
        if "status" in fault:
            made = fault.get("body", {"error": {"message": "injected"}})
            data = json.dumps(made).encode()
            writer.write(_head(fault["status"], fault.get("headers", {}), len(data)) + data)
            await writer.drain()
            return True
        if fault["what"] == "hang":
            await asyncio.sleep(fault["seconds"])
        elif fault["what"] == "garbage":
            data = b"<html>the gateway is busy</html>"
            writer.write(_head(200, {}, len(data)) + data)
            await writer.drain()
            return True
        elif fault["what"] == "cut":
            data = json.dumps(completion(self.answer(body), body)).encode()
            length = len(data) // 2 if fault.get("whole_length") else len(data)
            writer.write(_head(200, {}, length) + data[: len(data) // 2])
            await writer.drain()
            return bool(fault.get("whole_length"))
        return False


def completion(answer: str | dict[str, Any], body: Body) -> dict[str, Any]:
    """The response's body; tokens are counted as words."""
    fields = {"content": answer} if isinstance(answer, str) else dict(answer)
    finish = fields.pop("finish_reason", "stop")
    words = sum(len(json.dumps(message["content"]).split()) for message in body["messages"])
    usage = {
        "prompt_tokens": words,
        "completion_tokens": len(str(fields.get("content") or "").split()),
        **fields.pop("usage", {}),
    }
    message = {"role": "assistant", "content": None, **fields}
    return {
        "id": "fake",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }


def _head(status: int, headers: Mapping[str, str], length: int) -> bytes:
    fields = {"content-type": "application/json", "content-length": str(length), **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()
