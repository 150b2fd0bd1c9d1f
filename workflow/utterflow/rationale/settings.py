"""A rationale's validated sections, as a job has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utterflow.config.base import placement_keys
from utterflow.config.language_models import LanguageModel
from utterflow.config.rationale import Rationale
from utterflow.config.servers import Server
from utterflow.llm.api import server_of
from utterflow.rationale.inputs import server_placement


@dataclass(frozen=True)
class Settings:
    """A rationale's section, and that of whom it asks: a server or a local model."""

    rationale: Rationale
    server: Server | None
    model: LanguageModel | None

    @property
    def answering(self) -> str:
        """The name of the model."""
        entry = self.server or self.model
        return entry.model if entry else ""

    def row(self) -> dict[str, Any]:
        """What rationales depend on."""
        return {
            "rationale": _dump(self.rationale, {"nbest_values", "shards"}),
            "server": self.server and _dump(self.server, set()),
            "model": self.model and self.model.model_dump(mode="json"),
        }


def settings_of(cfg: Mapping[str, Any], placed: Mapping[str, Any]) -> Settings:
    """The sections out of a rule's `cfg`, and out of a job's resources, which say where it asks."""
    server, model = cfg["server"], cfg["model"]
    return Settings(
        Rationale.model_validate(cfg["rationale"]),
        server_of(server, server_placement(placed)) if server else None,
        LanguageModel.model_validate(model) if model else None,
    )


def _dump(section: Rationale | Server, exclude: set[str]) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude=placement_keys(type(section)) | exclude)
