"""Rule `train_ngram`: texts -> a word n-gram with modified Kneser-Ney smoothing (KenLM's lmplz)."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from utterflow.config.beams import Ngram
from utterflow.errors import UserError
from utterflow.evaluate.normalize import normalizer
from utterflow.files import read_jsonl, text_lines
from utterflow.jobs import log
from utterflow.ngram.programs import last_lines, run_program
from utterflow.provenance import Stopwatch, write_meta
from utterflow.records import short

SYMBOLS = frozenset(("<s>", "</s>", "<unk>"))
SORTING_SHARE = 0.7  # of a job's memory
LEAST_SORTING_MB = 50


@dataclass
class Counts:
    """What went into a model."""

    read: int = 0
    sentences: int = 0
    words: int = 0
    symbols: int = 0

    @property
    def empty(self) -> int:
        return self.read - self.sentences


def train_ngram(
    *,
    texts: Sequence[Path],
    lmplz: Path,
    build_binary: Path,
    cfg: Ngram,
    code: str,
    mem_mb: int,
    arpa: Path,
    binary: Path,
    meta: Path,
) -> None:
    """Train an n-gram model and write it as ARPA text and as KenLM's binary.

    Smoothing is modified Kneser-Ney, estimated as by Heafield et al. 2013 (Scalable Modified Kneser-Ney Language Model
    Estimation, ACL). Sentences without a word after normalisation are left out and counted, as are the words `<s>`,
    `</s>` and `<unk>`, which models reserve. The same texts give the same bytes, whatever the memory.

    Raises:
        UserError: a text cannot be read or lacks the field, there is no sentence, or KenLM refuses.
    """
    watch = Stopwatch()
    arpa.parent.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix=".training-", dir=arpa.parent) as scratch:
        folder = Path(scratch).resolve()
        sentences = clean_sentences(texts, cfg.field, normalizer(cfg.normalizer), counts)
        first = next(sentences, None)
        if first is None:
            raise UserError(
                f"no sentence left of {counts.read}",
                where=", ".join(map(str, texts)),
                fix=f"give texts with words that normalizer {cfg.normalizer} keeps",
            )
        memory_mb = max(LEAST_SORTING_MB, int(mem_mb * SORTING_SHARE))
        count_ngrams(lmplz, cfg, itertools.chain([first], sentences), folder, memory_mb)
        log.info("%d sentences, %d words; %d without a word left out", counts.sentences, counts.words, counts.empty)
        sizes = ngram_sizes(folder / "arpa")
        if trouble := run_program([build_binary.resolve(), "-T", folder, cfg.structure, "arpa", "binary"], folder):
            raise UserError(f"build_binary failed:\n{trouble}", where=str(arpa), fix="see what it says above")
        (folder / "arpa").replace(arpa)
        (folder / "binary").replace(binary)
    write_meta(
        meta,
        rule="train_ngram",
        cfg=cfg.model_dump(mode="json"),
        code=code,
        inputs=[*texts, lmplz, build_binary],
        outputs={"arpa/1": arpa, "kenlm/1": binary},
        seconds=watch.seconds(),
        rows={"in": counts.read, "out": counts.sentences, "rejected": counts.empty},
        extra={
            "sentences": counts.sentences,
            "words": counts.words,
            "types": sizes[0] - len(SYMBOLS),
            "reserved_words_left_out": counts.symbols,
            "ngrams": sizes,
        },
    )


def clean_sentences(
    texts: Iterable[Path], field: str, normalize: Callable[[str], str], counts: Counts
) -> Iterator[str]:
    """Yield each sentence that has a word, normalised, its words apart by single spaces; counts as it goes."""
    for path in texts:
        for sentence in read_sentences(path, field):
            counts.read += 1
            found = normalize(sentence.replace("\0", " ")).split()
            words = [word for word in found if word not in SYMBOLS]
            counts.symbols += len(found) - len(words)
            counts.words += len(words)
            if words:
                counts.sentences += 1
                yield " ".join(words)


def read_sentences(path: Path, field: str) -> Iterator[str]:
    """Yield the sentences of a file: its lines, or the texts of `field` in a `.jsonl`; blank lines are none.

    Raises:
        UserError: the file is missing or of another kind, or a row has no text in `field`.
    """
    if path.suffix == ".txt":
        yield from (line for _, line in text_lines(path))
    elif path.suffix == ".jsonl":
        for number, row in read_jsonl(path):
            where = f"{path}, line {number}"
            if field not in row:
                near = get_close_matches(field, row, n=1) or list(row)[:1]
                raise UserError(
                    f"no key `{field}` in this row; it has {', '.join(row) or 'none'}",
                    where=where,
                    fix=f"set `field` of the n-gram to the key that holds the sentence, e.g. {(near or ['text'])[0]}",
                )
            if not isinstance(row[field], str):
                raise UserError(f"`{field}` is no text: {short(row[field])}", where=where, fix="write a string")
            yield row[field]
    else:
        raise UserError("texts are .txt or .jsonl files", where=str(path), fix="rename or convert it")


def count_ngrams(lmplz: Path, cfg: Ngram, sentences: Iterable[str], folder: Path, memory_mb: int) -> None:
    """Stream sentences to lmplz, which writes `arpa` into `folder`.

    Raises:
        UserError: lmplz refuses; its last lines are in the message.
    """
    command = [
        str(lmplz.resolve()), "--order", str(cfg.order), "--arpa", "arpa", "-T", f"{folder}/", "-S", f"{memory_mb}M",
        "--prune", *map(str, cfg.prune or (0,)), *(["--discount_fallback"] if cfg.discount_fallback else []),
    ]  # fmt: skip
    said = folder / "lmplz.log"
    with said.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=output, stderr=output)
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError), process.stdin as pipe:
                for sentence in sentences:
                    pipe.write(sentence.encode(errors="replace") + b"\n")
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
    if process.returncode:
        trouble = last_lines(said.read_text(encoding="utf-8", errors="replace")) or f"exit status {process.returncode}"
        raise UserError(f"lmplz failed:\n{trouble}", fix=_remedy(trouble))


def _remedy(trouble: str) -> str:
    if "BadDiscount" in trouble:
        return "the text is too small or too regular to estimate discounts: set `discount_fallback: true`"
    if "No space left" in trouble:
        return "free disk space: lmplz sorts on disk, in the folder of its output"
    if "bad_alloc" in trouble or "memory" in trouble.lower():
        return "raise `mem_mb` of the n-gram"
    return "see what it says above"


def ngram_sizes(arpa: Path) -> list[int]:
    """The number of n-grams of each order, from the head of an ARPA file."""
    sizes = []
    with arpa.open(encoding="utf-8") as handle:
        for line in handle:
            if line.startswith("ngram "):
                sizes.append(int(line.rpartition("=")[2]))
            elif sizes:
                break
    return sizes
