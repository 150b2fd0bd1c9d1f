"""Back end `vllm`: answers from a vLLM process in an environment of its own (vLLM's pins clash with ours)."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utterflow.errors import UserError
from utterflow.files import read_json
from utterflow.jobs import log
from utterflow.llm.requests import NO_NUMBERS, Answer, Batch, Decoding, answer_of
from utterflow.llm.structured import with_writing
from utterflow.llm.vllm_worker import serve

LIBRARY = Path(__file__).resolve().parents[2]
LAST_LINES = 25
SEED_LIMIT = 2**62  # vLLM numbers the answers of a request upward from its seed, in 64 bits
SETUP = "make one with `make setup-vllm` (VLLM=gpu for GPUs), or set `tools.vllm_python`"


@dataclass(frozen=True)
class Engine:
    """Where vLLM is and what it loads."""

    python: str
    folder: Path
    adapter: Path | None
    trust_remote_code: bool
    dtype: str
    device: str  # cpu or cuda
    gpus: int
    threads: int
    max_tokens: int  # of the longest prompt and its answer
    seed: int
    structured: bool = False  # some batches will have a JSON schema, even if the first has none


@dataclass(frozen=True)
class Worker:
    """A vLLM process that has its model loaded."""

    process: subprocess.Popen[str]
    last_lines: deque[str]
    listener: threading.Thread
    device: str
    versions: Mapping[str, str]


@contextmanager
def running(engine: Engine, decoding: Decoding) -> Iterator[Worker]:
    """Start vLLM and load the model; the process is gone when the block ends.

    Raises:
        UserError: there is no such environment, or vLLM cannot load the model: with its last lines.
    """
    command = [engine.python, "-P", "-m", serve.__module__]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=worker_environment(os.environ, engine.threads),
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        raise UserError("there is no Python with vLLM", where=engine.python, fix=SETUP) from None
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    listener = threading.Thread(target=_listen, args=(process, last_lines), daemon=True)
    listener.start()
    worker = Worker(process, last_lines, listener, "", {})
    try:
        log.info("vLLM starts: %s", engine.python)
        ready = _exchange(worker, engine_settings(engine, decoding))["ready"]
        log.info("vLLM %s has loaded the model, on %s", ready["versions"]["vllm"], ready["device"])
        yield Worker(process, last_lines, listener, ready["device"], ready["versions"])
    finally:
        _end(process)


def answers(batches: Sequence[Batch], worker: Worker, tokenizer: Any, decoding: Decoding) -> Iterator[list[Answer]]:
    """Answer each batch; vLLM runs as many of its requests together as its memory takes.

    Of `decoding`, tokens and schema may be others than those the worker was started with.

    Raises:
        UserError: vLLM died: with its last lines.
    """
    for batch in batches:
        sent = [{"prompt": list(request.prompt), "seed": request.seed % SEED_LIMIT} for request in batch]
        schema = None if decoding.schema is None else with_writing(decoding.schema)
        message = {"requests": sent, "max_tokens": decoding.max_new_tokens, "schema": schema}
        found = _exchange(worker, message)["answers"]
        yield [
            Answer(problem=NO_NUMBERS)
            if any(output["broken"] for output in outputs)
            else answer_of(tokenizer, [output["tokens"] for output in outputs], decoding.end_tokens)
            for outputs in found
        ]


def engine_settings(engine: Engine, decoding: Decoding) -> dict[str, Any]:
    """The worker's first line. The checkpoint's own decoding defaults are left out (`generation_config: vllm`).

    Raises:
        UserError: the adapter's folder is incomplete.
    """
    adapter = None
    if engine.adapter is not None:
        rank = read_json(engine.adapter / "adapter_config.json").get("r")
        adapter = {"folder": str(engine.adapter.resolve()), "rank": int(rank)}
    return {
        "device": engine.device,
        "engine": {
            "model": str(engine.folder),
            "dtype": engine.dtype,
            "max_model_len": engine.max_tokens,
            "tensor_parallel_size": max(1, engine.gpus),
            "trust_remote_code": engine.trust_remote_code,
            "generation_config": "vllm",
            "seed": engine.seed % 2**32,
        },
        "sampling": {
            "n": decoding.num_outputs,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k,
            "stop_token_ids": list(decoding.end_tokens),
        },
        "adapter": adapter,
        "structured": engine.structured or decoding.schema is not None,
    }


def worker_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """The process's environment: this library and no other, one process, no reports to vLLM's makers."""
    kept = {name: value for name, value in environment.items() if not name.startswith("PYTHON")}
    return {
        "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB, where vLLM runs on CPUs
        **kept,
        "PYTHONPATH": str(LIBRARY),
        "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }


def _exchange(worker: Worker, message: Any) -> Any:
    """Send one line, receive one line."""
    process = worker.process
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line.endswith("\n"):
        status = process.wait()
        worker.listener.join(timeout=5)
        tail = "\n".join(worker.last_lines) or "(it said nothing)"
        missing = any(f"No module named '{name}'" in tail for name in ("vllm", "torch", "transformers"))
        raise UserError(
            f"vLLM ended with status {status}; its last lines:\n{tail}",
            where=str(process.args[0] if isinstance(process.args, list) else process.args),
            fix=SETUP
            if missing
            else "mend what it complains of, or take `backend: transformers`; where memory is too "
            "small: fewer `shards` at once, more `gpus`, or less `max_new_tokens`; finished rows are in the journal",
        )
    return json.loads(line)


def _listen(process: subprocess.Popen[str], last_lines: deque[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        last_lines.append(line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
