"""The files that a configuration asks for: what the workflow's targets are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from utterflow.config.datasets import CandidateSource, CorrectorDataset, SluDataset, SluSource
from utterflow.config.models import Config
from utterflow.config.signals import PARTITIONS
from utterflow.fetch import model_listing
from utterflow.models.folders import PretrainedModel
from utterflow.rationale.files import prompt_files

T = TypeVar("T")

SPLITS = ("train", "validation", "test")
KENLM_LISTING = "data/tools/kenlm/kenlm.meta.json"


def asr_runs(config: Config) -> list[tuple[str, str, str]]:
    """Every (corpus, asr, scoring) that is asked for, once, in the configuration's order."""
    return _once(
        (corpus, asr, scoring)
        for run in config.runs
        for corpus in run.corpora
        for asr in run.asr
        for scoring in run.scoring
    )


def used_lists(config: Config) -> list[tuple[str, str]]:
    """(corpus, asr) of all n-best lists that are needed: scored, in data sets, or as evidence of rationales."""
    scored = [(corpus, asr) for corpus, asr, _ in asr_runs(config)]
    sources = [item for name, split in used_datasets(config) for item in getattr(config.datasets[name], split)]
    reasons = [config.rationales[name] for name, _ in rationales(config)]
    return _once([*scored, *((item.corpus, item.asr) for item in [*sources, *reasons] if item.asr)])


def used_servers(config: Config) -> list[str]:
    """The names of the servers that the needed rationales ask."""
    servers = [config.rationales[name].server for name, _ in rationales(config)]
    return _once(server for server in servers if server)


def asr_scores(config: Config) -> list[str]:
    """The metrics of every ASR run."""
    return [f"results/evaluate/{corpus}/{asr}/{scoring}.json" for corpus, asr, scoring in asr_runs(config)]


def nbest_lists(config: Config) -> list[str]:
    """The n-best lists of every ASR run."""
    return _once(f"results/asr/{corpus}/{asr}/nbest.jsonl" for corpus, asr, _ in asr_runs(config))


def correction_scores(config: Config) -> list[str]:
    """The metrics of every correction, under each scoring of its run."""
    return _once(
        f"results/corrections/{correction}/{scoring}.json"
        for run in config.runs
        for correction in run.corrections
        for scoring in run.scoring
    )


def understandings(config: Config) -> list[str]:
    """The names of the understandings that are asked for."""
    return _once(name for run in config.runs for name in run.understandings)


def slu_scores(config: Config) -> list[str]:
    """The metrics of every understanding."""
    return [f"results/slu/{name}/metrics_label_only.json" for name in understandings(config)]


def rationales(config: Config) -> list[tuple[str, int]]:
    """(rationale, list length) of those that runs name, for every length, and of those that used data sets name."""
    named = [(name, k) for run in config.runs for name in run.rationales for k in config.rationales[name].nbest_values]
    sources = [item for name, split in used_datasets(config) for item in getattr(config.datasets[name], split)]
    used = [(item.rationale, item.k) for item in sources if isinstance(item, SluSource) and item.rationale and item.k]
    return _once([*named, *used])


def rationale_files(config: Config) -> list[str]:
    """The files of these rationales."""
    return [f"results/rationale/{name}/k{k}/rationale.jsonl" for name, k in rationales(config)]


def all_scores(config: Config) -> list[str]:
    """The metrics of everything that is asked for."""
    return asr_scores(config) + correction_scores(config) + slu_scores(config)


def trainings(config: Config) -> list[str]:
    """The names of the trainings whose models the asked for corrections use."""
    return _once(item for name in predictions(config) if (item := config.predictions[name].training))


def merged_models(config: Config) -> list[str]:
    """The merged models that trainings ask for."""
    return [
        f"results/finetune/{name}/merged/model.safetensors"
        for name in trainings(config)
        if config.trainings[name].merge
    ]


def used_datasets(config: Config) -> list[tuple[str, str]]:
    """(data set, split) of all that the asked for trainings and predictions use."""
    used = [(config.predictions[name].dataset, config.predictions[name].split) for name in predictions(config)]
    for name in trainings(config):
        training = config.trainings[name]
        used += [(part.dataset, part.split) for part in (*training.train, *training.validation)]
    return _once(used)


def used_models(config: Config) -> list[str]:
    """The names of the language models that the asked for corrections need: to answer, to train, to count tokens."""
    answering = [config.predictions[name].model for name in predictions(config)]
    trained = [config.trainings[name].model for name in trainings(config)]
    counting = [
        item.tokenizer
        for name, _ in used_datasets(config)
        if isinstance(item := config.datasets[name], CorrectorDataset)
    ]
    asked = [config.rationales[name].model for name, _ in rationales(config)]
    return _once(name for name in [*answering, *trained, *counting, *asked] if name)


