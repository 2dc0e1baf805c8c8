"""FP8: each weight an E4M3 (448 at most) times a float32 scale, of its row or of a tile of 128 rows and 128 columns.

The scale puts the largest magnitude on 448; weights go to the nearest value, halves to even. Both searches are that:
values of all sizes are equally fine, so that little is gained by another scale. A record holds a tile's scale in each
of its rows; whoever cuts a matrix into slabs must cut between tiles.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ggufround_kernels import grouped
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import LANES, absolute, bits, from_bits
from ggufround_kernels._vector import load_at, store_at
from ggufround_kernels.codec import F32, Search
from ggufround_kernels.grouped import GroupCodec
from ggufround_kernels.mxfp8 import magnitudes_of, values_of
from ggufround_kernels.rounded import Rounded

TILE = 128
TOP = np.float32(448)
LEAST = np.float32(2.0**-126)


@kernel
def encode(weights: Any, scales: Any, group: Any, codes: Any) -> None:
    for g in range(scales.size):
        d = scales[g]
        for v in range(g * group, (g + 1) * group, LANES):
            x = load_at(weights, v)
            store_at(codes, v, magnitudes_of(absolute(x / d)) | ((bits(x) >> 24) & 0x80))


@kernel
def decode(codes: Any, scales: Any, group: Any, weights: Any) -> None:
    for g in range(scales.size):
        d = scales[g]
        for v in range(g * group, (g + 1) * group, LANES):
            code = load_at(codes, v)
            value = values_of(code & 127) * d
            store_at(weights, v, from_bits(bits(value) | ((code & 0x80) << 24)))


def _codec(group: int, tall: int) -> GroupCodec:
    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        rows, n = weights.shape
        largest = np.abs(weights).reshape(rows, n // group, group).max(2)
        if tall > 1:
            tiles = np.maximum.reduceat(largest, np.arange(0, rows, tall), axis=0)
            largest = np.repeat(tiles, tall, axis=0)[:rows]
        scales = np.ascontiguousarray(np.maximum(largest / TOP, LEAST), np.float32)
        codes = np.empty((rows, n), np.uint8)
        encode(weights.reshape(-1), scales.reshape(-1), group, codes.reshape(-1))
        return Rounded(codes, d=scales)

    def dequantise(rounded: Rounded) -> F32:
        weights = np.empty(rounded.codes.shape, np.float32)
        assert rounded.d is not None
        decode(rounded.codes.reshape(-1), rounded.d.reshape(-1), group, weights.reshape(-1))
        return weights

    return GroupCodec("FP8 block" if tall > 1 else "FP8 channel", 8, group, True, search, dequantise, scale="<f4")


@cache
def fp8_codec(columns: int) -> GroupCodec:
    """One scale a row of `columns` weights. ValueError where 32 does not divide them."""
    if columns % LANES:
        raise ValueError(f"rows of {columns} weights; must be a multiple of {LANES}")
    return grouped.checked(_codec(columns, 1))


FP8_BLOCK = grouped.checked(_codec(TILE, TILE))
