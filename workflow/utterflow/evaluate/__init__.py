"""Evaluation: word and character error rates, n-best oracles, intervals."""
