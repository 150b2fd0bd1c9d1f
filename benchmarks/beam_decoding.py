"""Lexicon beam search: ours against flashlight-text and pyctcdecode, same posteriors, one run.

    python benchmarks/beam_decoding.py --lexicon cmudict.dict --text train.jsonl --test devel.jsonl --lmplz bin/lmplz

The lexicon is a pronouncing dictionary in the format of CMUdict: the words of `--text` and `--test` that it has, then
further words in its own order, up to `--words`. `--text` and `--test` are plain sentences, one per line, or JSON Lines
with the field `sentence`. The n-gram is trained on `--text` by lmplz; the sentences spoken are those of `--test` that
are not in `--text` and whose words the dictionary has all.

Posteriors are made up: a sentence's phones (one pronunciation of each word, drawn at random) are spikes among blanks,
in which phones that are easily confused get random shares, so that the best phone is often the wrong one. pyctcdecode
knows no lexicon of phones; it gets letters in place of phones, made by the same recipe, for its times only: its words
are others, and at these weights it avoids the ends of words.

Ways take turns on each utterance, in one thread. Printed per way: median CPU milliseconds per utterance (which other
processes on the machine disturb less than the wall clock) and its ratio to the first way's on the same utterances,
distinct hypotheses found (at most 100), word error rate of the first and of the best of the list. A JSON line per way
follows.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utterflow.beams.lexicon import Lexicon, read_lexicon
from utterflow.beams.ngram_scores import LN10, WordScorer, load_ngram
from utterflow.beams.search import LexiconDecoder, SearchSettings
from utterflow.beams.tokens import Tokens, read_tokens
from utterflow.evaluate.edits import word_edits

Posteriors = NDArray[np.float32]
Decode = Callable[[Posteriors], list[str]]

SETTINGS = SearchSettings(
    beam_size=100,
    top_n=100,
    acoustic_scale=0.4,
    alpha_ngram=1.0,
    beam_prune_threshold=25.0,
    word_insertion_bonus=0.0,
    token_prune=float("inf"),
    homophones=6,
)
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


@dataclass(frozen=True)
class Utterance:
    text: str
    phones: Posteriors
    letters: Posteriors


@dataclass(frozen=True)
class Task:
    tokens: Tokens
    lexicon: Lexicon
    ngram: Path
    utterances: list[Utterance]


@dataclass
class Way:
    decode: Decode
    letters: bool
    limit: int


def read_sentences(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        lines = [json.loads(line)["sentence"] for line in lines if line.strip()]
    return list(dict.fromkeys(" ".join(line.lower().split()) for line in lines if line.strip()))


def read_dictionary(path: Path) -> dict[str, list[list[str]]]:
    """Pronunciations of each word, without stress digits."""
    spellings: dict[str, list[list[str]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        name, *phones = line.partition("#")[0].split()
        spellings[name.partition("(")[0]].append([phone.rstrip("012") for phone in phones])
    return spellings


def write_lexicon(dictionary: dict[str, list[list[str]]], words: Sequence[str], folder: Path) -> tuple[Tokens, Lexicon]:
    """Write tokens and lexicon in our formats and read them back."""
    phones = sorted({phone for spellings in dictionary.values() for spelling in spellings for phone in spelling})
    (folder / "tokens.txt").write_text("\n".join(["-", *phones, "|"]) + "\n", encoding="utf-8")
    with (folder / "lexicon.txt").open("w", encoding="utf-8") as handle:
        for word in words:
            for number, spelling in enumerate(dictionary[word], start=1):
                handle.write(f"{word}{f'({number})' if number > 1 else ''} {' '.join(spelling)} |\n")
    tokens = read_tokens(folder / "tokens.txt")
    return tokens, read_lexicon(folder / "lexicon.txt", tokens)


def train_ngram(lmplz: str, order: int, sentences: Sequence[str], folder: Path) -> Path:
    (folder / "train.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    path = folder / f"{order}gram.arpa"
    with (folder / "train.txt").open() as text, path.open("w") as arpa:
        command = [lmplz, "-o", str(order), "--discount_fallback", "-S", "500M", "-T", str(folder)]
        subprocess.run(command, stdin=text, stdout=arpa, stderr=subprocess.DEVNULL, check=True)
    return path


def make_posteriors(
    labels: Sequence[int], frames: int, classes: int, blank: int, confusable: NDArray[np.int64], noise: float, seed: int
) -> Posteriors:
    """Log-probabilities [frames, classes]: a spike of one to three frames per label, blanks between.

    In a spike the label has a logit of about 8, three confusable classes about 4 + `noise`, each drawn once per spike.
    """
    draw = np.random.default_rng(seed)
    logits = draw.normal(0.0, 1.0, (frames, classes))
    logits[:, blank] += 9.0
    step = frames / len(labels)
    for place, label in enumerate(labels):
        width = min(int(draw.integers(1, 4)), max(int(step) - 1, 1))
        start = min(int(place * step + draw.uniform(0, max(step - width, 0))), frames - width)
        spike = slice(start, start + width)
        logits[spike, blank] += draw.normal(-7.0, 2.0)
        logits[spike, label] += draw.normal(8.0, 2.0)
        logits[spike, confusable[label]] += draw.normal(4.0 + noise, 2.5, 3)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits.astype(np.float32)


def confusions(classes: int, blank: int, separator: int) -> NDArray[np.int64]:
    """Three classes for each that it is easily confused with."""
    draw = random.Random(1)
    sounds = [one for one in range(classes) if one not in (blank, separator)]
    rows = [draw.sample([other for other in sounds if other != one], 3) for one in range(classes)]
    rows[separator] = [blank, *draw.sample(sounds, 2)]
    return np.array(rows)


def make_utterances(
    options: argparse.Namespace, sentences: Sequence[str], lexicon: Lexicon, tokens: Tokens
) -> list[Utterance]:
    spellings: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for spelling, word in zip(lexicon.spellings, lexicon.word_of, strict=True):
        spellings[lexicon.words[word]].append(spelling)
    classes = len(tokens.names)
    near = confusions(classes, tokens.blank, tokens.separator)
    near_letters = confusions(classes, 0, len(LETTERS) + 1)
    near_letters %= len(LETTERS) + 2
    utterances = []
    for number, text in enumerate(random.Random(options.seed).sample(list(sentences), options.utterances)):
        pick = random.Random(number)
        phones = [token for word in text.split() for token in pick.choice(spellings[word])]
        letters = [1 + LETTERS.find(letter) if letter != " " else len(LETTERS) + 1 for letter in f"{text} "]
        seed = 2 * (options.seed + number)
        frames = options.frames
        utterances.append(
            Utterance(
                text,
                make_posteriors(phones, frames, classes, tokens.blank, near, options.noise, seed),
                make_posteriors(letters, frames, classes, 0, near_letters, options.noise, seed + 1),
            )
        )
    return utterances


def make_task(options: argparse.Namespace) -> Task:
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = read_dictionary(options.lexicon)
    train, test = read_sentences(options.text), read_sentences(options.test)
    spoken = {word for sentence in [*train, *test] for word in sentence.split()}
    words = [*sorted(spoken & dictionary.keys()), *(word for word in dictionary if word not in spoken)][: options.words]
    tokens, lexicon = write_lexicon(dictionary, words, folder)
    known, seen = set(words), set(train)
    longest = options.frames // 3
    sentences = [
        text
        for text in test
        if text not in seen and known.issuperset(text.split()) and len(text.split()) >= 3 and len(text) < longest
    ]
    ngram = train_ngram(options.lmplz, options.order, train, folder)
    return Task(tokens, lexicon, ngram, make_utterances(options, sentences, lexicon, tokens))


def ours(task: Task, settings: SearchSettings) -> Decode:
    scorer = WordScorer(load_ngram(task.ngram), task.lexicon.words, 0.0)
    decoder = LexiconDecoder(task.tokens, task.lexicon, scorer, settings)
    return lambda log_probs: [beam.text for beam in decoder.decode(log_probs)]


def flashlight(task: Task, folder: Path, beam: int, threshold: float) -> Decode:
    """flashlight-text's LexiconDecoder with the same scores: emissions scaled before, LM weight for its log10."""
    from flashlight.lib.text.decoder import CriterionType, LexiconDecoder, LexiconDecoderOptions, SmearingMode, Trie
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    lexicon, tokens = task.lexicon, task.tokens
    listed = folder / "words.txt"
    listed.write_text("\n".join([*lexicon.words, "<unk>"]) + "\n", encoding="utf-8")
    words = Dictionary(str(listed))
    lm = KenLM(str(task.ngram), words)
    trie = Trie(len(tokens.names), tokens.separator)
    start = lm.start(False)
    for spelling, word in zip(lexicon.spellings, lexicon.word_of, strict=True):
        number = words.get_index(lexicon.words[word])
        trie.insert(list(spelling), number, lm.score(start, number)[1])
    trie.smear(SmearingMode.MAX)
    options = LexiconDecoderOptions(
        beam_size=beam,
        beam_size_token=len(tokens.names),
        beam_threshold=threshold,
        lm_weight=LN10 * SETTINGS.alpha_ngram,
        word_score=SETTINGS.word_insertion_bonus,
        unk_score=float("-inf"),
        sil_score=0.0,
        log_add=False,
        criterion_type=CriterionType.CTC,
    )
    unknown = words.get_index("<unk>")
    decoder = LexiconDecoder(options, trie, lm, tokens.separator, tokens.blank, unknown, [], False)

    def decode(log_probs: Posteriors) -> list[str]:
        scaled = np.ascontiguousarray(log_probs * np.float32(SETTINGS.acoustic_scale))
        results = decoder.decode(scaled.ctypes.data, *scaled.shape)
        texts = (" ".join(words.get_entry(word) for word in result.words if word >= 0) for result in results)
        return list(dict.fromkeys(texts))[: SETTINGS.top_n]

    return decode


