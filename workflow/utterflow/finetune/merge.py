"""Rule `merge_adapter`: a pretrained model and its adapter as one model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utterflow.config.language_models import LanguageModel
from utterflow.errors import UserError
from utterflow.finetune.saving import ONE_FILE, place_weights, stored_dtype
from utterflow.jobs import log
from utterflow.models.folders import model_digest, model_folder_of
from utterflow.models.kinds import kind_of
from utterflow.provenance import Stopwatch, write_meta


def merge_adapter(
    adapter: Sequence[Path], *, weights: Sequence[Path], meta: Path, cfg: Mapping[str, Any], code: str
) -> None:
    """Add an adapter's updates to the weights of its model, on the CPU and in the type in which those are stored.

    Args:
        adapter: files of the adapter, all of one folder.
        weights: files to write: weights, configuration, tokenizer, chat template.
        cfg: `model`, the pretrained model.

    Raises:
        UserError: the model or the adapter cannot be loaded.
    """
    from peft import PeftModel

    watch = Stopwatch()
    model = LanguageModel.model_validate(cfg["model"])
    folder, kind = model_folder_of(model), kind_of(model)
    dtype = stored_dtype(folder) or torch.float32
    processor = kind.load_processor(folder, model)
    base = kind.load_model(folder, model, torch.device("cpu"), dtype=dtype)
    try:
        merged: Any = PeftModel.from_pretrained(base, str(adapter[0].parent)).merge_and_unload()
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"the adapter does not fit the model: {error}", where=str(adapter[0].parent)) from None
    log.info("merged %s into %s, %s", adapter[0].parent, folder, dtype)
    target = weights[0].parent
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".merged-") as saved:
        merged.save_pretrained(saved, max_shard_size=ONE_FILE)
        processor.save_pretrained(saved)
        place_weights(Path(saved), list(weights))
    write_meta(
        meta,
        rule="merge_adapter",
        cfg=cfg,
        code=code,
        inputs=adapter,
        outputs={path.name: path for path in weights},
        seconds=watch.seconds(),
        extra={"model": str(folder), "model_digest": model_digest(folder), "dtype": str(dtype).removeprefix("torch.")},
    )
