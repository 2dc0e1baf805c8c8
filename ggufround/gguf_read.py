"""The header of a GGUF file that somebody else wrote, and perhaps wrote to do harm.

Every length is compared with the bytes that the file still has before anything is allocated for it, sizes are Python
integers, and the header as a whole may take at most HEADER_LIMIT bytes; what comes out takes less than ten times as
much memory. Beyond what the C reader (gguf.cpp) refuses, this one refuses tensors outside the file, empty
dimensions, alignments above ALIGNMENT_LIMIT and unreasonable counts. Layout: ggml's gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ggufround.errors import InputError
from ggufround.ggml_types import GGML_TYPES
from ggufround.gguf_file import ALIGNMENT, FORMATS, MAGIC, MAX_DIMS, MAX_NAME, Field, Kind, padded

HEADER_LIMIT = 64 << 20  # bytes; the largest vocabularies of today take 16 MB
ELEMENT_LIMIT = 1 << 22  # of all arrays together; the largest vocabularies have 1.3 million
COUNT_LIMIT = 100_000  # tensors, and keys
KEY_LIMIT = 65_535  # bytes, as gguf.md says
ALIGNMENT_LIMIT = 1 << 20
FIRST_READ = 1 << 20
SCALARS = {kind: struct.Struct("<" + letter) for kind, letter in FORMATS.items()}
U32 = SCALARS[Kind.U32]
U64 = SCALARS[Kind.U64]


class GGUFTensor(NamedTuple):
    """One row of the tensor table; `shape` is row-major (the file states it reversed), `offset` counts from the file's
    start, `nbytes` leaves the padding out."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    version: int
    metadata: Mapping[str, Field]  # arrays as lists; a string that is not UTF-8 stays bytes
    tensors: Mapping[str, GGUFTensor]
    alignment: int
    data_offset: int  # where tensor data starts, from the file's start
    size: int  # of the file, in bytes


def read_gguf(path: Path) -> GGUFHeader:
    """All that a GGUF file says before its tensor data. Raises InputError for whatever is wrong with it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a regular file")
        return _parse(_Bytes(path, fd, found.st_size))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)


class _Bytes:
    """The front of a file, read as far as it is asked for. `need` comes before every look at `data`."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.fd, self.size = path, fd, size
        self.data = os.pread(fd, FIRST_READ, 0)
        self.position = 0
        self.elements = 0

    def fail(self, what: str) -> NoReturn:
        raise InputError(f"{self.path} is not a sound GGUF file: {what}. Download or convert it again")

    def need(self, count: int, what: str) -> None:
        """Make data[position : position + count] available, or refuse."""
        end = self.position + count
        if end <= len(self.data):
            return
        if end > self.size:
            self.fail(f"{what} takes {count} bytes, {self.size - self.position} are left in the file")
        if end > HEADER_LIMIT:
            self.fail(f"its header is larger than the {HEADER_LIMIT >> 20} MiB that are allowed ({what})")
        want = min(max(end, 2 * len(self.data)), self.size, HEADER_LIMIT)
        self.data += os.pread(self.fd, want - len(self.data), len(self.data))
        if end > len(self.data):
            self.fail("it shrank while it was read")

    def scalar(self, kind: Kind, what: str) -> Any:
        reader = SCALARS[kind]
        self.need(reader.size, what)
        (value,) = reader.unpack_from(self.data, self.position)
        if kind == Kind.BOOL and self.data[self.position] > 1:
            self.fail(f"{what} is neither true nor false")
        self.position += reader.size
        return value

    def u32(self, what: str) -> int:
        return int(self.scalar(Kind.U32, what))

    def u64(self, what: str) -> int:
        return int(self.scalar(Kind.U64, what))

    def raw_string(self, what: str, limit: int = HEADER_LIMIT) -> bytes:
        length = self.u64(f"the length of {what}")
        if length > limit:
            self.fail(f"{what} is {length} bytes long, {limit} are allowed")
        self.need(length, what)
        self.position += length
        return self.data[self.position - length : self.position]

    def name(self, what: str, limit: int) -> str:
        raw = self.raw_string(what, limit)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8: {raw!r:.60}")

    def strings(self, count: int, what: str) -> list[str | bytes]:
        """`count` strings; the loop that decides how fast a vocabulary is read, hence the local names."""
        out: list[str | bytes] = []
        unpack, data, position, available = U64.unpack_from, self.data, self.position, len(self.data)
        for _ in range(count):
            start = position + 8
            end = start + unpack(data, position)[0] if start <= available else available + 1
            if end <= available:
                raw, position = data[start:end], end
            else:
                self.position = position
                raw = self.raw_string(f"an element of {what}")
                data, position, available = self.data, self.position, len(self.data)
            try:
                out.append(raw.decode())
            except UnicodeDecodeError:
                out.append(raw)
        self.position = position
        return out


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _parse(source: _Bytes) -> GGUFHeader:
    magic = source.data[:4]
    if magic != MAGIC:
        source.fail(f"it begins with {magic!r}, not with {MAGIC!r}")
    source.position = 4
    version = source.u32("the version")
    if version not in (2, 3):
        reason = "big-endian files are not supported" if version & 0xFFFF == 0 and version else "2 and 3 are supported"
        source.fail(f"it states version {version}; {reason}")
    tensor_count = source.u64("the number of tensors")
    key_count = source.u64("the number of keys")
    if max(tensor_count, key_count) > COUNT_LIMIT:
        source.fail(f"it states {tensor_count} tensors and {key_count} keys; {COUNT_LIMIT} of each are allowed")
    metadata: dict[str, Field] = {}
    for number in range(key_count):
        key = source.name(f"key {number}", KEY_LIMIT)
        if not key or key in metadata:
            source.fail(f"key {number}, {key!r:.80}, is {'a duplicate' if key else 'empty'}")
        metadata[key] = _value(source, f"the value of {key!r:.80}")
    alignment = _alignment(source, metadata.get("general.alignment"))
    table = [_tensor_row(source, number) for number in range(tensor_count)]
    data_offset = padded(source.position, alignment)
    return GGUFHeader(
        version, metadata, _tensors(source, table, alignment, data_offset), alignment, data_offset, source.size
    )


