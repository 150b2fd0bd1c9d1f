"""A process that asks a server questions and prints what came of them: to be killed.

python tests/asking_process.py URL STATE COUNT SHARD SHARDS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from utterflow.config.servers import Server
from utterflow.journal import Journal
from utterflow.llm import limits
from utterflow.llm.api import open_server
from utterflow.llm.ask import STAGE, Question, ask
from utterflow.records import Message

CONCURRENCY = 6


def question(index: int) -> Question:
    message = Message(role="user", content=f"question {index}")
    return Question(f"row{index}", (message,), {"type": "object", "required": ["n"]}, 50, 1, json.loads)


def rows(url: str, state: Path, count: int, shard: int = 0, shards: int = 1) -> list[list]:
    section = Server.model_validate(
        {"model": "nano", "base_url": url, "concurrency": CONCURRENCY, "retries": 3, "timeout": 5}
    )
    backend = open_server(section)
    questions = [question(index) for index in range(shard, count, shards)]
    with Journal(state, STAGE, backend.digest, "scope", shard, shards) as journal:
        outcomes = ask(questions, backend, journal=journal, retries=2)
    backend.close()
    return [[item.id, item.value, item.problem, item.usage.output_tokens] for item in outcomes]


if __name__ == "__main__":
    limits.BACKOFF = 0.01
    try:
        print(json.dumps(rows(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
    except KeyboardInterrupt:
        sys.exit(130)
