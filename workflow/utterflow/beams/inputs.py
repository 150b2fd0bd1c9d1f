"""Input files of the rules that make beams, as the configuration names them; read when the workflow is parsed."""

from __future__ import annotations

from utterflow.config.models import Config


def logits_shards(config: Config, beams: str, partition: str) -> list[str]:
    """The shards of the logits behind some beams: paths without a suffix."""
    name = config.beams[beams].logits
    shards = config.logits[name].shards
    return [f"results/logits/{name}/{partition}/shards/{shard}-of-{shards}" for shard in range(shards)]


def beams_shards(config: Config, beams: str, partition: str) -> list[str]:
    """The shards of some beams: paths without a suffix."""
    shards = config.logits[config.beams[beams].logits].shards
    return [f"results/beams/{beams}/{partition}/shards/{shard}-of-{shards}" for shard in range(shards)]


def trials_file(config: Config, beams: str, partition: str, shard: str, shards: str) -> str:
    """The trials of one shard."""
    return f"results/logits/{config.beams[beams].logits}/{partition}/shards/{shard}-of-{shards}.trials.jsonl"


def logits_file(config: Config, beams: str, partition: str, shard: str, shards: str) -> str:
    """The npz that the trials of one shard point into."""
    name = config.beams[beams].logits
    if config.logits[name].source == "npz":
        return str(getattr(config.logits[name], partition).logits)
    return f"results/logits/{name}/{partition}/shards/{shard}-of-{shards}.npz"


def lexicon_files(config: Config, beams: str) -> list[str]:
    """The lexicon of some beams, or none."""
    lexicon = config.beams[beams].lexicon
    return [] if lexicon is None else [lexicon]


def ngram_files(config: Config, beams: str) -> list[str]:
    """The n-gram of some beams: none, the configured file, or the trained one."""
    name = config.beams[beams].ngram
    if name is None:
        return []
    return [config.ngrams[name].file or f"results/ngrams/{name}/lm.binary"]


def word_files(config: Config, beams: str) -> list[str]:
    """An ARPA file with the words of that n-gram, if there is one and the decoder uses it."""
    name = config.beams[beams].ngram
    if name is None or config.beams[beams].decoder != "characters":
        return []
    file = config.ngrams[name].file or f"results/ngrams/{name}/lm.arpa"
    return [file] if file.endswith(".arpa") else []
