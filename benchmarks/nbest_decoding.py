"""n-best decoding: ours against the library's, same weights, same machine, one run.

    python benchmarks/nbest_decoding.py --size tiny --device cpu

Weights are random at Whisper's true dimensions (no hub is needed); every search decodes exactly `--tokens` tokens, as
the end token is suppressed for all, so the work is equal. `--size demo` takes the demo's trained model and speech,
where hypotheses end by themselves and samples agree on most tokens.

Ways compared, for beams (n = 5) and for a sampling pool:

    library, one by one   WhisperForConditionalGeneration.generate on one file at a time (what most scripts do)
    library, batched      the same on a batch of files
    generic, batched      GenerationMixin.generate, which gives a true n-best list, on a batch
    ours                  utterflow.asr

Each way is timed in turn, `--repeats` times; the median counts. The result is a JSON line per row on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GenerationConfig, GenerationMixin

from utterflow.asr.search import SearchOptions, beam_search, sample
from utterflow.asr.whisper import Whisper, encode, features, load_whisper, prompt_tokens
from utterflow.audio import add_noise, load_audio
from utterflow.records import Noise

DEMO = Path(__file__).resolve().parents[1] / "resources/demo"

# d_model, encoder layers, decoder layers, heads, mel bands, vocabulary: those of the published checkpoints.
SIZES = {
    "nano": (128, 3, 2, 4, 80, 303),
    "tiny": (384, 4, 4, 6, 80, 51865),
    "base": (512, 6, 6, 8, 80, 51865),
    "small": (768, 12, 12, 12, 80, 51865),
    "large-v3-turbo": (1280, 32, 4, 20, 128, 51866),
}


def build(size: str, device: torch.device, dtype: torch.dtype) -> Whisper:
    """A random model of the published dimensions, on a window of 30 s."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    width, encoder_layers, decoder_layers, heads, mels, vocabulary = SIZES[size]
    start, end = vocabulary - 20, vocabulary - 21
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=mels,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=[end],
        begin_suppress_tokens=[end],
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight.normal_(0, 0.15)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        is_multilingual=False,
    )
    model.generation_config.no_timestamps_token_id = vocabulary - 2
    model = model.to(device, dtype).eval()
    forbidden = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    forbidden[end:] = True
    return Whisper(model, None, device, dtype, forbidden, forbidden)


def speech(whisper: Whisper, count: int) -> torch.Tensor:
    """Features of the demo's first clips, with white noise at 3 dB."""
    clips = sorted((DEMO / "slurp/audio").glob("*.opus"))[:count]
    noise = [Noise(snr_db=3.0, color=0.0, seed=seed) for seed in range(count)]
    return features(whisper, [add_noise(load_audio(clip), one) for clip, one in zip(clips, noise, strict=True)])


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def library_options(whisper: Whisper, n: int, tokens: int, sampling: bool) -> dict[str, Any]:
    forbidden = whisper.suppressed.nonzero().squeeze(1).tolist()
    search = (
        {"do_sample": True, "num_beams": 1, "top_k": 50, "top_p": 0.95}
        if sampling
        else {"num_beams": n, "do_sample": False}
    )
    return {
        "max_new_tokens": tokens,
        "num_return_sequences": n,
        "suppress_tokens": forbidden,
        "begin_suppress_tokens": forbidden,
        "return_dict_in_generate": True,
        "output_scores": True,
        **search,
    }


