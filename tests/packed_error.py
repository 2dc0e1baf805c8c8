"""What a codec's bytes are worth: quantise, unpack, and the weighted squared error of every block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels import CODECS, Search

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def importance_of(n: int) -> F32:
    return np.exp(np.random.default_rng(1).standard_normal(n)).astype(np.float32)


def quantized(name: str, weights: F32, importance: F32 | None, search: Search) -> U8:
    rows, n = weights.shape
    out = np.full((rows, n // CODECS[name].block * CODECS[name].nbytes), 0xA5, np.uint8)
    CODECS[name].quantize(weights, importance, search, out)
    return out


def unpacked(name: str, packed: U8) -> F32:
    out = np.full((len(packed), packed.shape[1] // CODECS[name].nbytes * CODECS[name].block), np.nan, np.float32)
    CODECS[name].unpack(packed, out)
    return out


def block_errors(
    name: str, weights: F32, importance: F32 | None, search: Search, group: int | None = None
) -> NDArray[np.float64]:
    """sum w (x - y)^2 of each block (or group of weights), w = importance * sqrt(mean(x^2) + x^2) with the mean over
    the block, or 1; in float64, infinite where y is or where it is not a number."""
    block = CODECS[name].block
    x = weights.astype(np.float64).reshape(-1, block)
    y = unpacked(name, quantized(name, weights, importance, search)).astype(np.float64).reshape(-1, block)
    w = np.ones_like(x)
    if importance is not None:
        w = np.tile(importance, len(weights)).reshape(-1, block) * np.sqrt(np.square(x).mean(1, keepdims=True) + x * x)
    errors = (w * np.square(x - np.where(np.isnan(y), np.inf, y))).reshape(-1, group or block).sum(axis=1)
    return np.where(np.isnan(errors), np.inf, errors)
