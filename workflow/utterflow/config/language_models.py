"""Section `models`: language models, with or without ears and eyes."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from utterflow.config.base import Section, key, required
from utterflow.config.hub import is_hub_name, revision_problem

USES_MODEL = "build_corrector_data, generate_rationale, finetune, generate"


class LanguageModel(Section):
    """A pretrained model that is fine-tuned or asked."""

    model: str = required(
        "a folder with a checkpoint (`./...`, `/...` or with two slashes or more), or a hub name `org/model`",
        USES_MODEL,
        min_length=1,
        examples=["meta-llama/Llama-3.2-3B-Instruct"],
    )
    revision: str | None = key(None, "commit of the hub model; required for a hub name", USES_MODEL)
    kind: Literal["text", "audio", "vision"] = key("text", "what its messages may hold beside text", USES_MODEL)
    chat_template: str | None = key(
        None,
        "a Jinja file instead of the model's chat template; a base model without one needs it, e.g. "
        "workflow/prompts/plain.jinja",
        USES_MODEL,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto",
        "of the weights; `auto`: float32 on the CPU, bfloat16 on a GPU",
        "generate_rationale, finetune, generate",
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = key(
        "sdpa", "implementation of attention", "generate_rationale, finetune, generate"
    )
    trust_remote_code: bool = key(False, "run code that comes with the pinned checkpoint", USES_MODEL)

    @property
    def is_hub_model(self) -> bool:
        return is_hub_name(self.model)

    @model_validator(mode="after")
    def _pinned(self) -> LanguageModel:
        if problem := revision_problem(self.model, self.revision):
            raise ValueError(problem)
        return self