def ways(whisper: Whisper, log_mel: torch.Tensor, n: int, tokens: int, sampling: bool) -> dict[str, Callable[[], Any]]:
    """Name -> a run that makes n hypotheses for each file of the batch."""
    trained = whisper.processor is not None
    start = [int(whisper.model.generation_config.decoder_start_token_id)]
    prompt = prompt_tokens(whisper, "en", "transcribe") if trained else start
    spoken = {"language": "en", "task": "transcribe"} if trained else {}
    options = library_options(whisper, n, tokens, sampling)

    def library(batch: torch.Tensor) -> None:
        whisper.model.generate(batch, **options, **spoken, return_timestamps=False)

    def generic(batch: torch.Tensor) -> None:
        config = GenerationConfig(
            **options,
            eos_token_id=whisper.eos,
            pad_token_id=whisper.eos,
            decoder_start_token_id=prompt[0],
        )
        inputs = torch.tensor([prompt] * len(batch), device=whisper.device)
        GenerationMixin.generate(whisper.model, batch, decoder_input_ids=inputs, generation_config=config)

    def ours(batch: torch.Tensor) -> None:
        cross = encode(whisper, batch)
        prompts = [prompt] * len(batch)
        search = SearchOptions(num_beams=n, max_new_tokens=tokens)
        if sampling:
            sample(whisper, cross, prompts, range(len(batch)), n, replace(search, top_k=50, top_p=0.95))
        else:
            beam_search(whisper, cross, prompts, search)

    def one_by_one() -> None:
        for index in range(len(log_mel)):
            library(log_mel[index : index + 1])

    return {
        "library, one by one": one_by_one,
        "library, batched": lambda: library(log_mel),
        "generic, batched": lambda: generic(log_mel),
        "ours": lambda: ours(log_mel),
    }


def compare(
    whisper: Whisper, size: str, n: int, batch: int, tokens: int, sampling: bool, repeats: int, skip: set[str]
) -> None:
    mels = whisper.model.config.num_mel_bins
    frames = 2 * whisper.model.config.max_source_positions
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, mels, frames, generator=generator).to(whisper.device, whisper.dtype)
    log_mel = noise if whisper.processor is None else speech(whisper, batch)
    runs = {name: run for name, run in ways(whisper, log_mel, n, tokens, sampling).items() if name not in skip}
    for name, run in ways(whisper, log_mel[:1], 2, 2, sampling).items():
        if name in runs:
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, run in runs.items():
                times[name].append(seconds(run, whisper.device))
        encoder = statistics.median(seconds(lambda: encode(whisper, log_mel), whisper.device) for _ in range(3))
    base = statistics.median(times["ours"])
    row = {
        "size": size,
        "device": str(whisper.device),
        "search": "sampling" if sampling else "beam",
        "n": n,
        "batch": batch,
        "tokens": tokens,
        "utterances_per_s": {name: round(batch / statistics.median(values), 3) for name, values in times.items()},
        "ours_is_faster_by": {
            name: round(statistics.median(values) / base, 2) for name, values in times.items() if name != "ours"
        },
        "encoder_share_of_ours": round(encoder / base, 2),
        "encoder_tflop_per_s": round(encoder_flops(whisper) * batch / encoder / 1e12, 3),
    }
    print(json.dumps(row), flush=True)


def encoder_flops(whisper: Whisper) -> float:
    """FLOPs of one window (two per multiply-add): convolutions, layers, cross-attention keys and values."""
    config = whisper.model.config
    width, positions = config.d_model, config.max_source_positions
    convolutions = 2 * positions * 3 * config.num_mel_bins * width + positions * 3 * width * width
    layer = 4 * positions * width**2 + 2 * positions**2 * width + 2 * positions * width * config.encoder_ffn_dim
    cross = config.decoder_layers * 2 * positions * width**2
    return 2.0 * (convolutions + config.encoder_layers * layer + cross)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "demo"], default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs="*", default=[5])
    parser.add_argument("--pools", type=int, nargs="*", default=[100])
    parser.add_argument("--batch", type=int, nargs="*", default=[4])
    parser.add_argument("--skip", nargs="*", default=[], help="ways to leave out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    from transformers.utils import logging

    logging.set_verbosity_error()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    demo = arguments.size == "demo"
    whisper = (
        load_whisper(DEMO / "models/whisper-nano", device, dtype) if demo else build(arguments.size, device, dtype)
    )
    for batch in arguments.batch:
        for sampling, sizes in ((False, arguments.beams), (True, arguments.pools)):
            for n in sizes:
                compare(
                    whisper,
                    arguments.size,
                    n,
                    batch,
                    arguments.tokens,
                    sampling,
                    arguments.repeats,
                    set(arguments.skip),
                )


if __name__ == "__main__":
    main()
