"""Safetensors headers, validated before anything is allocated for them.

Source: the safetensors format (github.com/huggingface/safetensors): 8 bytes of header length, a JSON header, then
the buffer. Offsets must be contiguous and cover the whole buffer; the reference implementation refuses the same.
"""

from __future__ import annotations

import os
import stat
import struct
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ggufround.checkpoint.json_file import parse_json
from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import InputError

HEADER_LIMIT = 100_000_000  # bytes, as in the reference implementation
COUNT_LIMIT = 300_000  # tensors of one file
MAX_DIMS = 16
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64, "BOOL": 8, "I8": 8, "U8": 8, "I16": 16, "U16": 16,
    "I32": 32, "U32": 32, "I64": 64, "U64": 64,
}  # fmt: skip


def read_shard(path: Path) -> dict[str, TensorRef]:
    """All tensors of one .safetensors file by name, in file order. Raises InputError for a header that lies."""
    header, start, size = _read_header(path)
    metadata = header.pop("__metadata__", None)
    if metadata is None:  # which MLX writes where it has nothing to say
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _fail(path, "its __metadata__ is not an object of strings")
    if len(header) > COUNT_LIMIT:
        _fail(path, f"it states {len(header)} tensors; {COUNT_LIMIT} are allowed")
    refs = [_tensor(path, name, entry, start) for name, entry in header.items()]
    refs.sort(key=lambda ref: (ref.offset, ref.nbytes))
    position = start
    for ref in refs:
        if ref.offset != position:
            kind = "overlaps the tensor before it" if ref.offset < position else "leaves a gap before it"
            _fail(path, f"tensor {ref.name!r} starts at byte {ref.offset}, not at {position}: it {kind}")
        position += ref.nbytes
    if position > size:
        _fail(path, f"its tensors end at byte {position}, but the file has only {size}: it is truncated")
    if position < size:
        _fail(path, f"{size - position} bytes follow its last tensor")
    return {ref.name: ref for ref in refs}


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(the JSON object, where the buffer starts, the file's size)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    except OSError as error:
        raise InputError(f"cannot open {path}: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a regular file")
        size = found.st_size
        if size < 8:
            _fail(path, f"it has only {size} bytes")
        (length,) = struct.unpack("<Q", os.pread(fd, 8, 0))
        if length > size - 8:
            _fail(path, f"it states a header of {length} bytes, {size - 8} are left in the file")
        if length > HEADER_LIMIT:
            _fail(path, f"it states a header of {length} bytes; {HEADER_LIMIT} are allowed")
        raw = os.pread(fd, length, 8)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(raw) != length or raw[:1] != b"{":
        _fail(path, "its header does not begin with '{'")
    return parse_json(raw, f"the header of {path}"), 8 + length, size


def _tensor(path: Path, name: str, entry: Any, start: int) -> TensorRef:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"the entry of tensor {name!r:.200} is not just dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _fail(path, f"tensor {name!r:.200} has the unknown dtype {dtype!r:.40}; known are {', '.join(BITS)}")
    if not _sizes(shape) or len(shape) > MAX_DIMS:
        _fail(path, f"tensor {name!r:.200} has the impossible shape {shape!r:.100}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _fail(path, f"tensor {name!r:.200} has the impossible data_offsets {offsets!r:.100}")
    bits, nbytes = prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        _fail(path, f"tensor {name!r:.200} of shape {shape} in {dtype} takes {bits / 8:.16g} bytes, not {nbytes}")
    return TensorRef(name, dtype, tuple(shape), path, start + offsets[0], nbytes)


def _sizes(value: Any) -> bool:
    """Whether it is a list of counts that fit 63 bits (a larger one could only slow the arithmetic down)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def _fail(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path} is not a sound safetensors file: {what}. Download it again")
