"""NumPy twins of llama.cpp's quantizers for the types with a minimum: Q2_K, Q4_K, Q5_K, Q4_1, Q5_1.

Slow and plain: vectorised over blocks, one element at a time within a block, since every sum is float32 in the order
of the elements. Each function takes weights float32 [rows, n] and importance float32 [n] or None, and returns the
packed bytes uint8 [rows, n // block * nbytes]. The C functions are named beside each.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
Twin = Callable[[F32, F32 | None], U8]

f4 = np.float32


def nearest(x: F32) -> I32:
    """nearest_int: round half to even by adding 1.5 * 2^23 and reading the mantissa."""
    return ((x + f4(12582912)).view(np.int32) & 0x007FFFFF) - 0x00400000


def half(x: F32) -> U8:
    """float16 as two little-endian bytes on a new last axis."""
    return x.astype("<f2")[..., None].view(np.uint8)


def half_value(x: F32) -> F32:
    return x.astype(np.float16).astype(np.float32)


def total(x: F32) -> F32:
    """Sum over the last axis, from left to right."""
    out = np.zeros(x.shape[:-1], np.float32)
    for i in range(x.shape[-1]):
        out = out + x[..., i]
    return out


def fit_affine(x: F32, w: F32, top: int, start: float, step: float, steps: int, mad: bool) -> tuple[F32, F32, I32]:
    """make_qkx2_quants and make_qkx3_quants: scale, min and codes of groups [..., n]."""

    def codes_at(inverse: F32) -> I32:
        return np.clip(nearest(inverse[..., None] * (x - low[..., None])), 0, top)

    def error(scale: F32, low: F32, codes: I32) -> F32:
        diff = scale[..., None] * codes.astype(f4) + low[..., None] - x
        return total(w * (np.abs(diff) if mad else diff * diff))

    low = np.minimum(x.min(-1), f4(0))
    high = x.max(-1)
    flat, first_low = high == low, low
    sum_w, sum_x = total(w), total(w * x)
    inverse = f4(top) / (high - low)
    codes = codes_at(inverse)
    scale = f4(1) / inverse
    best = error(scale, low, codes)
    for k in range(steps + 1):
        tried = codes_at((f4(start) + f4(step) * f4(k) + f4(top)) / (high - low))
        value = tried.astype(f4)
        sum_l, sum_l2, sum_xl = total(w * value), total(w * value * value), total(w * value * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        new_scale = np.where(new_low > 0, sum_xl / sum_l2, new_scale)
        new_low = np.where(new_low > 0, f4(0), new_low)
        new_error = error(new_scale, new_low, tried)
        better = (determinant > 0) & (new_error < best)
        best = np.where(better, new_error, best)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
        codes = np.where(better[..., None], tried, codes)
    return np.where(flat, f4(0), scale), -np.where(flat, first_low, low), np.where(flat[..., None], 0, codes)


def fit_scales(x: F32, w: F32, top: int) -> tuple[F32, I32]:
    """make_qp_quants: super-scale and codes of non-negative scales [..., n]."""
    high = np.maximum(x.max(-1), f4(0))[..., None]
    inverse = f4(top) / high
    diff = x - (f4(1) / inverse) * (nearest(inverse * x) & 255).astype(f4)
    best = total(w * diff * diff)[..., None]
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        tried = (f4(0.1) * f4(k) + f4(top)) / high
        diff = x - (f4(1) / tried) * np.minimum(nearest(tried * x), top).astype(f4)
        error = total(w * diff * diff)[..., None]
        inverse = np.where(error < best, tried, inverse)
        best = np.where(error < best, error, best)
    first = np.minimum(nearest(inverse * x), top)
    codes = first & 255
    sum_xl, sum_l2 = total(w * x * first.astype(f4)), total(w * first.astype(f4) * first.astype(f4))
    for _ in range(5):
        for i in range(x.shape[-1]):
            v, weight, old = x[..., i], w[..., i], codes[..., i].astype(f4)
            rest_xl, rest_l2 = sum_xl - weight * v * old, sum_l2 - weight * old * old
            new = np.minimum(nearest(v * rest_l2 / rest_xl), top)
            value = new.astype(f4)
            new_xl, new_l2 = rest_xl + weight * v * value, rest_l2 + weight * value * value
            better = (rest_xl > 0) & (rest_l2 > 0) & (value != old)
            better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            codes[..., i] = np.where(better, new & 255, codes[..., i])
            sum_xl, sum_l2 = np.where(better, new_xl, sum_xl), np.where(better, new_l2, sum_l2)
    zero = high[..., 0] < f4(1e-15)
    return np.where(zero | ~(sum_l2 > 0), f4(0), sum_xl / sum_l2), np.where(zero[..., None], 0, codes)


def six_bits(sc: I32, m: I32) -> U8:
    """The 12 bytes of eight 6-bit scales and mins."""
    low = sc[..., :4] | (sc[..., 4:] >> 4) << 6
    middle = m[..., :4] | (m[..., 4:] >> 4) << 6
    late = (sc[..., 4:] & 15) | (m[..., 4:] & 15) << 4
    return np.concatenate([low, middle, late], -1).astype(np.uint8)


def from_six_bits(packed: U8) -> tuple[I32, I32]:
    """get_scale_min_k4."""
    low, middle, late = (packed[..., k : k + 4].astype(np.int32) for k in (0, 4, 8))
    sc = np.concatenate([low & 63, (late & 15) | (low >> 6) << 4], -1)
    return sc, np.concatenate([middle & 63, late >> 4 | (middle >> 6) << 4], -1)


def k_quant(weights: F32, importance: F32 | None, size: int, top: int, start: float, steps: int) -> U8:
    """quantize_row_qX_K_ref and, with importance, quantize_row_qX_K_impl for sub-blocks of `size` and codes 0..top."""
    rows, n = weights.shape
    shape = (rows, n // 256, 256 // size, size)
    x, high = weights.reshape(shape), 15 if size == 16 else 63
    if importance is None:
        rms = np.sqrt(total(x * x) / f4(size))[..., None] if size == 32 else f4(0)
        scale, low, codes = fit_affine(x, rms + np.abs(x), top, start, 0.1, steps, mad=size == 16)
        high_scale, high_low = np.maximum(scale.max(-1), f4(0)), np.maximum(low.max(-1), f4(0))
        inverse = [np.where(v > 0, f4(high) / v, f4(0))[..., None] for v in (high_scale, high_low)]
        sc, m = nearest(inverse[0] * scale) & 255, nearest(inverse[1] * low) & 255
        if size == 32:
            sc, m = np.minimum(sc, 63), np.minimum(m, 63)
        d, dmin = high_scale / f4(high), high_low / f4(high)
    else:
        squares = total((x * x).reshape(rows, n // 256, 256))
        sigma2 = f4(1 if size == 16 else 2) * squares / f4(256)
        w = importance.reshape(shape[1:]) * np.sqrt(sigma2[..., None, None] + x * x)
        scale, low, codes = fit_affine(x, w, top, -0.9, 0.05, 36, mad=False)
        d, sc = fit_scales(scale, total(w), high)
        dmin, m = fit_scales(low, total(w), high)
        if top == 31:
            sc, m = np.minimum(sc, 63), np.minimum(m, 63)
    # what the bytes hold, not what was fitted, decides the codes
    stored = (sc | m << 4).astype(np.uint8) if size == 16 else six_bits(sc, m)
    sc, m = (stored & 15, stored >> 4) if size == 16 else from_six_bits(stored)
    step = (half_value(d)[..., None] * sc.astype(f4))[..., None]
    shift = (half_value(dmin)[..., None] * m.astype(f4))[..., None]
    again = np.clip(nearest((x + shift) / step), 0, top)
    codes = np.where(step == 0, codes, again).reshape(rows, n // 256, 256)
    supers = np.concatenate([half(d), half(dmin)], -1)
    if size == 16:
        parts = codes.reshape(rows, n // 256, 2, 4, 32)
        bits = sum(parts[..., k, :] << (2 * k) for k in range(4)).reshape(rows, n // 256, 64)
        fields = [stored, bits, supers]
    else:
        parts = codes.reshape(rows, n // 256, 4, 2, 32)
        nibbles = ((parts & 15)[..., 0, :] | (parts & 15)[..., 1, :] << 4).reshape(rows, n // 256, 128)
        fifth = sum((codes[..., 32 * k : 32 * k + 32] >> 4) << k for k in range(8))
        fields = [supers, stored, fifth, nibbles] if top == 31 else [supers, stored, nibbles]
    return np.concatenate([field.astype(np.uint8) for field in fields], -1).reshape(rows, -1)


def legacy(weights: F32, importance: F32 | None, top: int) -> U8:
    """quantize_row_q4_1_ref, quantize_row_q5_1_ref and, with importance, their _impl."""
    rows, n = weights.shape
    x = weights.reshape(rows, n // 32, 32)
    if importance is None:
        low = x.min(-1)
        d = (x.max(-1) - low) / f4(top)
        inverse = np.where(d != 0, f4(1) / d, f4(0))
        scaled = (x - low[..., None]) * inverse[..., None] + f4(0.5)
        codes = np.minimum(np.where(np.isfinite(scaled), scaled, 0).astype(np.int32), top)
    else:
        sigma2 = (total(weights * weights) / f4(n))[:, None, None]
        w = importance.reshape(n // 32, 32) * np.sqrt(sigma2 + x * x)
        d, low, codes = fit_affine(x, w, top, -0.9, 0.05, 36, mad=False)
        low = -low
    fifth = np.packbits(codes >> 4, axis=-1, bitorder="little")
    nibbles = (codes & 15)[..., :16] | (codes & 15)[..., 16:] << 4
    fields = [half(d), half(low), fifth, nibbles] if top == 31 else [half(d), half(low), nibbles]
    return np.concatenate([field.astype(np.uint8) for field in fields], -1).reshape(rows, -1)


TWINS: dict[str, Twin] = {
    "Q2_K": lambda weights, importance: k_quant(weights, importance, 16, 3, -0.5, 15),
    "Q4_K": lambda weights, importance: k_quant(weights, importance, 32, 15, -1.0, 20),
    "Q5_K": lambda weights, importance: k_quant(weights, importance, 32, 31, -0.5, 15),
    "Q4_1": lambda weights, importance: legacy(weights, importance, 15),
    "Q5_1": lambda weights, importance: legacy(weights, importance, 31),
}
