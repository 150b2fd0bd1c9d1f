"""The files of a rationale's prompts."""

from __future__ import annotations

from utterflow.config.rationale import Rationale

SYSTEM, FEW_SHOT, ONE_STAGE = "system.txt", "few_shot.json", "one_stage.txt"
TWO_STAGES = ("intent_candidates.txt", "slot_candidates.txt", "intent_pruning.txt", "slot_grounding.txt")


def prompt_files(entry: Rationale) -> list[str]:
    """The files of the prompts' folder that are used."""
    names = [SYSTEM, *([ONE_STAGE] if entry.stages == "one" else TWO_STAGES), *([FEW_SHOT] if entry.few_shot else [])]
    return [f"{entry.prompts}/{name}" for name in names]
