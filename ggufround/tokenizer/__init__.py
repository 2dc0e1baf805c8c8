"""Tokenizer files to `tokenizer.*` metadata, as llama.cpp writes it."""

from ggufround.tokenizer.load import load_vocab
from ggufround.tokenizer.spec import Vocab

__all__ = ["Vocab", "load_vocab"]
