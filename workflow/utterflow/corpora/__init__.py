"""Corpora: adapters that read annotations, and the stage that makes a manifest of them.

An adapter is a generator function, `(config) -> Candidate | RejectedRow, ...`, with a second function that
names the annotation files it reads; both are entered in `adapters.py`.
"""

from utterflow.corpora.adapters import ADAPTERS, source_files
from utterflow.corpora.inputs import listing_of, rule_inputs

__all__ = ["ADAPTERS", "listing_of", "rule_inputs", "source_files"]
