"""What all config sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"[a-z0-9][a-z0-9_]*"

Name = Annotated[str, Field(pattern=rf"^{NAME_PATTERN}$")]
MaxRejected = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all config sections: unknown keys are errors, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def key(default: Any, description: str, reruns: str, **limits: Any) -> Any:
    """A config key.

    Args:
        reruns: the first rule(s) that rerun when the key changes, comma-separated; what follows them reruns
            too. `none` for keys that only place or size a job.
    """
    return Field(default, description=description, json_schema_extra={"reruns": reruns}, **limits)


def placement_keys(section: type[Section]) -> set[str]:
    """The keys of a section that only place or size a job (`reruns` is `none`): no result depends on them."""
    extras = {name: field.json_schema_extra for name, field in section.model_fields.items()}
    return {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("reruns") == "none"}


def required(description: str, reruns: str, **limits: Any) -> Any:
    """A config key without a default."""
    return Field(description=description, json_schema_extra={"reruns": reruns}, **limits)
