"""Stage generate: answers of language models to a dataset's prompts."""
