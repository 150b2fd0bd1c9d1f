"""Word n-gram models: KenLM's programs built from source, and models trained with them."""