def pyctc(task: Task, beam: int) -> Decode:
    """pyctcdecode on letters, with pruning wide enough for a long list."""
    from pyctcdecode import build_ctcdecoder

    spare = [chr(0x4E00 + i) for i in range(len(task.tokens.names) - len(LETTERS) - 2)]
    labels = ["", *LETTERS, " ", *spare]
    alpha = SETTINGS.alpha_ngram / SETTINGS.acoustic_scale
    decoder = build_ctcdecoder(labels, str(task.ngram), unigrams=list(task.lexicon.words), alpha=alpha, beta=0.0)

    def decode(log_probs: Posteriors) -> list[str]:
        beams = decoder.decode_beams(
            log_probs,
            beam_width=beam,
            beam_prune_logp=-SETTINGS.beam_prune_threshold / SETTINGS.acoustic_scale,
            token_min_logp=-10.0,
        )
        return list(dict.fromkeys(beam[0] for beam in beams))[: SETTINGS.top_n]

    return decode


def make_ways(task: Task, options: argparse.Namespace) -> dict[str, Way]:
    some = options.slow_utterances
    ways = {
        f"ours, beam {beam}": Way(ours(task, replace(SETTINGS, beam_size=beam)), False, options.utterances)
        for beam in options.beams
    }
    ways["flashlight-text, beam 300"] = Way(flashlight(task, options.folder, 300, 25.0), False, options.utterances)
    if some:
        ways["flashlight-text, beam 1500, threshold 50"] = Way(
            flashlight(task, options.folder, 1500, 50.0), False, some
        )
        ways["pyctcdecode on letters, beam 300"] = Way(pyctc(task, 300), True, some)
    return ways


