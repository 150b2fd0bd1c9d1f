"""Text models: tokenizer and causal language model from a checkpoint folder, nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.models.devices import choose_dtype

PLAIN_TEMPLATE = "workflow/prompts/plain.jinja"
WEIGHTS = "model.safetensors"
WEIGHT_INDEX = "model.safetensors.index.json"


def check_text_model(folder: Path, *, weights: bool = True) -> None:
    """Raises a UserError unless the folder holds a checkpoint (with `weights` in safetensors form)."""
    if not folder.is_dir():
        raise UserError(
            "model folder not found",
            where=str(folder),
            fix="correct `model`, or fetch it first: snakemake fetch",
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            "the model folder is incomplete: it lacks config.json",
            where=str(folder),
            fix="save the model there with save_pretrained",
        )
    if weights and not (folder / WEIGHTS).is_file() and not (folder / WEIGHT_INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise UserError(
            f"the model folder is incomplete: it lacks {WEIGHTS}",
            where=str(folder),
            fix=f"{pickled[0]} is a pickle, which is never loaded: save the model again with save_pretrained"
            if pickled
            else "save the model there with save_pretrained, or fetch it anew",
        )


def load_tokenizer(folder: Path, cfg: LanguageModel) -> Any:
    """The checkpoint's tokenizer with its chat template, or with the configured one.

    Where it has no padding token, the end token pads: padding is never attended to, nor trained.

    Raises:
        UserError: the folder is missing or incomplete, or there is no usable chat template or end token.
    """
    from transformers import AutoTokenizer

    check_text_model(folder, weights=False)
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
    """A causal language model in evaluation mode: safetensors only.

    Args:
        dtype: of the weights, instead of the configured one.
        quantization: a `BitsAndBytesConfig`; the library then places the weights itself.

    Raises:
        UserError: the folder is missing or incomplete, the weights do not fit the architecture, or the attention
            implementation is not there.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    check_text_model(folder)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or choose_dtype(cfg.dtype, device),
            use_safetensors=True,
            local_files_only=True,
            attn_implementation=cfg.attention,
            trust_remote_code=cfg.trust_remote_code,
            output_loading_info=True,
            **({"quantization_config": quantization, "device_map": {"": device}} if quantization else {}),
        )
    except ImportError as error:
        raise UserError(
            f"cannot load the model: {error}",
            where=str(folder),
            fix="install what is missing, or write `attention: sdpa` under this model"
            if cfg.attention == "flash_attention_2"
            else "install what is missing",
        ) from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the model: {error}", where=str(folder)) from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"the checkpoint lacks {len(missing)} of the model's weights, e.g. {missing[0]}",
            where=str(folder),
            fix="save the whole model with save_pretrained (adapters merged into it)",
        )
    return (model if quantization else model.to(device)).eval()
