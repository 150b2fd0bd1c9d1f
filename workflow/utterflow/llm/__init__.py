"""Asking language models: one request and answer, several back ends."""
