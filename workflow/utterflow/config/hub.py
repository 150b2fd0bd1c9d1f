"""What sections that load a pretrained model share."""

from __future__ import annotations

import re

COMMIT = re.compile(r"^[0-9a-f]{40}$")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


def is_hub_name(model: str) -> bool:
    """Whether a model is a hub name `org/model`, and not a folder."""
    return bool(HUB_ID.match(model))


def revision_problem(model: str, revision: str | None) -> str | None:
    """Why this model cannot be fetched; None where it can, or is a folder."""
    if not is_hub_name(model):
        return None
    if not revision:
        return f"model {model!r} is a hub name and needs `revision: <commit>`; a folder is written ./{model}"
    if not COMMIT.match(revision):
        return f"revision {revision!r} is not a commit: write all 40 hex digits, as a branch or tag can move"
    return None
