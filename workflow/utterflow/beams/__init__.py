"""Beams: CTC posteriors -> n-best lists of word sequences, with a lexicon and a word n-gram."""
