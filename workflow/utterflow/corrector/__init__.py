"""Correction of n-best lists by a language model: data set and scores."""
