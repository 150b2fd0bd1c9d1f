"""What keeps a job's requests within a server's limits, and within its budget. All for one event loop."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_PAUSE = 300.0  # seconds: a server that asks for more is asked again after these
BACKOFF = 1.0  # seconds before the second try, doubled for each further one
MAX_BACKOFF = 60.0
SPREAD = 0.1  # share of a pause, over which requests begin again
BURST_SECONDS = 0.25
TINY = 1e-6  # of a request or token: no reason to sleep


class Bucket:
    """A token bucket: at most `per_minute` requests (or tokens) in any minute.

    It holds what a quarter of a second allows and goes below zero with what it admits (the last admitted one may pass
    the limit of tokens); the next waits until it is back at zero.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._capacity = (per_minute or 0) / 60 * BURST_SECONDS
        self._rate = None if per_minute is None else (per_minute - self._capacity) / 60
        self._level = 0.0
        self._last = time.monotonic()
        self._lock = asyncio.Lock()

    async def take(self, amount: float) -> None:
        """Wait, in the order of asking, until the bucket has something, and take the amount."""
        if self._rate is None:
            return
        async with self._lock:
            while (level := self._refilled(self._rate)) < -TINY:
                await asyncio.sleep(-level / self._rate)
            self._level -= amount

    def correct(self, amount: float) -> None:
        """Take what was more than estimated; negative: give back."""
        self._level -= amount

    def _refilled(self, rate: float) -> float:
        now = time.monotonic()
        self._level = min(self._capacity, self._level + (now - self._last) * rate)
        self._last = now
        return self._level


class Gate:
    """Holds all requests back while the server wants a pause."""

    def __init__(self) -> None:
        self.in_a_row = 0  # pauses since the last answer
        self._begins = self._ends = 0.0

    async def passed(self) -> None:
        while (left := self._ends - time.monotonic()) > 0:
            await asyncio.sleep(left + random.uniform(0, SPREAD) * (self._ends - self._begins))

    def pause(self, seconds: float | None) -> float:
        """Begin or lengthen a pause; its seconds. None: the server did not say how long, so each is twice the last."""
        now = time.monotonic()
        if now >= self._ends:
            self.in_a_row += 1
            self._begins = now
        wanted = backoff(self.in_a_row - 1) if seconds is None else min(seconds, MAX_PAUSE)
        self._ends = max(self._ends, now + wanted)
        return self._ends - now

    def answered(self) -> None:
        self.in_a_row = 0


class Ledger:
    """What was spent, and what the requests in flight may cost at most, against a budget."""

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self.spent = 0.0
        self._reserved = 0.0
        self._in_flight = 0
        self._changed = asyncio.Condition()

    async def reserve(self, worst: float) -> bool:
        """Set aside a request's worst case; waits where that depends on what is in flight. False: it does not fit."""
        async with self._changed:
            while self.budget is not None and self.spent + self._reserved + worst > self.budget:
                if not self._in_flight:
                    return False
                await self._changed.wait()
            self._reserved += worst
            self._in_flight += 1
            return True

    async def settle(self, worst: float, actual: float) -> None:
        """The request is over: what it cost stands for what was set aside."""
        async with self._changed:
            self._in_flight -= 1
            self._reserved = self._reserved - worst if self._in_flight else 0.0
            self.spent += actual
            self._changed.notify_all()


def backoff(number: int) -> float:
    """Seconds before try `number` + 2, with jitter: half to all of the doubled pause."""
    return min(MAX_BACKOFF, BACKOFF * 2.0 ** min(number, 20)) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `retry-after` as seconds or as a date."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (zoned - datetime.now(UTC)).total_seconds())
