"""Pronunciation assessment (APA) and mispronunciation detection and diagnosis (MDD)."""
