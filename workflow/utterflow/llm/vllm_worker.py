"""The process that runs vLLM, in vLLM's own environment: imports only vLLM and the standard library.

It reads JSON lines from standard input: first the settings, then one batch of requests per line; and writes one line
for each to standard output: first `ready`, then the answers as token ids. All that vLLM prints goes to standard error.
It ends when its input ends. An exception ends it with a traceback, which the other side shows the end of.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM reserves memory for


def serve(settings: Mapping[str, Any], batches: Iterator[dict[str, Any]], out: IO[str]) -> None:
    """Load the model and answer each batch.

    Args:
        settings: `engine`, `sampling`, `adapter` (folder, rank) and `structured`, as `vllm_backend` makes them.
        batches: `requests` of `{"prompt": token ids, "seed": number}`, their `max_tokens` and `schema`.
    """
    import torch
    import transformers
    import vllm  # type: ignore[import-not-found]
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
    from vllm.platforms import current_platform  # type: ignore[import-not-found]
    from vllm.sampling_params import StructuredOutputsParams  # type: ignore[import-not-found]

    if current_platform.device_type != settings["device"]:
        raise SystemExit(
            f"this vLLM was built for {current_platform.device_type}, but the job is to run on {settings['device']}"
        )
    adapter = settings["adapter"]
    engine = dict(settings["engine"])
    if adapter:
        engine |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": lora_rank(adapter["rank"])}
    if settings["structured"]:
        engine["structured_outputs_config"] = {"backend": "guidance"}
    model = LLM(**engine)
    lora = LoRARequest("adapter", 1, adapter["folder"]) if adapter else None
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    _say(out, {"ready": {"versions": versions, "device": str(current_platform.get_device_name())}})
    for batch in batches:
        schema = batch["schema"]
        done = model.generate(
            [{"prompt_token_ids": request["prompt"]} for request in batch["requests"]],
            [
                SamplingParams(
                    **settings["sampling"],
                    max_tokens=batch["max_tokens"],
                    seed=request["seed"],
                    logprobs=0,
                    detokenize=False,
                    structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
                )
                for request in batch["requests"]
            ],
            lora_request=lora,
            use_tqdm=False,
        )
        _say(out, {"answers": [[_answer(output) for output in item.outputs] for item in done]})


def lora_rank(rank: int) -> int:
    """The least rank that vLLM can reserve for an adapter of this rank."""
    return next((size for size in LORA_RANKS if size >= rank), LORA_RANKS[-1])


def _answer(output: Any) -> dict[str, Any]:
    """Token ids, and whether the model gave values that are no numbers: then the tokens' log-probabilities are none."""
    chosen = [step[token].logprob for token, step in zip(output.token_ids, output.logprobs or [], strict=False)]
    return {"tokens": list(output.token_ids), "broken": any(math.isnan(value) for value in chosen)}


def _say(out: IO[str], message: Mapping[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        settings = json.loads(sys.stdin.readline())
        serve(settings, (json.loads(line) for line in sys.stdin), out)


if __name__ == "__main__":
    main()
