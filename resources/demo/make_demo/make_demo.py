"""Rebuild the embedded demo's data from nothing: corpora, nano models, n-best lists, lexicon, figures.

    pip install -r resources/demo/make_demo/requirements.txt
    python resources/demo/make_demo/make_demo.py --work /tmp/utterflow-demo

Everything is synthetic speech, and the models are nano models: good for trying the workflow and for nothing
else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from grammar import Sentence

STAGES = ("corpora", "training-data", "models", "figures", "lexicon", "nbest", "llm", "llm-figures")


def add_figures(path: Path, figures: dict[str, object]) -> None:
    """Put figures of some models into the file, beside those of the others."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(known | figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line: run the stages asked for, in order."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for what does not ship (1 GB)")
    parser.add_argument("--demo", type=Path, default=here.parent, help="where the demo's data go")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--threads", type=int, default=2, help="for synthesis and figures")
    parser.add_argument("--training-threads", type=int, default=1, help="only one repeats bit for bit")
    options = parser.parse_args()

    from synthesise import make_shipped, make_training_data, split_sentences

    parts = split_sentences()
    figures = options.demo / "make_demo" / "figures.json"
    for stage in (stage for stage in STAGES if stage in options.stages):
        began = time.time()
        if stage == "corpora":
            make_shipped(options.demo, parts)
        elif stage == "training-data":
            make_training_data(options.work / "asr", parts, options.threads)
        elif stage == "models":
            from train_whisper import make_models

            make_models(options.work, options.demo / "models", options.training_threads)
        elif stage == "figures":
            from measure import annotate_and_measure

            fresh = options.work / "figures.json"
            annotate_and_measure(options.demo, fresh, options.threads)
            add_figures(figures, json.loads(fresh.read_text(encoding="utf-8")))
        elif stage == "lexicon":
            from lexicon import make_lexicon

            make_lexicon(options.demo / "lexicon")
            write_sentences(options.demo / "text" / "sentences.txt", parts["asr_train"])
        elif stage == "nbest":
            from nbest_lists import RECOGNISER, make_lists

            make_lists(options.demo / "nbest", options.demo / "models" / RECOGNISER, parts, options.threads)
        elif stage == "llm":
            from train_llm import make_llm

            make_llm(options.demo / "models" / "nano-llm", parts, options.training_threads)
        else:
            from measure_llm import measure_all

            add_figures(figures, {"nano-llm": measure_all(options.demo)})
        print(f"{stage}: {time.time() - began:.0f} s", flush=True)


def write_sentences(path: Path, sentences: Sequence[Sentence]) -> None:
    """The text that word n-grams are trained from: no sentence of the demo's recordings or lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{sentence.text}\n" for sentence in sentences), encoding="utf-8")


if __name__ == "__main__":
    main()
