"""NumPy twins of AutoRound's plain rounding to MXFP4 and NVFP4, of FP8, and of what runtimes make of their codes.

Slow and plain. Weights are finite float32 [rows, n]; scales come as [rows, n / group].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference_integers import E4M3, nearest_e4m3
from reference_simple import E2M1

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

MAGNITUDES = E2M1[:8].astype(np.float64)  # 0, 0.5, 1, 1.5, 2, 3, 4, 6


def nearest_e2m1(y: NDArray) -> U8:
    """The codes 0 .. 7 of the nearest magnitudes, of two equally near the even code; 6 for all above."""
    misses = np.abs(MAGNITUDES - np.minimum(np.abs(y.astype(np.float64)), 6)[..., None])
    odd = np.arange(8) % 2
    return np.lexsort((np.broadcast_to(odd, misses.shape), misses), axis=-1)[..., 0].astype(np.uint8)


def quantize_mxfp4(x: F32) -> tuple[U8, U8]:
    """Codes, and of each 32 the exponent e, E8M0: the standard's floor(log2(largest)) - 2. Zeros keep their sign."""
    groups = x.astype(np.float64).reshape(len(x), -1, 32)
    largest = np.abs(groups).max(axis=2)
    _, exponent = np.frexp(largest)  # largest = m * 2^exponent, m in [0.5, 1)
    e = np.where(largest > 0, np.maximum(exponent - 1 - 2, -127), 1 - 2) + 127
    codes = nearest_e2m1(np.ldexp(groups, 127 - e[..., None])) + 8 * np.signbit(groups)
    return codes.reshape(x.shape).astype(np.uint8), e.astype(np.uint8)


def dequantize_mxfp4(codes: U8, e: U8) -> F32:
    scale = np.ldexp(1.0, np.repeat(e, 32, axis=1).astype(np.int32) - 127)
    with np.errstate(over="ignore"):
        return (E2M1[codes] * scale).astype(np.float32)


def quantize_nvfp4(x: F32) -> tuple[U8, U8]:
    """Codes, and of each 16 the scale, E4M3: the nearest to largest / 6. Of weights over their global scale. A zero has
    no sign; where the scale is 0, so are the codes."""
    groups = x.reshape(len(x), -1, 16)
    scales = nearest_e4m3((np.abs(groups).max(axis=2) / np.float32(6)).astype(np.float64))
    d = E4M3[scales]
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    codes = nearest_e2m1(groups * inverse[..., None])
    return (codes + 8 * (np.signbit(groups) & (codes > 0))).reshape(x.shape).astype(np.uint8), scales


def dequantize_nvfp4(codes: U8, scales: U8) -> F32:
    return E2M1[codes] * np.repeat(E4M3[scales], 16, axis=1)


def quantize_fp8(x: F32, wide: int, tall: int) -> tuple[U8, F32]:
    """Codes, and of each tile, `tall` rows of `wide` weights, the scale that puts its largest magnitude on 448, in each
    of its rows."""
    codes, scales = np.zeros(x.shape, np.uint8), np.zeros((len(x), x.shape[1] // wide), np.float32)
    for top in range(0, len(x), tall):
        for k in range(scales.shape[1]):
            tile = x[top : top + tall, k * wide : (k + 1) * wide]
            d = np.maximum(np.abs(tile).max() / np.float32(448), np.float32(2.0**-126))
            scales[top : top + tall, k] = d
            codes[top : top + tall, k * wide : (k + 1) * wide] = nearest_e4m3((tile / d).astype(np.float64))
    return codes, scales


def dequantize_fp8(codes: U8, scales: F32) -> F32:
    with np.errstate(over="ignore"):
        return E4M3[codes] * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
