"""Local back ends `transformers` and `vllm` for `ask`: questions as batches of prompts for a model on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.files import canonical_json, file_sha256, seed_of
from utterflow.generate.predict import context_length, end_tokens
from utterflow.jobs import log
from utterflow.llm import transformers_backend, vllm_backend
from utterflow.llm.ask import Keep, Reply, Turn, Usage, split_thinking
from utterflow.llm.media import message_keys
from utterflow.llm.requests import Answer, Batch, Decoding, Request
from utterflow.llm.wire import with_schema_in_words
from utterflow.models.devices import choose_device, choose_dtype
from utterflow.models.folders import model_digest, model_folder_of
from utterflow.models.kinds import kind_of
from utterflow.sft.tokenize import Prompt

GROWTH = 2  # times the tokens, for an answer that they did not suffice for
REPAIRS = 1024  # tokens more than twice the longest, that vLLM is started for: conversations grow by repairs
SCHEMA_NAME = "the schema of the question"  # for messages
CONTEXT = 32_768  # tokens, of a checkpoint that does not say


@dataclass(frozen=True)
class Local:
    """How a model on this machine is asked."""

    backend: Literal["transformers", "vllm"]
    temperature: float  # 0: greedy
    thinking: bool  # let it reason first
    batch_size: int
    device: str  # auto, cpu or cuda
    threads: int = 1
    gpus: int = 0
    vllm_python: str = ""


@dataclass(frozen=True)
class Item:
    """A turn of a round with its prompt."""

    key: str
    turn: Turn
    prompt: Prompt


def open_local(model_cfg: LanguageModel, local: Local) -> LocalBackend:
    """A model to ask. Its weights are not loaded before there is a question that the journal cannot answer.

    Raises:
        UserError: the model's folder is missing or incomplete, or the device is not there.
    """
    return LocalBackend(model_cfg, local)


class LocalBackend:
    """A model on this machine; `close` it at the end."""

    def __init__(self, model_cfg: LanguageModel, local: Local) -> None:
        torch.set_num_threads(local.threads)
        self._cfg, self._local = model_cfg, local
        self._kind = kind_of(model_cfg)
        if local.backend == "vllm" and model_cfg.kind != "text":
            raise UserError("backend vllm answers text only", where=model_cfg.model, fix="take `transformers`")
        self._folder = model_folder_of(model_cfg)
        self._processor = self._kind.load_processor(self._folder, model_cfg)
        self._tokenizer = self._kind.tokenizer(self._processor)
        self._context = context_length(self._folder) or CONTEXT
        self._device = _device(local)
        self._dtype = _dtype(model_cfg, self._device)
        self._template = file_sha256(Path(model_cfg.chat_template)) if model_cfg.chat_template else None
        self._model: Any = None
        self._vllm = ExitStack()
        self._worker: vllm_backend.Worker | None = None
        self._worker_tokens = 0
        self.digest = model_digest(self._folder)

    def asked(self, turn: Turn) -> Mapping[str, Any]:
        return {
            "messages": message_keys(turn.messages),
            "schema": turn.schema,
            "max_tokens": turn.max_tokens,
            "temperature": self._local.temperature,
            "seed": turn.seed if self._local.temperature > 0 else None,
            "again": turn.again,
            "thinking": self._local.thinking,
            "backend": self._local.backend,
            "dtype": str(self._dtype),
            "template": self._template,
        }

    def grown(self, max_tokens: int) -> int | None:
        more = min(GROWTH * max_tokens, self._context // 2)
        return more if more > max_tokens else None

    def usage(self, reply: Reply) -> Usage:
        return Usage(reply.input_tokens, reply.cached_tokens, reply.output_tokens, reply.reasoning_tokens)

    def count(self, replies: Mapping[str, Reply]) -> None:
        """Local answers cost nothing."""

    def answers(self, turns: Mapping[str, Turn], found: Mapping[str, Reply], keep: Keep) -> Mapping[str, str]:
        items, problems = self._items(turns)
        longest = max((len(item.prompt.ids) + item.turn.max_tokens for item in items), default=0)
        for decoding, batches in self._groups(items):
            missing = [[item for item in batch if item.key not in found] for batch in batches]
            todo = [batch for batch in missing if batch]
            asked = [[self._request(item) for item in batch] for batch in todo]
            for batch, answers in zip(todo, self._answered(asked, decoding, longest), strict=True):
                keep({item.key: self._reply(item, answer) for item, answer in zip(batch, answers, strict=True)})
        return problems

    def close(self) -> None:
        """Free the model; a vLLM process ends."""
        self._model = self._worker = None
        self._vllm.close()

    def _items(self, turns: Mapping[str, Turn]) -> tuple[list[Item], dict[str, str]]:
        """The turns with their prompts, and why others have none."""
        items, problems = [], {}
        for key, turn in turns.items():
            messages = turn.messages
            if turn.schema is not None and self._local.thinking:
                messages = with_schema_in_words(messages, turn.schema)
            try:
                prompt = self._kind.encode_prompt(self._processor, messages, thinking=self._local.thinking)
            except ValueError as error:
                problems[key] = str(error)
                continue
            if len(prompt.ids) + turn.max_tokens > self._context:
                problems[key] = (
                    f"too long: {len(prompt.ids)} tokens of the prompt and {turn.max_tokens} of the answer are more "
                    f"than the model's {self._context}"
                )
                continue
            items.append(Item(key, turn, prompt))
        return items, problems

    def _groups(self, items: Sequence[Item]) -> Iterator[tuple[Decoding, list[list[Item]]]]:
        """Batches of what is decoded alike, longest prompts first: formed from all items, whatever is already done."""
        ordered = sorted(items, key=lambda item: (*_alike(item), -len(item.prompt.ids), item.turn.id, item.key))
        size = self._local.batch_size
        for _, same in groupby(ordered, key=_alike):
            group = list(same)
            batches = [group[start : start + size] for start in range(0, len(group), size)]
            yield self._decoding(group[0].turn), batches

    def _decoding(self, turn: Turn) -> Decoding:
        return Decoding(
            max_new_tokens=turn.max_tokens,
            temperature=self._local.temperature,
            top_p=1.0,
            top_k=0,
            num_outputs=1,
            end_tokens=end_tokens(self._folder, self._tokenizer),
            schema=None if self._local.thinking else turn.schema,
        )

    def _request(self, item: Item) -> Request:
        seed = seed_of(item.turn.seed, item.turn.again) if item.turn.again else item.turn.seed
        return Request(item.turn.id, item.prompt.ids, seed, item.prompt.audio)

    def _answered(self, batches: Sequence[Batch], decoding: Decoding, longest: int) -> Iterator[list[Answer]]:
        if not batches:
            return iter(())
        if self._local.backend == "vllm":
            worker = self._running(longest, decoding)
            return vllm_backend.answers(batches, worker, self._tokenizer, decoding)
        if self._model is None:
            log.info("loading %s on %s, %s", self._folder, self._device, self._dtype)
            self._model = transformers_backend.load_for_answers(self._folder, None, self._cfg, self._device)
        media = partial(self._kind.media_inputs, self._processor)
        return transformers_backend.answers(batches, self._model, self._tokenizer, decoding, SCHEMA_NAME, media)

    def _running(self, tokens: int, decoding: Decoding) -> vllm_backend.Worker:
        """The vLLM process; started anew where prompts and answers have become too long for it."""
        if self._worker is None or tokens > self._worker_tokens:
            self._vllm.close()
            self._worker_tokens = min(self._context, 2 * tokens + REPAIRS)
            engine = vllm_backend.Engine(
                python=self._local.vllm_python,
                folder=self._folder,
                adapter=None,
                trust_remote_code=self._cfg.trust_remote_code,
                dtype=str(self._dtype).removeprefix("torch."),
                device=self._device.type,
                gpus=self._local.gpus,
                threads=self._local.threads,
                max_tokens=self._worker_tokens,
                seed=0,
                structured=not self._local.thinking,
            )
            self._worker = self._vllm.enter_context(vllm_backend.running(engine, replace(decoding, schema=None)))
        return self._worker

    def _reply(self, item: Item, answer: Answer) -> Reply:
        if answer.problem:
            return Reply("", None, "error", len(item.prompt.ids), 0, 0, 0, answer.problem)
        content, reasoning = split_thinking(answer.texts[0], thinks=self._local.thinking)
        thoughts = self._tokenizer(reasoning, add_special_tokens=False)["input_ids"] if reasoning else []
        return Reply(
            content=content,
            reasoning=reasoning,
            finish=answer.finish[0],
            input_tokens=len(item.prompt.ids),
            cached_tokens=0,
            output_tokens=answer.output_tokens[0],
            reasoning_tokens=min(len(thoughts), answer.output_tokens[0]),
        )


def _alike(item: Item) -> tuple[int, str]:
    """What one decoding has: the most tokens, and the schema."""
    return item.turn.max_tokens, canonical_json(item.turn.schema)


def _device(local: Local) -> torch.device:
    """vLLM sees its own devices, so that there the job's GPUs say what `auto` means."""
    if local.backend == "vllm" and local.device != "cpu" and (local.device == "cuda" or local.gpus):
        return torch.device("cuda")
    return choose_device(local.device)


def _dtype(model_cfg: LanguageModel, device: torch.device) -> torch.dtype:
    """As elsewhere; where this process sees no GPU (vLLM's does), `auto` is what today's GPUs can."""
    if model_cfg.dtype == "auto" and device.type == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16
    return choose_dtype(model_cfg.dtype, device)
