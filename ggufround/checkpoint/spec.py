"""Checkpoint: what the headers of a model's files say. No weight is read to build one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from ggufround.gguf_file import Field


@dataclass(frozen=True)
class TensorRef:
    """Where one tensor lies. It is read as `rows` rows of `columns` values (a 1-D tensor is one row).

    A packed weight is stored as several tensors; `path` and `offset` are those of its codes, `nbytes` those of all.
    """

    name: str
    dtype: str  # "BF16", "F16", "F32", "F64", "F8_E4M3", ..., an integer type, a ggml type's name, or a packing's
    shape: tuple[int, ...]  # row-major, as the checkpoint states it (a GGUF's dimensions are reversed)
    path: Path
    offset: int  # bytes from the start of the file
    nbytes: int
    scale: TensorRef | None = None  # FP8: multiplies the weight, broadcast over blocks
    scale_block: tuple[int, int] = (0, 0)  # FP8: rows and columns that share a scale; 0 means all of them
    packing: Packing | None = None

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def stored(self) -> tuple[TensorRef, ...]:
        """The tensors in files that it is read from."""
        if self.packing is not None:
            return tuple(member.ref for member in self.packing.members)
        return (self,) if self.scale is None else (self, self.scale)


@dataclass(frozen=True)
class Member:
    """One stored tensor of a packed weight, seen as a matrix, and how the weight's rows lie in it.

    rows     one after the other
    columns  each is a column
    down     codes in words of 32 bits, down the columns: 32 rows take as many words as a code has bits
    across   likewise, along the rows
    whole    it belongs to all of them
    """

    ref: TensorRef
    lies: Literal["rows", "columns", "down", "across", "whole"]


@dataclass(frozen=True)
class Packing:
    """A weight as codes of `bits` bits; each `group` columns of a row share a scale (the last may be fewer).

    int           scale * (code - zero), or scale * code + bias; without zeros, zero is the middle code
    MXFP4, NVFP4  E2M1[code] * scale, of NVFP4 divided by `divisor`
    """

    kind: Literal["int", "MXFP4", "NVFP4"]
    bits: int
    group: int
    codes: Member
    scales: Member
    zeros: Member | None = None
    biases: Member | None = None
    order: Member | None = None  # the group of each column
    divisor: Member | None = None
    symmetric: bool = False  # the config says that every zero is the middle code
    reordered: bool = False  # the config says that `order` is not 0, 0, ..., 1, 1, ...
    lowered: bool = False  # zeros are stored less one
    awq: bool = False  # words hold eight rows' codes in AWQ's order

    @property
    def name(self) -> str:
        return f"INT{self.bits}" if self.kind == "int" else self.kind

    @property
    def members(self) -> tuple[Member, ...]:
        """All that are stored, in the order in which they are read."""
        given = (self.codes, self.scales, self.zeros, self.biases, self.order, self.divisor)
        return tuple(member for member in given if member is not None)


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
