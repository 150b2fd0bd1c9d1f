"""Supervised fine-tuning data: one record for all tasks, mixed and tokenised."""
