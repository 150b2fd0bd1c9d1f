"""What the rule `mix_sft` reads, as the configuration names it; used when the workflow is parsed."""

from __future__ import annotations

from collections.abc import Sequence

from utterflow.config.training import MixPart


def mixed_files(parts: Sequence[MixPart]) -> list[str]:
    """The files of a training's parts, in their order."""
    return [f"results/sft/{part.dataset}/{part.split}.jsonl" for part in parts]
