"""ggufround: Hugging Face checkpoints to quantised GGUF files."""