def fetched_files(config: Config) -> list[str]:
    """All that needs the network: downloads, archives' contents, hub models, KenLM's programs."""
    unpacked = [f"{path}.contents.tsv" for path, item in config.downloads.items() if item.unpack_to]
    audio_ctc = [item for item in config.logits.values() if item.source == "audio"]
    pretrained: list[PretrainedModel] = [
        *config.asr.values(),
        *(config.models[name] for name in used_models(config)),
        *audio_ctc,
    ]
    models = [str(model_listing(item.model, str(item.revision))) for item in pretrained if item.is_hub_model]
    trains_ngrams = any(item.texts for item in config.ngrams.values())
    tools = [KENLM_LISTING] if trains_ngrams and config.tools.kenlm_bin is None else []
    return _once([*config.downloads, *unpacked, *models, *tools])


def _once(items: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(items))


def predictions(config: Config) -> list[str]:
    """The names of the predictions that the asked for corrections and understandings score."""
    corrections = [config.corrections[name].prediction for run in config.runs for name in run.corrections]
    return _once([*corrections, *(config.understandings[name].prediction for name in understandings(config))])


def prediction_files(config: Config) -> list[str]:
    """The answers of every prediction that is asked for."""
    return [f"results/generate/{name}/predictions.jsonl" for name in predictions(config)]


def training_metrics(config: Config) -> list[str]:
    """The metrics of every training that is asked for."""
    return [f"results/finetune/{name}/metrics.json" for name in trainings(config)]


def beam_lists(config: Config) -> list[str]:
    """The dumped beams of every data set that the asked for trainings and predictions use."""
    sources = [source for name, split in used_datasets(config) for source in getattr(config.datasets[name], split)]
    return _once(
        f"results/beams/{item.beams}/{item.partition}/beams.jsonl"
        for item in sources
        if isinstance(item, CandidateSource) and item.beams
    )


def stages(config: Config) -> dict[str, list[str]]:
    """Target of a stage -> its files."""
    return {
        "fetch": fetched_files(config),
        "corpora": _once(f"results/corpora/{corpus}/manifest.jsonl" for corpus, _ in used_lists(config)),
        "asr": [f"results/asr/{corpus}/{asr}/nbest.jsonl" for corpus, asr in used_lists(config)],
        "beams": beam_lists(config),
        "rationales": rationale_files(config),
        "trainings": training_metrics(config),
        "predictions": prediction_files(config),
        "evaluate": all_scores(config),
    }


def given_files(config: Config) -> dict[str, str]:
    """Files that the user provides -> the config key that names each; audio and annotations are not among them."""
    return {path: key for key, path in _named_files(config) if path and path not in config.downloads}


def _named_files(config: Config) -> Iterator[tuple[str, str | None]]:
    for name, recordings in config.recordings.items():
        for part in PARTITIONS:
            if recordings.source == "hdf5":
                yield from ((f"recordings.{name}.{part}", path) for path in getattr(recordings, part))
            else:
                yield f"recordings.{name}.{part}.path", getattr(recordings, part).path
        if recordings.source == "simulated":
            yield f"recordings.{name}.tokens", recordings.tokens
            yield f"recordings.{name}.lexicon", recordings.lexicon
    for name, encoder in config.encoders.items():
        yield f"encoders.{name}.tokens", encoder.tokens
    for name, logits in config.logits.items():
        if logits.source == "npz":
            for part in PARTITIONS:
                if stored := getattr(logits, part):
                    yield f"logits.{name}.{part}.logits", stored.logits
                    yield f"logits.{name}.{part}.transcripts", stored.transcripts
    for name, ngram in config.ngrams.items():
        yield f"ngrams.{name}.file", ngram.file
        yield from ((f"ngrams.{name}.texts", path) for path in ngram.texts)
    if config.tools.kenlm_bin:
        yield from (("tools.kenlm_bin", f"{config.tools.kenlm_bin}/{name}") for name in ("lmplz", "build_binary"))
    for name, beams in config.beams.items():
        yield f"beams.{name}.tokens", beams.tokens
        yield f"beams.{name}.lexicon", beams.lexicon
    for name, model in config.models.items():
        yield f"models.{name}.chat_template", model.chat_template
    for name, rationale in config.rationales.items():
        yield f"rationales.{name}.lists", rationale.lists
        yield from ((f"rationales.{name}.labels", path) for path in rationale.labels)
        yield from ((f"rationales.{name}.prompts", path) for path in prompt_files(rationale))
    for name, dataset in config.datasets.items():
        yield f"datasets.{name}.system", dataset.system
        if isinstance(dataset, SluDataset):
            yield f"datasets.{name}.slu_prompt", dataset.slu_prompt
            yield f"datasets.{name}.ras_prompt", dataset.ras_prompt if dataset.ras else None
            yield f"datasets.{name}.lexicon", dataset.lexicon
            yield from ((f"datasets.{name}.labels", path) for path in dataset.labels)
            for split in SPLITS:
                items: Iterable[SluSource] = getattr(dataset, split)
                for i, item in enumerate(items):
                    yield f"datasets.{name}.{split}.{i}.lists", item.lists
                    yield f"datasets.{name}.{split}.{i}.gold_text", item.gold_text
            continue
        yield f"datasets.{name}.instruction", dataset.instruction
        for split in SPLITS:
            sources = getattr(dataset, split)
            yield from ((f"datasets.{name}.{split}.{i}.lists", source.lists) for i, source in enumerate(sources))
    for name, prediction in config.predictions.items():
        yield f"predictions.{name}.json_schema", prediction.json_schema
