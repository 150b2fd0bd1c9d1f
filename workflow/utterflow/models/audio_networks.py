"""Audio language models of transformers, with logits only where they are asked for.

The library's own classes make logits of every position, recordings included: gigabytes for a batch of long prompts.
Their weights, settings and names are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as qwen2_5_omni
from transformers.models.qwen2_audio import modeling_qwen2_audio as qwen2_audio


class _KeepsLogits:
    """A forward pass with `logits_to_keep`, for models of a backbone `model` and a head `lm_head`."""

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """The backbone's output and logits [rows, kept positions, vocabulary].

        Args:
            logits_to_keep: so many positions from the end (0: all), or their numbers.

        Raises:
            ValueError: labels were given: the loss is computed from the logits, not here.
        """
        if labels is not None:
            raise ValueError("this model computes no loss")
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            attention_mask=attention_mask,
            feature_attention_mask=feature_attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **more,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        if self.training and input_features is None:
            logits = logits + _nothing(self.model).to(logits.dtype)
        return CausalLMOutputWithPast(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: the library renames weights of older checkpoints only for its own classes, and these are the same."""
        return False


def _nothing(model: Any) -> Tensor:
    """Zero, made of the weights that hear: a batch without recordings gives them gradients of zero, not none.

    Several processes wait for each other's gradients, also where one of them had only text.
    """
    ears = (part for name, part in model.named_children() if name not in ("language_model", "visual"))
    zeros = [weight.sum() * 0 for part in ears for weight in part.parameters() if weight.requires_grad]
    return torch.stack(zeros).sum() if zeros else torch.zeros((), device=model.device)


class Qwen2AudioForConditionalGeneration(  # type: ignore[no-untyped-call]
    _KeepsLogits, qwen2_audio.Qwen2AudioForConditionalGeneration
):
    """Qwen2-Audio (Chu et al. 2024, arXiv:2407.10759)."""


class Qwen2_5OmniThinkerForConditionalGeneration(  # type: ignore[no-untyped-call]  # noqa: N801
    _KeepsLogits, qwen2_5_omni.Qwen2_5OmniThinkerForConditionalGeneration
):
    """The thinker of Qwen2.5-Omni (Xu et al. 2025, arXiv:2503.20215): what listens and writes, without the talker."""

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """Positions [rows, length], as of text: without pictures all three axes of rotation have these.

        The library's own are found from what the batch before left in the model (`rope_deltas`).
        """
        positions: Tensor = GenerationMixin._prepare_position_ids_for_generation(  # type: ignore[no-untyped-call]
            self, inputs_tensor, model_kwargs
        )
        return positions


NETWORKS = {
    network.__name__: network
    for network in (Qwen2AudioForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration)
}
