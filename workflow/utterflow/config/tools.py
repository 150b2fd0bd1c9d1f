"""Section `tools`: programs that are not Python packages of the main environment."""

from __future__ import annotations

from utterflow.config.base import Section, key


class Tools(Section):
    """Where programs are."""

    kenlm_bin: str | None = key(
        None, "folder with KenLM's lmplz and build_binary; null: built from KenLM's source package", "train_ngram"
    )
    vllm_python: str = key(
        ".venv-vllm/bin/python", "Python of the environment with vLLM (`make setup-vllm` makes one)", "none"
    )
