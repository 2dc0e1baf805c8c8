"""Rows of a packed weight: which bytes of its members they need, and what codes, scales and zero points these hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint.decoding import F32, U8, decoded
from ggufround.checkpoint.shards import BITS
from ggufround.checkpoint.spec import Member, Packing, TensorRef
from ggufround.errors import InputError
from ggufround_kernels.packing import unpack_awq, unpack_bits

WORD = 32  # rows that fill whole words, whatever a code's bits are
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
SCALES = {"MXFP4": "F8_E8M0", "NVFP4": "F8_E4M3"}


@dataclass(frozen=True)
class Block:
    """A rectangle of a member seen as a matrix: rows [top, bottom), and of each the bytes [left, right)."""

    top: int
    bottom: int
    left: int
    right: int
    row_bytes: int  # of the whole matrix

    @property
    def nbytes(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)


class Parts(NamedTuple):
    """Some rows of a packed weight [rows, n]."""

    codes: U8  # [rows, n]
    scales: F32 | U8  # [rows, groups]; of FP4 as they are stored: E8M0, E4M3
    zeros: F32 | None = None  # [rows, groups]; None where the packing has none: the middle code, or biases
    biases: F32 | None = None  # [rows, groups]
    order: NDArray[np.int32] | None = None  # [n]: the group of each column; None where groups are neighbours
    factor: np.float32 = np.float32(1)  # NVFP4: of the whole matrix

    def rows(self, order: NDArray[np.int64]) -> Parts:
        """The rows in another order."""
        zeros, biases = (None if part is None else part[order] for part in (self.zeros, self.biases))
        return self._replace(codes=self.codes[order], scales=self.scales[order], zeros=zeros, biases=biases)


def block_of(packing: Packing, member: Member, first: int, count: int) -> Block:
    """What rows [first, first + count) of the weight need of a member."""
    ref = member.ref
    item = BITS[ref.dtype] // 8
    width = ref.columns * item
    words = first // WORD * packing.bits, -(-(first + count) // WORD) * packing.bits
    match member.lies:
        case "rows":
            return Block(first, first + count, 0, width, width)
        case "columns":
            return Block(0, ref.rows, first * item, (first + count) * item, width)
        case "down":
            return Block(words[0], min(words[1], ref.rows), 0, width, width)
        case "across":
            return Block(0, ref.rows, words[0] * item, min(words[1] * item, width), width)
        case _:
            return Block(0, ref.rows, 0, width, width)


def unpack(ref: TensorRef, blocks: Iterable[U8], first: int, count: int) -> Parts:
    """What the blocks of all members, uint8 [rows, bytes] in their order, say of rows [first, first + count) of `ref`.

    Raises InputError for the group of a column that does not exist.
    """
    packing = ref.packing
    assert packing is not None
    given = dict(zip((member.ref.name for member in packing.members), blocks, strict=True))

    def raw(member: Member) -> U8:
        return given[member.ref.name]

    rows = slice(first % WORD, first % WORD + count)  # of those that whole words hold
    codes = _codes(packing, raw(packing.codes), rows, ref.columns)
    if packing.kind != "int":
        factor = np.float32(1)
        if packing.divisor is not None:
            factor = np.float32(1) / decoded(raw(packing.divisor), "F32", 1)[0, 0]
        return Parts(codes, raw(packing.scales).copy(), factor=factor)
    zeros = None if packing.zeros is None else _zeros(packing, packing.zeros, raw(packing.zeros), rows)
    biases = None if packing.biases is None else _floats(packing.biases, raw(packing.biases))
    order = None if packing.order is None else _order(ref, packing, packing.order, raw(packing.order))
    return Parts(codes, _floats(packing.scales, raw(packing.scales)), zeros, biases, order)


def dequantise(packing: Packing, parts: Parts, out: F32) -> None:
    """The weights that the parts stand for, to `out`, float32 [rows, n].

    Products are exact in float32 but for FP4's, of which NVFP4's are rounded once.
    """
    if packing.kind != "int":
        for row, codes in zip(out, parts.codes, strict=True):  # indices take eight bytes each
            np.take(E2M1, codes, out=row, mode="clip")
        scales = decoded(np.asarray(parts.scales, np.uint8), SCALES[packing.kind], parts.scales.shape[1])
        _apply(np.multiply, out, scales, packing.group, None)
        if packing.kind == "NVFP4":
            out *= parts.factor
        return
    np.copyto(out, parts.codes)
    if parts.zeros is not None:
        _apply(np.subtract, out, parts.zeros, packing.group, parts.order)
    elif parts.biases is None:
        out -= np.float32(1 << (packing.bits - 1))
    _apply(np.multiply, out, parts.scales, packing.group, parts.order)
    if parts.biases is not None:
        _apply(np.add, out, parts.biases, packing.group, parts.order)


def _apply(change: np.ufunc, out: F32, values: Any, group: int, order: NDArray[np.int32] | None) -> None:
    """out = change(out, the value of each one's group), for values [rows, groups]."""
    rows, n = out.shape
    if order is None and n % group == 0:
        view = out.reshape(rows, -1, group)
        change(view, values[:, :, None], out=view)
    else:
        change(out, values[:, order] if order is not None else np.repeat(values, group, axis=1)[:, :n], out=out)


def _codes(packing: Packing, raw: U8, rows: slice, columns: int) -> U8:
    match packing.codes.lies:
        case "rows" if packing.codes.ref.dtype == "I8":
            return raw ^ np.uint8(128)
        case "rows":
            return _of_streams(raw, packing.bits, columns)
        case "columns":
            return _of_streams(_transposed(raw), packing.bits, columns)
        case _:
            return np.ascontiguousarray(_of_awq(raw)[rows])


def _zeros(packing: Packing, zeros: Member, raw: U8, rows: slice) -> F32:
    """[rows, groups]."""
    if zeros.ref.dtype == "I8":
        return raw.view(np.int8).astype(np.float32) + np.float32(1 << (packing.bits - 1))
    if packing.awq:
        found = _of_awq(raw)
    else:
        stream = _transposed(raw) if zeros.lies == "down" else raw
        found = _of_streams(stream, packing.bits, stream.shape[1] * 8 // packing.bits).T
    return np.asarray(found[rows], np.float32) + np.float32(packing.lowered)


def _order(ref: TensorRef, packing: Packing, order: Member, raw: U8) -> NDArray[np.int32] | None:
    found = raw.copy().view("<i4").reshape(-1).astype(np.int32)
    if (found == np.arange(ref.columns) // packing.group).all():
        return None
    groups = packing.scales.ref.rows if packing.scales.lies == "columns" else packing.scales.ref.columns
    if found.min() < 0 or found.max() >= groups:
        raise InputError(f"{order.ref.name} puts columns into groups {found.min()} to {found.max()} of only {groups}")
    return found


def _floats(member: Member, raw: U8) -> F32:
    """[rows, groups] of scales or biases."""
    found = decoded(raw, member.ref.dtype, raw.shape[1] * 8 // BITS[member.ref.dtype])
    return np.ascontiguousarray(found.T) if member.lies == "columns" else found


def _of_streams(raw: U8, bits: int, count: int) -> U8:
    """[rows, count]: the codes at the beginning of each row's stream, which may be padded or lack unused bits."""
    size = -(-count // 8) * bits
    if raw.shape[1] < size:
        raw = np.pad(raw, ((0, 0), (0, size - raw.shape[1])))
    found = unpack_bits(raw[:, :size], bits)
    return found if found.shape[1] == count else np.ascontiguousarray(found[:, :count])


def _of_awq(raw: U8) -> U8:
    """[rows of whole words, n]: the codes of AWQ's words, uint8 [n, bytes]."""
    return unpack_awq(raw.copy().view(np.uint32))  # a copy is aligned


def _transposed(raw: U8) -> U8:
    """Columns of 32-bit words, uint8 [n, 4 * columns], as rows: uint8 [columns, 4 * n]."""
    return np.ascontiguousarray(raw.view("<u4").T).view(np.uint8)