def _value(source: _Bytes, what: str) -> Field:
    kind = _kind(source, what)
    if kind == Kind.STRING:
        return Field(kind, _text(source.raw_string(what)))
    if kind != Kind.ARRAY:
        return Field(kind, source.scalar(kind, what))
    item = _kind(source, what)
    if item == Kind.ARRAY:
        source.fail(f"{what} is an array of arrays")
    count = source.u64(f"the length of {what}")
    source.elements += count
    if source.elements > ELEMENT_LIMIT:
        source.fail(f"its arrays have {source.elements} elements ({what}); {ELEMENT_LIMIT} are allowed in all")
    smallest = 8 if item == Kind.STRING else SCALARS[item].size
    source.need(count * smallest, what)
    if item == Kind.STRING:
        return Field(kind, source.strings(count, what), item)
    start = source.position
    source.position += count * smallest
    if item == Kind.BOOL and count and max(source.data[start : source.position]) > 1:
        source.fail(f"{what} holds values that are neither true nor false")
    values = np.frombuffer(source.data, np.dtype(FORMATS[item]).newbyteorder("<"), count, start)
    return Field(kind, values.tolist(), item)


def _kind(source: _Bytes, what: str) -> Kind:
    number = source.u32(f"the type of {what}")
    if number > max(Kind):
        source.fail(f"{what} has the unknown type {number}")
    return Kind(number)


def _alignment(source: _Bytes, field: Field | None) -> int:
    if field is None:
        return ALIGNMENT
    value = field.value
    if field.kind != Kind.U32 or not 0 < value <= ALIGNMENT_LIMIT or value & (value - 1):
        source.fail(f"general.alignment is {value!r:.80}; a power of two up to {ALIGNMENT_LIMIT} is allowed")
    return int(value)


def _tensor_row(source: _Bytes, number: int) -> tuple[str, tuple[int, ...], int, int]:
    """(name, row-major shape, type id, offset from the data)."""
    name = source.name(f"the name of tensor {number}", MAX_NAME)
    count = source.u32(f"the number of dimensions of {name!r}")
    if not 1 <= count <= MAX_DIMS:
        source.fail(f"tensor {name!r} has {count} dimensions; 1 to {MAX_DIMS} are allowed")
    source.need(8 * count, f"the shape of {name!r}")
    dims = struct.unpack_from(f"<{count}Q", source.data, source.position)
    source.position += 8 * count
    return name, dims[::-1], source.u32(f"the type of {name!r}"), source.u64(f"the offset of {name!r}")


def _tensors(
    source: _Bytes, table: list[tuple[str, tuple[int, ...], int, int]], alignment: int, data_offset: int
) -> dict[str, GGUFTensor]:
    """The rows, checked: every offset is the sum of the padded sizes before it, as gguf.cpp demands."""
    tensors: dict[str, GGUFTensor] = {}
    expected = 0
    for name, shape, type_id, offset in table:
        kind = GGML_TYPES.get(type_id)
        if kind is None:
            source.fail(f"tensor {name!r} has the unknown type {type_id}")
        if name in tensors:
            source.fail(f"tensor {name!r} appears twice")
        if min(shape) == 0 or shape[-1] % kind.block:
            source.fail(f"tensor {name!r} has shape {shape}: {kind.name} wants rows of a multiple of {kind.block}")
        if offset != expected:
            source.fail(f"tensor {name!r} starts at {offset}, not at {expected} where the one before it ends")
        nbytes = prod(shape) // kind.block * kind.nbytes
        if data_offset + offset + nbytes > source.size:
            source.fail(f"tensor {name!r} ends at byte {data_offset + offset + nbytes}, but the file has {source.size}")
        tensors[name] = GGUFTensor(name, kind.name, shape, data_offset + offset, nbytes)
        expected = offset + padded(nbytes, alignment)
    return tensors
