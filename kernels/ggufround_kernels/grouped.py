"""GroupCodec: the functions of a type that has no block of bytes of its own, since each file format packs it anew.

The weights of a row lie in groups of `group` neighbours that share a scale, and a zero point where the type has one. A
packer takes the codes, scales and zero points of `Rounded` as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from ggufround_kernels.checked import _check_search, _expect, _matrix
from ggufround_kernels.codec import F32, Search
from ggufround_kernels.rounded import Rounded


class GroupCodec(NamedTuple):
    """weights: C-contiguous float32 [rows, n], n a multiple of `group`, finite; importance: float32 [n] or None
    (shared by all rows). Nothing that is passed in is modified. Thread-safe; the GIL is released.

    `Rounded` holds codes uint8 [rows, n] and, of each group [rows, n / group], `d` (float16 values) and, where not
    `sym`, `mins` (the zero point), or `scales` (E8M0)."""

    name: str
    bits: int
    group: int
    sym: bool
    search: Callable[[F32, F32 | None, Search], Rounded]
    dequantise: Callable[[Rounded], F32]  # -> [rows, n]


def checked(codec: GroupCodec) -> GroupCodec:
    """The codec with its arguments checked: wrong shapes, dtypes, layouts or names raise ValueError before any work."""
    name, group = codec.name, codec.group

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        _, n = _matrix(name, "weights", weights, np.float32, group)
        _check_search(name, importance, search, n)
        return codec.search(weights, importance, search)

    @cache
    def example() -> Rounded:
        return codec.search(np.zeros((1, group), np.float32), None, "rtn")

    def dequantise(rounded: Rounded) -> F32:
        rows, n = _matrix(name, "codes", rounded.codes, np.uint8, group)
        for field, given, like in zip(Rounded._fields, rounded, example(), strict=True):
            if like is not None:
                _expect(name, field, given, like.dtype, (rows, n // group * like.shape[1]))
        return codec.dequantise(rounded)

    return codec._replace(search=search, dequantise=dequantise)


def shares(importance: F32, group: int) -> F32:
    """Importance over the mean of its group, which changes no choice within it and keeps the sums of errors in range; 1
    where that mean is not a positive number: a group without any importance is searched as one without importances."""
    given = importance.astype(np.float64).reshape(-1, group)
    mean = given.mean(axis=1, keepdims=True)
    sound = np.isfinite(mean) & (mean > 0)
    return np.where(sound, given / np.where(sound, mean, 1), 1).astype(np.float32).reshape(-1)
