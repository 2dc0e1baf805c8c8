"""GroupCodec: the functions of a type that has no block of bytes of its own, since each file format arranges it anew.

The weights of a row lie in groups of `group` neighbours that share a scale, and a zero point where the type has one.
Between the search and a file's arrangement a row is one record: the stream of its codes, then the scales of all groups,
then their zero points. `fields` gives the parts of many such rows as arrays, and `record` puts them together again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels.checked import _check_search, _expect, _matrix
from ggufround_kernels.codec import F32, U8, Search
from ggufround_kernels.packing import pack_bits, unpack_bits
from ggufround_kernels.rounded import Rounded


class GroupCodec(NamedTuple):
    """weights: C-contiguous float32 [rows, n], n a multiple of `group`, finite; importance: float32 [n] or None
    (shared by all rows). Nothing that is passed in is modified. Thread-safe; the GIL is released.

    `Rounded` holds codes uint8 [rows, n] and, of each group [rows, n / group], `d` (float16 values) and, where not
    `sym`, `mins` (the zero point), or `scales` (E8M0, E4M3)."""

    name: str
    bits: int
    group: int
    sym: bool
    search: Callable[[F32, F32 | None, Search], Rounded]
    dequantise: Callable[[Rounded], F32]  # -> [rows, n]
    scale: str = "<f2"  # how a group's scale is stored: as float16, float32 ("<f4") or a byte ("u1")

    @property
    def nbytes(self) -> int:
        """Bytes of a group in a record. ValueError for a group whose codes do not fill whole bytes."""
        if self.group % 8:
            raise ValueError(f"groups of {self.group} weights cannot be stored; must be a multiple of 8")
        return self.group * self.bits // 8 + np.dtype(self.scale).itemsize + (not self.sym)

    def pack(self, rounded: Rounded, out: U8) -> None:
        """Records, uint8 [rows, n // group * nbytes], of what a search or the tuner found."""
        _check_packing(self, rounded, out)
        scales = rounded.scales if rounded.d is None else rounded.d.astype(self.scale)
        assert scales is not None
        record(self, Fields(pack_bits(rounded.codes, self.bits), scales, rounded.mins), out)

    def unpack(self, packed: U8, out: F32) -> None:
        """The weights, float32 [rows, n], of records."""
        rows, size = _matrix(self.name, "packed rows", packed, np.uint8, self.nbytes)
        _expect(self.name, "out", out, np.float32, (rows, size // self.nbytes * self.group), writes=True)
        out[:] = self.dequantise(rounded(self, fields(self, packed)))

    def quantize(self, weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
        """Search, then pack."""
        self.pack(self.search(weights, importance, search), out)


class Fields(NamedTuple):
    """Of rows [rows, n]: the stream of codes, uint8 [rows, n * bits / 8]; each group's scale, [rows, n / group], of the
    codec's dtype; its zero point, uint8, where the type has one."""

    stream: U8
    scales: NDArray[Any]
    zeros: U8 | None = None


def fields(codec: GroupCodec, packed: U8) -> Fields:
    """The parts of records."""
    groups = packed.shape[1] // codec.nbytes
    size = codec.group * codec.bits // 8 * groups
    wide = groups * np.dtype(codec.scale).itemsize
    scales = np.ascontiguousarray(packed[:, size : size + wide])
    return Fields(packed[:, :size], scales.view(codec.scale), None if codec.sym else packed[:, size + wide :])


def record(codec: GroupCodec, parts: Fields, out: U8) -> None:
    """Puts the parts of rows together, in `out`, uint8 [rows, n // group * nbytes]."""
    size = parts.stream.shape[1]
    scales = np.ascontiguousarray(parts.scales).view(np.uint8)
    out[:, :size], out[:, size : size + scales.shape[1]] = parts.stream, scales
    if not codec.sym:
        assert parts.zeros is not None
        out[:, size + scales.shape[1] :] = parts.zeros


def rounded(codec: GroupCodec, parts: Fields) -> Rounded:
    """The parts of rows as a search gives them."""
    codes = unpack_bits(parts.stream, codec.bits)
    if codec.scale != "u1":
        return Rounded(codes, d=parts.scales.astype(np.float32), mins=_own(parts.zeros))
    return Rounded(codes, scales=_own(parts.scales))


def _check_packing(codec: GroupCodec, rounded: Rounded, out: U8) -> None:
    """numpy would stretch a single row over all of them."""
    name = codec.name
    rows, n = _matrix(name, "codes", rounded.codes, np.uint8, codec.group)
    groups = n // codec.group
    if rounded.d is None:
        _expect(name, "scales", rounded.scales, np.uint8, (rows, groups))
    else:
        _expect(name, "d", rounded.d, np.float32, (rows, groups))
    if not codec.sym:
        _expect(name, "mins", rounded.mins, np.uint8, (rows, groups))
    _expect(name, "out", out, np.uint8, (rows, groups * codec.nbytes), writes=True)


def _own(values: Any) -> Any:
    return None if values is None else np.ascontiguousarray(values)


def checked(codec: GroupCodec, multiple: int | None = None) -> GroupCodec:
    """The codec with its arguments checked: wrong shapes, dtypes, layouts or names raise ValueError before any work.
    Rows must be a multiple of `multiple` weights long, of a group where it is not given."""
    name, group = codec.name, codec.group
    multiple = multiple or group

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        _, n = _matrix(name, "weights", weights, np.float32, multiple)
        _check_search(name, importance, search, n)
        return codec.search(weights, importance, search)

    @cache
    def example() -> Rounded:
        return codec.search(np.zeros((1, multiple), np.float32), None, "rtn")

    def dequantise(rounded: Rounded) -> F32:
        rows, n = _matrix(name, "codes", rounded.codes, np.uint8, multiple)
        for field, given, like in zip(Rounded._fields, rounded, example(), strict=True):
            if like is not None:
                _expect(name, field, given, like.dtype, (rows, n // multiple * like.shape[1]))
        return codec.dequantise(rounded)

    return codec._replace(search=search, dequantise=dequantise)


def shares(importance: F32, group: int) -> F32:
    """Importance over the mean of its group, which changes no choice within it and keeps the sums of errors in range; 1
    where that mean is not a positive number: a group without any importance is searched as one without importances."""
    given = importance.astype(np.float64).reshape(-1, group)
    mean = given.mean(axis=1, keepdims=True)
    sound = np.isfinite(mean) & (mean > 0)
    return np.where(sound, given / np.where(sound, mean, 1), 1).astype(np.float32).reshape(-1)
