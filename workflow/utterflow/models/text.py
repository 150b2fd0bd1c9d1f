"""Text models: tokenizer and causal language model from a checkpoint folder, nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.models.loading import check_model_folder, load_weights

PLAIN_TEMPLATE = "workflow/prompts/plain.jinja"


def load_tokenizer(folder: Path, cfg: LanguageModel) -> Any:
    """The checkpoint's tokenizer with its chat template, or with the configured one.

    Where it has no padding token, the end token pads: padding is never attended to, nor trained.

    Raises:
        UserError: the folder is missing or incomplete, or there is no usable chat template or end token.
    """
    from transformers import AutoTokenizer

    check_model_folder(folder, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=cfg.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"cannot load the tokenizer: {error}", where=str(folder)) from None
    if cfg.chat_template is not None:
        tokenizer.chat_template = read_template(Path(cfg.chat_template))
    if not tokenizer.chat_template:
        raise UserError(
            "the model has no chat template",
            where=str(folder),
            fix=f"write under this model: `chat_template: {PLAIN_TEMPLATE}`, or a Jinja file of your own",
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end token (eos_token), so that an answer could not end",
            where=str(folder),
            fix="name one in tokenizer_config.json, and save the tokenizer again",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_template(path: Path) -> str:
    """A chat template from a Jinja file.

    Raises:
        UserError: the file is missing, is not UTF-8 text, or is not a Jinja template.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        text = path.read_text(encoding="utf-8")
        _compile_jinja_template(text)
    except FileNotFoundError:
        raise UserError("chat template not found", where=str(path), fix="correct `chat_template`") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text: {error.reason}", where=str(path)) from None
    except TemplateSyntaxError as error:
        raise UserError(f"not a Jinja template: {error.message}", where=f"{path}, line {error.lineno}") from None
    return text


def load_model(
    folder: Path,
    cfg: LanguageModel,
    device: torch.device,
    *,
    dtype: torch.dtype | None = None,
    quantization: Any = None,
) -> Any:
    """A causal language model in evaluation mode.

    Raises:
        UserError: see `load_weights`.
    """
    from transformers import AutoModelForCausalLM

    return load_weights(
        AutoModelForCausalLM,
        folder,
        cfg,
        device,
        dtype=dtype,
        quantization=quantization,
        trust_remote_code=cfg.trust_remote_code,
    )
