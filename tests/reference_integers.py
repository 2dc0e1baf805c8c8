"""NumPy twins of the types without a block of their own: integers in groups (AutoRound's plain rounding), and MXFP8.

Slow and plain. Weights are finite float32 [rows, n]; what belongs to a group comes as [rows, n / group].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]


def stored_scale(d: F32) -> F32:
    """AutoRound's: float16, 1e-5 at least in magnitude, a zero of either sign becoming +1e-5. Ours is finite."""
    with np.errstate(over="ignore"):
        half = np.clip(d.astype(np.float16), np.float16(-65504), np.float16(65504))
    floor = np.float16(1e-5)
    return np.where(half < 0, np.minimum(half, -floor), np.maximum(half, floor)).astype(np.float32)


def quantize_integers(x: F32, bits: int, group: int, sym: bool) -> tuple[U8, F32, U8]:
    """Codes, scales and zero points: those of quant_tensor_sym and quant_tensor_asym."""
    groups, top = x.reshape(len(x), -1, group), 2**bits - 1
    low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    with np.errstate(over="ignore"):
        if sym:
            half = 2 ** (bits - 1)
            sign = np.where(high < -low, np.float32(1), np.float32(-1))
            d = stored_scale(sign * np.maximum(high, -low) / np.float32(half))
            zero = np.full(d.shape, half, np.float32)
        else:
            d = stored_scale((high - low) / np.float32(top))
            zero = np.minimum(np.round(-low / d), np.float32(top))
        codes = np.clip(np.round(groups / d[..., None]), -zero[..., None], top - zero[..., None]) + zero[..., None]
    return codes.reshape(x.shape).astype(np.uint8), d, zero.astype(np.uint8)


def dequantize_integers(codes: U8, d: F32, zero: U8) -> F32:
    group = codes.shape[1] // d.shape[1]
    steps = codes.astype(np.int32) - np.repeat(zero, group, axis=1)
    return np.repeat(d, group, axis=1) * steps.astype(np.float32)


def _e4m3_values() -> F32:
    """Of all 256 codes: sign, exponent with bias 7, 3 bits of mantissa; no infinities, 127 and 255 are NaN."""
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    value = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa / 8, -6))
    value[127] = np.nan
    return np.concatenate([value, -value]).astype(np.float32)


E4M3 = _e4m3_values()


def nearest_e4m3(y: F64) -> U8:
    """The nearest value's code, of two equally near the even one; 448 for all above; the sign that of y."""
    values = E4M3[:127].astype(np.float64)
    a = np.minimum(np.abs(y), 448)
    above = np.searchsorted(values, a).clip(1)
    below = above - 1
    up, down = values[above] - a, a - values[below]
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (code + 128 * np.signbit(y)).astype(np.uint8)


def quantize_mxfp8(x: F32) -> tuple[U8, U8]:
    """Codes, and of each 32 the exponent e, E8M0."""
    groups = x.astype(np.float64).reshape(len(x), -1, 32)
    largest = np.abs(groups).max(axis=2)
    _, exponent = np.frexp(largest)  # largest = m * 2^exponent, m in [0.5, 1)
    e = np.where(largest > 0, np.maximum(exponent - 1 - 8, -127), 1 - 8) + 127
    return nearest_e4m3(np.ldexp(groups, 127 - e[..., None])).reshape(x.shape), e.astype(np.uint8)


def dequantize_mxfp8(codes: U8, e: U8) -> F32:
    scale = np.ldexp(1.0, np.repeat(e, 32, axis=1).astype(np.int32) - 127)
    with np.errstate(over="ignore"):
        return (E4M3[codes] * np.where(scale > 2.0**127, np.nan, scale)).astype(np.float32)
