"""Stage signals: from neural recordings or audio to CTC logits."""
