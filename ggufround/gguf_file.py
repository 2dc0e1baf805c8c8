"""GGUF version 3 on the byte level: typed fields, and the header of a file that is not yet written.

Source: ggml's gguf.md and gguf.cpp. The C reader demands names below 64 bytes, at most four dimensions, no
duplicate key or tensor, and every offset equal to the running sum of the padded sizes before it. Reading files that
others wrote, hostile ones included, is `gguf_read`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_NAME = 63  # bytes; GGML_MAX_NAME less the terminating zero
MAX_DIMS = 4


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


FORMATS: dict[Kind, str] = {
    Kind.U8: "B", Kind.I8: "b", Kind.U16: "H", Kind.I16: "h", Kind.U32: "I", Kind.I32: "i",
    Kind.F32: "f", Kind.BOOL: "?", Kind.U64: "Q", Kind.I64: "q", Kind.F64: "d",
}  # fmt: skip


class Field(NamedTuple):
    """A metadata value with its type on disk; `item` is the element kind of an array (value: a sequence)."""

    kind: Kind
    value: Any
    item: Kind | None = None


class TensorInfo(NamedTuple):
    """One row of the tensor table. `shape` is row-major; the file states it reversed. `offset` counts from the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


class Header(NamedTuple):
    data: bytes  # padded to the alignment, so that the tensor data follows at once
    values: Mapping[str, int]  # where the bytes of each STRING value start: room that can be filled in at close


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


def padded(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to the alignment, in bytes."""
    return -(-size // alignment) * alignment


def encode_header(metadata: Mapping[str, Field], tensors: Sequence[TensorInfo]) -> Header:
    """All bytes of a GGUF file before its tensor data."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    values: dict[str, int] = {}
    position = sum(map(len, parts))
    for key, field in metadata.items():
        value = _encode_value(field)
        entry = _encode_string(key) + struct.pack("<I", field.kind)
        if field.kind == Kind.STRING:
            values[key] = position + len(entry) + 8
        parts += [entry, value]
        position += len(entry) + len(value)
    for tensor in tensors:
        assert len(tensor.name.encode()) <= MAX_NAME, tensor.name
        assert 1 <= len(tensor.shape) <= MAX_DIMS, tensor
        dims = tensor.shape[::-1]
        parts.append(
            _encode_string(tensor.name)
            + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type_id, tensor.offset)
        )
    data = b"".join(parts)
    return Header(data + bytes(padded(len(data)) - len(data)), values)


def _encode_string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode_strings(texts: Sequence[str | bytes]) -> bytes:
    """As `_encode_string` for each, but the lengths of a vocabulary at once."""
    raws = [text if isinstance(text, bytes) else text.encode() for text in texts]
    lengths = np.fromiter(map(len, raws), "<u8", len(raws)).tobytes()
    parts: list[bytes] = [b""] * (2 * len(raws))
    parts[::2] = [lengths[i : i + 8] for i in range(0, len(lengths), 8)]
    parts[1::2] = raws
    return b"".join(parts)


def _encode_value(field: Field) -> bytes:
    if field.kind == Kind.STRING:
        return _encode_string(field.value)
    if field.kind != Kind.ARRAY:
        return struct.pack("<" + FORMATS[field.kind], field.value)
    assert field.item is not None
    head = struct.pack("<IQ", field.item, len(field.value))
    if field.item == Kind.STRING:
        return head + _encode_strings(field.value)
    return head + np.asarray(field.value, np.dtype(FORMATS[field.item]).newbyteorder("<")).tobytes()
