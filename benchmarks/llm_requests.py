"""How many requests per second `ask` makes of a server, beside OpenAI's own client with a semaphore.

The server is the tests' fake one, in a process of its own: it waits so many milliseconds and answers. Ways are run in
turn, several rounds; medians over rounds. At best there are concurrency / latency answers per second. `ask` checks each
answer, counts its tokens, and has it in the journal (synced to disk) before it asks the next.

    python benchmarks/llm_requests.py --latency 200 --concurrency 16 64 --seconds 8
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "workflow"), str(ROOT / "tests")]

from fake_server import FakeServer  # noqa: E402
from openai import AsyncOpenAI  # noqa: E402

from utterflow.config.servers import Server  # noqa: E402
from utterflow.journal import Journal  # noqa: E402
from utterflow.llm.api import open_server  # noqa: E402
from utterflow.llm.ask import STAGE, Question, ask  # noqa: E402
from utterflow.records import Message  # noqa: E402

SYSTEM = "You are given hypotheses of a speech recogniser. " * 40  # 2,000 characters, as prompts of rationales have
ANSWER = '{"final_prediction": "alarm_set", "intent_rationalization": "' + "the words fit the intent " * 20 + '"}'


@dataclass(frozen=True)
class Measured:
    """One run of one way."""

    wall: float
    cpu: float
    count: int

    @property
    def rate(self) -> float:
        return self.count / self.wall


def serve(latency: float, link: Connection) -> None:
    """The server's process: runs until told to end."""
    with FakeServer(lambda body: ANSWER, latency=latency) as fake:
        link.send(fake.url)
        link.recv()


def with_ask(url: str, concurrency: int, count: int) -> Measured:
    section = Server.model_validate({"model": "fake", "base_url": url, "concurrency": concurrency})
    questions = [
        Question(
            str(index),
            (Message(role="system", content=SYSTEM), Message(role="user", content=f"Row {index}")),
            None,
            512,
            1,
            str,
        )
        for index in range(count)
    ]
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_STATE")) as state:
        backend = open_server(section)
        with Journal(Path(state), STAGE, backend.digest, "benchmark") as journal:
            wall, cpu = time.perf_counter(), time.process_time()
            outcomes = ask(questions, backend, journal=journal, retries=0)
            done = Measured(time.perf_counter() - wall, time.process_time() - cpu, count)
        backend.close()
    assert all(outcome.value == ANSWER for outcome in outcomes)
    return done


def with_bare_client(url: str, concurrency: int, count: int) -> Measured:
    async def run() -> None:
        slots = asyncio.Semaphore(concurrency)

        async def one(index: int) -> None:
            async with slots:
                found = await client.chat.completions.create(
                    model="fake",
                    max_tokens=512,
                    temperature=0,
                    messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"Row {index}"}],
                )
            assert found.choices[0].message.content == ANSWER

        async with AsyncOpenAI(api_key="unused", base_url=url, max_retries=0) as client:
            await asyncio.gather(*(one(index) for index in range(count)))

    wall, cpu = time.perf_counter(), time.process_time()
    asyncio.run(run())
    return Measured(time.perf_counter() - wall, time.process_time() - cpu, count)


WAYS: dict[str, Callable[[str, int, int], Measured]] = {"ask": with_ask, "bare AsyncOpenAI": with_bare_client}


def fsync_ms() -> float:
    """Median milliseconds of writing and syncing 2 kB, where the journal stands."""
    with tempfile.NamedTemporaryFile(dir=os.environ.get("BENCHMARK_STATE")) as handle:
        times = []
        for _ in range(30):
            start = time.perf_counter()
            handle.write(b"x" * 2000)
            handle.flush()
            os.fsync(handle.fileno())
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def compare(url: str, latency: float, concurrency: int, count: int, rounds: int) -> None:
    """Print a line per way."""
    runs: dict[str, list[Measured]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            runs[name].append(way(url, concurrency, count))
    best = concurrency / latency
    for name, measured in runs.items():
        rate = statistics.median(run.rate for run in measured)
        overhead = 1000 * statistics.median(run.wall * concurrency / count - latency for run in measured)
        cpu = 1000 * statistics.median(run.cpu / run.count for run in measured)
        print(
            f"{concurrency:11d}  {name:16s}  {rate:9.1f}  {best:9.1f}  {100 * rate / best:6.1f} %  "
            f"{overhead:17.1f}  {cpu:14.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=200, help="of the server, milliseconds")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=8, help="that a run takes at best")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    latency = given.latency / 1000
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(latency, there), daemon=True)
    server.start()
    url = here.recv()
    with_ask(url, 4, 8)
    with_bare_client(url, 4, 8)
    print(
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, fsync {fsync_ms():.1f} ms, latency {given.latency:g} ms"
    )
    print("concurrency  way               requests/s    at best  reached   overhead, ms/request  CPU, ms/request")
    for concurrency in given.concurrency:
        compare(url, latency, concurrency, round(given.seconds * concurrency / latency), given.rounds)
    here.send("end")
    server.join(5)


if __name__ == "__main__":
    main()
