"""Checkpoint: what the headers of a model's files say. No weight is read to build one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ggufround.gguf_file import Field


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies. It is read as `rows` rows of `columns` values (a 1-D tensor is one row)."""

    name: str
    dtype: str  # "BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2", an integer type, or a ggml type's name
    shape: tuple[int, ...]  # row-major, as the checkpoint states it (a GGUF's dimensions are reversed)
    path: Path
    offset: int  # bytes from the start of the file
    nbytes: int
    scale: TensorRef | None = None  # FP8: multiplies the weight, broadcast over blocks
    scale_block: tuple[int, int] = (0, 0)  # FP8: rows and columns that share a scale; 0 means all of them

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])


@dataclass(frozen=True)
class Checkpoint:
    """A model as found: `tensors` by name; `config` is config.json; `files` the small side files by base name."""

    source: str  # as the user gave it
    root: Path
    tensors: Mapping[str, TensorRef]
    config: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)  # config.json, tokenizer.json, ...
    metadata: Mapping[str, Field] = field(default_factory=dict)  # a .gguf source's own key-values; empty otherwise

    @property
    def is_gguf(self) -> bool:
        return bool(self.metadata)
