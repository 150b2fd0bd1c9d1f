"""Published results on speechocean762's test set, and how far others are from them.

Ahn & Nam 2025, "English Pronunciation Evaluation without Complex Joint Training: LoRA Fine-tuned Speech Multimodal
LLM" (arXiv:2509.02915), table 3; there too the correlations of GOPT (Gong et al. 2022, arXiv:2205.03432).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TABLE = "arXiv:2509.02915, table 3"
TOLERANCE = 0.05
ROUNDING = 1e-9

PUBLISHED: dict[str, dict[str, float]] = {
    "lora_epoch_3": {
        "accuracy_pcc": 0.656, "fluency_pcc": 0.727, "prosodic_pcc": 0.711, "total_pcc": 0.675,
        "wer": 0.140, "per": 0.114, "paper_f1": 0.724, "paper_precision": 0.728, "paper_recall": 0.721,
    },
    "lora_epoch_4": {
        "accuracy_pcc": 0.645, "fluency_pcc": 0.733, "prosodic_pcc": 0.714, "total_pcc": 0.668,
        "wer": 0.148, "per": 0.121, "paper_f1": 0.721,
    },
    "unfrozen_epoch_4": {
        "accuracy_pcc": 0.743, "fluency_pcc": 0.717, "prosodic_pcc": 0.704, "total_pcc": 0.666,
        "wer": 0.142, "per": 0.142, "paper_f1": 0.667,
    },
    "gopt": {"accuracy_pcc": 0.714, "fluency_pcc": 0.753, "prosodic_pcc": 0.760, "total_pcc": 0.742},
}  # fmt: skip


class Compared(NamedTuple):
    """A metric beside the published one; `difference` is value - published, None where there is no value."""

    published: float
    value: float | None
    difference: float | None
    within: bool | None


def compare(metrics: Mapping[str, float | None]) -> dict[str, dict[str, Compared]]:
    """Published system -> metric -> how far `metrics` is from it; `within`: by no more than `TOLERANCE`."""
    return {
        system: {name: _compared(value, metrics.get(name)) for name, value in numbers.items()}
        for system, numbers in PUBLISHED.items()
    }


def _compared(published: float, value: float | None) -> Compared:
    if value is None:
        return Compared(published, None, None, None)
    difference = value - published
    return Compared(published, value, difference, abs(difference) <= TOLERANCE + ROUNDING)
