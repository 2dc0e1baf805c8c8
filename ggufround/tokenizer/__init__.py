"""Tokenizer files to tokenizer.ggml.* metadata."""
