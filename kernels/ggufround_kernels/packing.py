"""Codes as streams of bits, and the arrangements that file formats make of them.

A stream holds the codes of a row one after the other, the lowest bit first: code i of `bits` bits begins at bit
i * bits. That is what GPTQ's int32 words hold along a column of the transposed matrix, for 3 bits too, what MLX's
uint32 hold along a row, and for FP4 pairs, the even one in the low half of a byte. AWQ's words lie across rows: each
holds eight neighbouring rows' codes of one column, in the order of AWQ_ORDER.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels.codec import U8

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # row of the k-th half byte, from the lowest


@kernel
def _pack(codes: Any, bits: Any, out: Any) -> None:
    for i in range(codes.size // 8):
        word = np.uint64(0)
        for k in range(8):
            word |= np.uint64(codes[i * 8 + k]) << np.uint64(k * bits)
        for k in range(bits):
            out[i * bits + k] = np.uint8((word >> np.uint64(8 * k)) & np.uint64(255))


@kernel
def _unpack(stream: Any, bits: Any, out: Any) -> None:
    mask = np.uint64((1 << bits) - 1)
    for i in range(out.size // 8):
        word = np.uint64(0)
        for k in range(bits):
            word |= np.uint64(stream[i * bits + k]) << np.uint64(8 * k)
        for k in range(8):
            out[i * 8 + k] = np.uint8((word >> np.uint64(k * bits)) & mask)


@kernel
def _pack_awq(codes: Any, order: Any, out: Any) -> None:
    rows, n = codes.shape
    for j in range(n):
        for i in range(rows // 8):
            word = np.uint32(0)
            for k in range(8):
                word |= np.uint32(codes[i * 8 + order[k], j]) << np.uint32(4 * k)
            out[j, i] = word


@kernel
def _unpack_awq(words: Any, order: Any, out: Any) -> None:
    n, across = words.shape
    for j in range(n):
        for i in range(across):
            for k in range(8):
                out[i * 8 + order[k], j] = np.uint8((words[j, i] >> np.uint32(4 * k)) & np.uint32(15))


def pack_bits(codes: U8, bits: int) -> U8:
    """uint8 [rows, n * bits / 8]: each row's codes, uint8 [rows, n] below 2^bits, as a stream. n is a multiple of 8.

    ValueError for other shapes or dtypes.
    """
    rows, n = _matrix(codes, np.uint8, 8)
    out = np.empty((rows, n // 8 * bits), np.uint8)
    _pack(np.ascontiguousarray(codes).reshape(-1), bits, out.reshape(-1))
    return out


def unpack_bits(stream: U8, bits: int) -> U8:
    """uint8 [rows, n]: the codes of streams, uint8 [rows, n * bits / 8]. ValueError for other shapes or dtypes."""
    rows, size = _matrix(stream, np.uint8, bits)
    out = np.empty((rows, size // bits * 8), np.uint8)
    _unpack(np.ascontiguousarray(stream).reshape(-1), bits, out.reshape(-1))
    return out


def pack_awq(codes: U8) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """uint32 [n, rows / 8]: 4-bit codes, uint8 [rows, n], in AWQ's words. ValueError where 8 does not divide rows."""
    rows, n = _matrix(codes, np.uint8, 1)
    if rows % 8:
        raise ValueError(f"AWQ packs 8 rows into a word; {rows} rows are no multiple of that")
    out = np.empty((n, rows // 8), np.uint32)
    _pack_awq(codes, np.array(AWQ_ORDER), out)
    return out


def unpack_awq(words: np.ndarray[Any, np.dtype[np.uint32]]) -> U8:
    """uint8 [rows, n]: the 4-bit codes of AWQ's words, uint32 [n, rows / 8]."""
    n, across = _matrix(words, np.uint32, 1)
    out = np.empty((across * 8, n), np.uint8)
    _unpack_awq(words, np.array(AWQ_ORDER), out)
    return out


def _matrix(given: Any, dtype: Any, multiple: int) -> tuple[int, int]:
    if given.dtype != dtype or given.ndim != 2 or given.shape[1] % multiple:
        raise ValueError(
            f"{given.dtype} {given.shape}; must be {np.dtype(dtype)} [rows, n], n a multiple of {multiple}"
        )
    rows, n = given.shape
    return rows, n