def measure(ways: dict[str, Way], utterances: Sequence[Utterance]) -> dict[str, list[tuple[float, list[str], str]]]:
    """Per way and utterance: CPU seconds, list, reference. The first utterance warms up every way."""
    runs: dict[str, list[tuple[float, list[str], str]]] = defaultdict(list)
    for number, utterance in enumerate([utterances[0], *utterances]):
        for name, way in ways.items():
            if number > way.limit:
                continue
            log_probs = utterance.letters if way.letters else utterance.phones
            begin = time.process_time()
            found = way.decode(log_probs)
            if number:
                runs[name].append((time.process_time() - begin, found, utterance.text))
    return runs


def summary(runs: Sequence[tuple[float, list[str], str]]) -> dict[str, float]:
    count: Counter[str] = Counter()
    for _, found, reference in runs:
        edits = [word_edits(reference, text).edits for text in found or [""]]
        count.update(words=len(reference.split()), first=edits[0], oracle=min(edits), distinct=len(found))
    return {
        "utterances": len(runs),
        "ms": 1000 * statistics.median(seconds for seconds, _, _ in runs),
        "distinct": count["distinct"] / len(runs),
        "wer": count["first"] / count["words"],
        "oracle_wer": count["oracle"] / count["words"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lexicon", type=Path, required=True, help="pronouncing dictionary, format of CMUdict")
    parser.add_argument("--text", type=Path, required=True, help="sentences to train the n-gram on")
    parser.add_argument("--test", type=Path, required=True, help="sentences to speak")
    parser.add_argument("--lmplz", required=True, help="KenLM's program lmplz")
    parser.add_argument("--folder", type=Path, required=True, help="for what is made on the way")
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--noise", type=float, default=0.0, help="raises the logits of confusable phones")
    parser.add_argument("--utterances", type=int, default=40)
    parser.add_argument("--slow-utterances", type=int, default=3, help="for the slow ways; 0 leaves them out")
    parser.add_argument("--beams", type=int, nargs="+", default=[50, 100, 300])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    task = make_task(options)
    ways = make_ways(task, options)
    runs = measure(ways, task.utterances)
    rows = {name: summary(of_way) for name, of_way in runs.items()}
    base = next(iter(runs.values()))
    for name, row in rows.items():
        row["ratio"] = row["ms"] / summary(base[: len(runs[name])])["ms"]
    print("| way | utterances | ms | ratio | distinct | WER | oracle WER |\n|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        errors = " | " if ways[name].letters else f"{row['wer']:.1%} | {row['oracle_wer']:.1%}"
        counts = f"{row['utterances']} | {row['ms']:.1f} | {row['ratio']:.1f} | {row['distinct']:.1f}"
        print(f"| {name} | {counts} | {errors} |")
    for name, row in rows.items():
        print(json.dumps({"way": name, **row}))


if __name__ == "__main__":
    main()
