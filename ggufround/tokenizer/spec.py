"""Vocab: all that a GGUF file says about a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ggufround.gguf_file import Field


@dataclass(frozen=True)
class Vocab:
    """`metadata` holds the tokenizer.* keys in llama.cpp's order; the rest is for messages and checks."""

    model: str  # "gpt2", "llama", ...
    pre: str  # "default", "llama-bpe", ...
    size: int  # number of tokens, padding included
    metadata: Mapping[str, Field] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the user should know, e.g. how the pre-tokenizer was found
