"""The parts of a model that are trained, or are not: names of modules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """Dotted names of a model's modules beside its language model; empty where it has none.

    Attributes:
        encoder: hears.
        projector: turns what the encoder heard into what the language model reads; may be within the encoder.
        fixed: never trained.
    """

    encoder: str = ""
    projector: str = ""
    fixed: tuple[str, ...] = ()
