"""GGUF version 3 on the byte level: typed fields, header writing. Reading lives beside it in `gguf_read`.

Source: ggml/docs/gguf.md and gguf.cpp (constraints of the C reader: names below 64 bytes, at most 4 dimensions,
offsets equal to the running padded sum, no duplicate keys or tensors).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32


class Kind(IntEnum):
    """gguf_metadata_value_type."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


class Field(NamedTuple):
    """A metadata value with its type on disk; `item` is the element kind of an array (value: a sequence)."""

    kind: Kind
    value: Any
    item: Kind | None = None


def u32(value: int) -> Field:
    return Field(Kind.U32, value)


def f32(value: float) -> Field:
    return Field(Kind.F32, value)


def boolean(value: bool) -> Field:
    return Field(Kind.BOOL, value)


def string(value: str) -> Field:
    return Field(Kind.STRING, value)


def array(item: Kind, value: Any) -> Field:
    return Field(Kind.ARRAY, value, item)
