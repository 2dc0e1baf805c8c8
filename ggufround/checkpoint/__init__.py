"""Checkpoints: headers of safetensors shards, hub repositories and .gguf files, and row-slab reads."""
