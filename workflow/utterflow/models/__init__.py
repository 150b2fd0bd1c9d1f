"""Pretrained models: where they lie, how they are loaded."""
