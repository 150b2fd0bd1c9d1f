"""What the rationale's rules read, and where their jobs ask, as the configuration names it; used when the workflow is
parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from utterflow import targets
from utterflow.config.base import placement_keys
from utterflow.config.models import Config
from utterflow.config.rationale import Rationale
from utterflow.models.folders import model_inputs_of
from utterflow.rationale.files import prompt_files

if TYPE_CHECKING:
    from utterflow.slu.items import WhereFrom

# Where and how fast a server is asked: resources of a job, since no result depends on them. `request_` stands before
# names that a scheduler could take for its own.
SERVER_PLACEMENT = {
    "base_url": "base_url",
    "base_url_env": "base_url_env",
    "key_env": "key_env",
    "concurrency": "concurrency",
    "requests_per_minute": "requests_per_minute",
    "tokens_per_minute": "tokens_per_minute",
    "request_timeout": "timeout",
    "request_retries": "retries",
}
PLACEMENT = (*SERVER_PLACEMENT, "job_budget", "vllm_python")


def lists_file(config: Config, name: str) -> str:
    """The n-best lists that a rationale is made for."""
    entry = config.rationales[name]
    return entry.lists or f"results/asr/{entry.corpus}/{entry.asr}/nbest.jsonl"


def where_from(entry: Rationale) -> WhereFrom:
    """What kind of file these lists are."""
    return "lists" if entry.lists else "nbest"


def text_files(config: Config, name: str) -> list[str]:
    """The prompts, and the chat template of a local model where the configuration names one."""
    entry = config.rationales[name]
    template = config.models[entry.model].chat_template if entry.model else None
    return [*prompt_files(entry), *([template] if template else [])]


def model_files(config: Config, name: str) -> list[str]:
    """The files of the local model."""
    model = config.rationales[name].model
    return model_inputs_of(config.models[model]) if model else []


def settings(config: Config, name: str) -> dict[str, Any]:
    """What rationales depend on; the list length and the number of shards are in the names of the files."""
    entry = config.rationales[name]
    server = config.servers[entry.server] if entry.server else None
    return {
        "rationale": entry.model_dump(mode="json", exclude=placement_keys(Rationale) | {"nbest_values", "shards"}),
        "server": server and server.model_dump(mode="json", exclude=placement_keys(type(server))),
        "model": config.models[entry.model].model_dump(mode="json") if entry.model else None,
    }


def gather_settings(config: Config, name: str) -> dict[str, Any]:
    """What the order of the gathered rows depends on."""
    entry = config.rationales[name]
    return {"where_from": where_from(entry), "limit": entry.limit}


def placement(config: Config, name: str) -> dict[str, str | int]:
    """The resources of a rationale's jobs that say where they ask; empty text where a key is not set."""
    server = config.rationales[name].server
    placed: dict[str, str | int] = {**dict.fromkeys(PLACEMENT, ""), "vllm_python": config.tools.vllm_python}
    if server is None:
        return placed
    values = config.servers[server].model_dump(mode="json")
    placed |= {resource: _plain(values[key]) for resource, key in SERVER_PLACEMENT.items()}
    if (budget := values["budget"]) is not None:
        placed["job_budget"] = repr(budget / jobs_of(config, server, name))
    return placed


def placements(config: Config) -> dict[str, Callable[[Any], str | int]]:
    """These resources as functions of a job's wildcards."""

    def placed(key: str) -> Callable[[Any], str | int]:
        return lambda wildcards: placement(config, wildcards.rationale)[key]

    return {key: placed(key) for key in PLACEMENT}


def server_placement(placed: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `Server` out of a job's resources."""
    keys: dict[str, Any] = {key: placed[resource] for resource, key in SERVER_PLACEMENT.items()}
    return {**keys, "base_url_env": tuple(str(keys["base_url_env"]).split())}


def jobs_of(config: Config, server: str, name: str) -> int:
    """How many jobs ask a server: those that the targets want, and all of this rationale."""
    asked = {*targets.rationales(config), *((name, k) for k in config.rationales[name].nbest_values)}
    return sum(config.rationales[part].shards for part, _ in asked if config.rationales[part].server == server)


def shard_files(config: Config, name: str, k: str, suffix: str) -> list[str]:
    """One file of each shard of a rationale with one list length."""
    shards = config.rationales[name].shards
    return [f"results/rationale/{name}/k{k}/shards/{shard}-of-{shards}{suffix}" for shard in range(shards)]


def metrics_files(config: Config) -> list[str]:
    """The metrics of every rationale that the targets want."""
    return [f"results/rationale/{name}/k{k}/rationale.metrics.json" for name, k in targets.rationales(config)]


def _plain(value: Any) -> str | int:
    """A value that Snakemake can pass on: whole numbers and text."""
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(value)
    return value if isinstance(value, int) else str(value)
