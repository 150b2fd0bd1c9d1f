"""Rationales: why labels fit what was heard, in a language model's words."""
