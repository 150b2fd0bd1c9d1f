"""Fine-tuning of any model on SFT rows: one trainer for all tasks."""
