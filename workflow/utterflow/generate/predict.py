"""Rule `generate`: one shard of a dataset's rows -> a model's answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from utterflow.config.base import placement_keys
from utterflow.config.language_models import LanguageModel
from utterflow.config.prediction import Prediction
from utterflow.errors import UserError
from utterflow.files import digest_of, file_sha256, parse_object, read_json, seed_of, text_lines, write_jsonl
from utterflow.gather import Shard
from utterflow.generate.inputs import Sources
from utterflow.jobs import Progress, check_rejected, log
from utterflow.journal import Journal
from utterflow.llm import transformers_backend, vllm_backend
from utterflow.llm.requests import Answer, Batch, Decoding, Request
from utterflow.llm.structured import json_value, read_schema
from utterflow.models.devices import choose_device, choose_dtype, device_name
from utterflow.models.folders import model_digest
from utterflow.models.kinds import TEXT, Kind, kind_of
from utterflow.provenance import Stopwatch, input_digest, write_meta
from utterflow.records import PredictionRow, RejectedRow, SftRow, parse_record
from utterflow.sft.tokenize import AudioPart, Prompt, end_token

STAGE = "generate"
PLACED = placement_keys(Prediction) | {"shards"}
# Keys that place or size the work or name its inputs, and those whose effect the journal's digest takes in another
# form.
NOT_IN_RESULT = {
    *PLACED,
    *("dataset", "split", "model", "training", "merged", "batch_size", "max_rejected", "device", "json_schema"),
}
NOT_IN_MODEL = {"model", "revision", "chat_template", "dtype"}


@dataclass(frozen=True)
class Machine:
    """What the job was given."""

    threads: int
    gpus: int
    vllm_python: str


@dataclass(frozen=True)
class Item:
    """A row of the dataset, where it stands, and its prompt or why there is none."""

    row: SftRow
    where: str
    prompt: tuple[int, ...]
    problem: str | None
    audio: tuple[AudioPart, ...] = ()
    recordings: tuple[str, ...] = ()  # SHA-256 of their files

    @property
    def key(self) -> str:
        """What the answers depend on, beside model, config and code."""
        heard = {"recordings": self.recordings} if self.recordings else {}
        return digest_of({"id": self.row.id, "messages": [message.row() for message in self.row.messages], **heard})


@dataclass(frozen=True)
class Plan:
    """What is asked of which model, and where."""

    cfg: Prediction
    model_cfg: LanguageModel
    sources: Sources
    decoding: Decoding
    kind: Kind
    processor: Any
    device: torch.device
    dtype: torch.dtype
    machine: Machine

    @property
    def tokenizer(self) -> Any:
        return self.kind.tokenizer(self.processor)


@dataclass(frozen=True)
class Run:
    """How the missing rows were computed."""

    device: str
    versions: Mapping[str, str]
    seconds: float
    output_tokens: int


def read_items(sft: Path, shard: Shard, processor: Any, longest: int | None, kind: Kind = TEXT) -> list[Item]:
    """The shard's rows with their prompts, in the dataset's order; other shards' lines are not parsed.

    Args:
        processor: of the model, which is of that kind: of text, its tokenizer.
        longest: tokens that a prompt may have; None: any number.

    Raises:
        UserError: a row does not fit its record.
    """
    items = []
    for number, line in islice(text_lines(sft), shard.index, None, shard.count):
        where = f"{sft}, line {number}"
        row = parse_record(SftRow, parse_object(line, sft, number), where)
        prompt, problem = Prompt(()), None
        try:
            prompt = kind.encode_prompt(processor, row.messages)
            recordings = tuple(file_sha256(Path(part.path)) for part in prompt.audio)
        except ValueError as error:
            problem, recordings = str(error), ()
        size = len(prompt.ids)
        if not size and problem is None:
            problem = "empty prompt: the chat template makes nothing of these messages"
        if longest is not None and size > longest:
            problem = f"too long: {size} tokens in the prompt, more than {longest} leave no room for an answer"
        items.append(Item(row, where, prompt.ids, problem, prompt.audio, recordings))
    return items


def make_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Longest prompts first, `size` together: formed from all rows of the shard, whatever is already done."""
    ordered = sorted(items, key=lambda item: (-len(item.prompt), item.row.id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def context_length(folder: Path) -> int | None:
    """Positions that the model has, prompt and answer together; None where its config does not say."""
    config = read_json(folder / "config.json")
    thinker = config.get("thinker_config") or {}
    for part in (config, config.get("text_config") or {}, thinker.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
            if isinstance(part.get(name), int):
                return int(part[name])
    return None


def longest_prompt(folder: Path, max_new_tokens: int) -> int | None:
    """Tokens that a prompt may have beside its answer; None: any number.

    Raises:
        UserError: the answer alone fills the model's context.
    """
    context = context_length(folder)
    if context is None:
        return None
    if context <= max_new_tokens:
        raise UserError(
            f"max_new_tokens {max_new_tokens} leaves no room for a prompt: the model's context is {context} tokens",
            where=str(folder),
            fix="lower `max_new_tokens`",
        )
    return context - max_new_tokens


def end_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: the chat template's first, then the tokenizer's, then those of the checkpoint."""
    listed: Any = None
    if (folder / "generation_config.json").is_file():
        listed = read_json(folder / "generation_config.json").get("eos_token_id")
    named = listed if isinstance(listed, list) else [listed]
    found = [end_token(tokenizer), tokenizer.eos_token_id, *named]
    return tuple(dict.fromkeys(int(token) for token in found if token is not None))


def generate(
    *,
    sft: Path,
    shard: Shard,
    sources: Sources,
    cfg: Prediction,
    model_cfg: LanguageModel,
    code: str,
    state: Path,
    machine: Machine,
    predictions: Path,
    rejected: Path,
    meta: Path,
) -> None:
    """Write the answers to one shard's prompts.

    Rows already in the journal are taken from there; a row that cannot be answered is written to `rejected`.

    Raises:
        UserError: model, adapter, schema or dataset cannot be used, or too many rows were rejected.
    """
    watch = Stopwatch()
    torch.set_num_threads(machine.threads)
    if model_cfg.kind != "text" and cfg.backend == "vllm":
        raise UserError("the back end vllm answers text only", where="backend", fix="write `backend: transformers`")
    plan = _plan(cfg, model_cfg, sources, machine)
    items = read_items(sft, shard, plan.processor, longest_prompt(sources.folder, cfg.max_new_tokens), plan.kind)
    log.info(
        "shard %d of %d: %d rows; model %s, %s, %s, %s",
        *(shard.index, shard.count, len(items), sources, cfg.backend, plan.device, plan.dtype),
    )
    weights_digest = model_digest(sources.folder)
    adapter_digest = model_digest(sources.adapter) if sources.adapter else None
    digest = digest_of({**_identity(plan), "code": code, "model": weights_digest, "adapter": adapter_digest})
    with Journal(state, STAGE, digest, input_digest(sft), shard.index, shard.count) as journal:
        results = journal.load([item.key for item in items])
        found_before = sum(item.key in results for item in items)
        log.info("%d rows found in the journal", found_before)
        run = _fill(results, items, journal, plan)
    problems = [item.problem or results[item.key].get("problem") for item in items]
    rows = [
        _prediction(item.row, len(item.prompt), results[item.key], plan.decoding.schema)
        for item, problem in zip(items, problems, strict=True)
        if not problem
    ]
    lost = [
        RejectedRow(id=item.row.id, stage=STAGE, reason=problem, where=item.where)
        for item, problem in zip(items, problems, strict=True)
        if problem
    ]
    write_jsonl(predictions, (row.row() for row in rows))
    write_jsonl(rejected, (row.row() for row in lost))
    write_meta(
        meta,
        rule=STAGE,
        cfg={"prediction": cfg.model_dump(mode="json", exclude=PLACED), "model": model_cfg.model_dump(mode="json")},
        code=code,
        inputs=[sft, *(Path(path) for path in (model_cfg.chat_template, cfg.json_schema) if path)],
        outputs={PredictionRow.RECORD: predictions, RejectedRow.RECORD: rejected},
        seconds=watch.seconds(),
        rows={"in": len(items), "out": len(rows), "rejected": len(lost), "from_journal": found_before},
        device=run.device,
        extra={
            "dtype": str(plan.dtype).removeprefix("torch."),
            "model": str(sources.folder),
            "model_digest": weights_digest,
            "adapter": str(sources.adapter) if sources.adapter else None,
            "adapter_digest": adapter_digest,
            "threads": machine.threads,
            "backend": {"name": cfg.backend, **run.versions},
            **counts(rows),
            "generation_seconds": run.seconds,
            "output_tokens_per_second": round(run.output_tokens / run.seconds, 2) if run.seconds else None,
        },
    )
    check_rejected(lost, len(items), cfg.max_rejected)


def counts(rows: Sequence[PredictionRow]) -> dict[str, int]:
    """Tokens, answers cut off by max_new_tokens, and answers that do not follow the JSON schema."""
    return {
        "prompt_tokens": sum(row.prompt_tokens for row in rows),
        "output_tokens": sum(sum(row.output_tokens) for row in rows),
        "answers": sum(len(row.outputs) for row in rows),
        "cut_off": sum(row.finish.count("length") for row in rows),
        "invalid_json": sum(row.parsed.count(None) for row in rows if row.parsed is not None),
    }


def _plan(cfg: Prediction, model_cfg: LanguageModel, sources: Sources, machine: Machine) -> Plan:
    schema = read_schema(Path(cfg.json_schema)) if cfg.json_schema else None
    kind = kind_of(model_cfg)
    processor = kind.load_processor(sources.folder, model_cfg)
    decoding = Decoding(
        max_new_tokens=cfg.max_new_tokens,
        temperature=cfg.temperature,
        top_p=cfg.top_p,
        top_k=cfg.top_k,
        num_outputs=cfg.num_outputs,
        end_tokens=end_tokens(sources.folder, kind.tokenizer(processor)),
        schema=schema,
    )
    device = _device(cfg, machine)
    return Plan(cfg, model_cfg, sources, decoding, kind, processor, device, _dtype(model_cfg, device), machine)


def _device(cfg: Prediction, machine: Machine) -> torch.device:
    """vLLM sees its own devices, so that there the job's GPUs say what `auto` means."""
    if cfg.backend == "vllm" and cfg.device != "cpu" and (cfg.device == "cuda" or machine.gpus):
        return torch.device("cuda")
    return choose_device(cfg.device)


def _dtype(model_cfg: LanguageModel, device: torch.device) -> torch.dtype:
    """As elsewhere; where this process sees no GPU (vLLM's does), `auto` is what today's GPUs can."""
    if model_cfg.dtype == "auto" and device.type == "cuda" and not torch.cuda.is_available():
        return torch.bfloat16
    return choose_dtype(model_cfg.dtype, device)


def _identity(plan: Plan) -> dict[str, Any]:
    """What answers depend on, beside the rows, the weights and the code."""
    template = plan.model_cfg.chat_template
    return {
        "cfg": plan.cfg.model_dump(mode="json", exclude=NOT_IN_RESULT),
        "model_cfg": plan.model_cfg.model_dump(mode="json", exclude=NOT_IN_MODEL),
        "chat_template": file_sha256(Path(template)) if template else None,
        "schema": plan.decoding.schema,
        "dtype": str(plan.dtype),
    }


def _fill(results: dict[str, Any], items: Sequence[Item], journal: Journal, plan: Plan) -> Run:
    """Compute what is missing from `results`, batch by batch.

    Raises:
        UserError: the model cannot be loaded or run.
    """
    whole = make_batches([item for item in items if not item.problem], plan.cfg.batch_size)
    batches = [[item for item in batch if item.key not in results] for batch in whole]
    todo = [batch for batch in batches if batch]
    if not todo:
        return Run(plan.device.type, {}, 0.0, 0)
    asked = [
        [Request(item.row.id, item.prompt, seed_of(plan.cfg.seed, item.row.id), item.audio) for item in batch]
        for batch in todo
    ]
    tokens = 0
    with _backend(asked, plan) as (name, versions, answered):
        progress = Progress(sum(map(len, todo)))
        start = time.perf_counter()
        for batch, answers in zip(todo, answered, strict=True):
            fresh = {item.key: _result(answer) for item, answer in zip(batch, answers, strict=True)}
            journal.append(fresh)
            results.update(fresh)
            tokens += sum(sum(answer.output_tokens) for answer in answers)
            progress.advance(len(batch))
        seconds = round(time.perf_counter() - start, 3)
    log.info("%d tokens in %.1f s, %.1f tokens/s", tokens, seconds, tokens / max(seconds, 1e-9))
    return Run(name, versions, seconds, tokens)


@contextmanager
def _backend(batches: Sequence[Batch], plan: Plan) -> Iterator[tuple[str, Mapping[str, str], Iterator[list[Answer]]]]:
    """The loaded back end: its device, the versions of its packages, and its answers to the batches."""
    if plan.cfg.backend == "vllm":
        engine = vllm_backend.Engine(
            python=plan.machine.vllm_python,
            folder=plan.sources.folder,
            adapter=plan.sources.adapter,
            trust_remote_code=plan.model_cfg.trust_remote_code,
            dtype=str(plan.dtype).removeprefix("torch."),
            device=plan.device.type,
            gpus=plan.machine.gpus,
            threads=plan.machine.threads,
            max_tokens=max(len(request.prompt) for batch in batches for request in batch) + plan.cfg.max_new_tokens,
            seed=plan.cfg.seed,
        )
        with vllm_backend.running(engine, plan.decoding) as worker:
            yield worker.device, worker.versions, vllm_backend.answers(batches, worker, plan.tokenizer, plan.decoding)
    else:
        model = transformers_backend.load_for_answers(
            plan.sources.folder, plan.sources.adapter, plan.model_cfg, plan.device
        )
        answered = transformers_backend.answers(
            batches,
            model,
            plan.tokenizer,
            plan.decoding,
            plan.cfg.json_schema or "",
            partial(plan.kind.media_inputs, plan.processor),
        )
        yield device_name(plan.device), transformers_backend.versions(), answered


def _result(answer: Answer) -> dict[str, Any]:
    """What the journal keeps of an answer."""
    if answer.problem:
        return {"problem": answer.problem}
    return {
        "outputs": list(answer.texts),
        "raw": list(answer.raw),
        "finish": list(answer.finish),
        "output_tokens": list(answer.output_tokens),
    }


def _prediction(
    row: SftRow, prompt_tokens: int, result: Mapping[str, Any], schema: Mapping[str, Any] | None
) -> PredictionRow:
    parsed = None if schema is None else [json_value(text, schema) for text in result["outputs"]]
    value = {
        "id": row.id,
        "task": row.task,
        **result,
        "parsed": parsed,
        "prompt_tokens": prompt_tokens,
        "target": row.target,
    }
    return parse_record(PredictionRow, value, f"row {row.id}")
