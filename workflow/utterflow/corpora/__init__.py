"""Corpora: adapters that read annotations, and the stage that makes a manifest of them.

An adapter is a generator function, `(config) -> Candidate | RejectedRow, ...`, with a second function that
names the annotation files it reads; both are entered in `adapters.py`.
"""
