"""NumPy twins of llama.cpp's quantizers for the types without a minimum: Q3_K, Q6_K, Q4_0, Q5_0, IQ4_NL, IQ4_XS.

Slow and plain: vectorised over blocks, one element at a time within a block, since every sum is float32 in the order
of the elements. Each function takes weights float32 [rows, n] and importance float32 [n] or None, and returns the
packed bytes uint8 [rows, n // block * nbytes]. The C functions are named beside each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]

EPS = np.float32(1e-15)
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def nearest(x: F32) -> I32:
    """nearest_int: round half to even by adding 1.5 * 2^23 and reading the mantissa."""
    return ((x + np.float32(12582912.0)).view(np.int32) & 0x007FFFFF) - 0x00400000


def clamped(x: F32, nmax: int) -> I32:
    return np.maximum(-nmax, np.minimum(nmax - 1, nearest(x)))


def half(x: F32) -> F32:
    return x.astype(np.float16).astype(np.float32)


def total(x: F32) -> F32:
    """Sum over the last axis, from left to right."""
    out = np.zeros(x.shape[:-1], np.float32)
    for i in range(x.shape[-1]):
        out = out + x[..., i]
    return out


def signed_max(x: F32) -> tuple[F32, F32]:
    """(largest magnitude, the first value that has it) over the last axis; NaN never compares as larger."""
    x = np.where(np.isnan(x), np.float32(0), x)
    at = np.abs(x).argmax(-1)[..., None]
    value = np.take_along_axis(x, at, -1)[..., 0]
    return np.abs(value), value


def fit(x: F32, w: F32, codes: F32) -> tuple[F32, F32]:
    """(sum w x l, sum w l l) in C's order of operations."""
    return total(w * x * codes), total(w * codes * codes)


def qx(x: F32, w: F32, nmax: int) -> tuple[F32, I32]:
    """make_qx_quants with rmse_type 1: the scale of each block and its codes + nmax."""
    amax, peak = signed_max(x)
    inverse = np.float32(-nmax) / peak
    codes = clamped(inverse[..., None] * x, nmax)
    sumlx, suml2 = fit(x, w, codes.astype(np.float32))
    scale = np.where(suml2 != 0, sumlx / suml2, np.float32(0))
    best = scale * sumlx
    for step in range(-9, 10):
        if step == 0:
            continue
        inverse = -(np.float32(nmax) + np.float32(0.1) * np.float32(step)) / peak
        tried = clamped(inverse[..., None] * x, nmax)
        sumlx, suml2 = fit(x, w, tried.astype(np.float32))
        better = (suml2 > 0) & (sumlx * sumlx > best * suml2)
        codes = np.where(better[..., None], tried, codes)
        scale = np.where(better, sumlx / suml2, scale)
        best = np.where(better, scale * sumlx, best)
    zero = amax < EPS
    return np.where(zero, np.float32(0), scale), np.where(zero[..., None], 0, codes + nmax)


def q3(x: F32) -> tuple[F32, I32]:
    """make_q3_quants with do_rmse: coordinate descent over the codes of one block, weights x * x."""
    amax, peak = signed_max(x)
    codes = clamped((np.float32(-4) / peak)[..., None] * x, 4).astype(np.float32)
    sumlx, suml2 = fit(x, x * x, codes)
    for _ in range(5):
        for i in range(x.shape[-1]):
            xi, w, old = x[..., i], x[..., i] * x[..., i], codes[..., i]
            slx, sl2 = sumlx - w * xi * old, suml2 - w * old * old
            new = clamped(xi * sl2 / slx, 4).astype(np.float32)
            tlx, tl2 = slx + w * xi * new, sl2 + w * new * new
            better = (slx > 0) & (new != old) & (tl2 > 0) & (tlx * tlx * suml2 > sumlx * sumlx * tl2)
            codes[..., i] = np.where(better, new, old)
            sumlx, suml2 = np.where(better, tlx, sumlx), np.where(better, tl2, suml2)
    zero = amax < EPS
    scale = np.where((suml2 > 0) & ~zero, sumlx / suml2, np.float32(0))
    return scale, np.where(zero[..., None], 0, codes.astype(np.int32) + 4)


def blocks(weights: F32, size: int, group: int) -> F32:
    """[rows, n] as [blocks, groups, group]."""
    return weights.reshape(-1, size // group, group)


def spread(importance: F32, weights: F32, size: int, group: int) -> F32:
    return blocks(np.broadcast_to(importance, weights.shape), size, group)


def recoded(x: F32, d: F32, codes: I32, nmax: int) -> I32:
    """Codes for the scales as stored; where the stored scale is zero the search's own codes stay."""
    return np.where((d == 0)[..., None], codes, clamped(x / d[..., None], nmax) + nmax)


def nibbles(codes: U8) -> U8:
    """[..., 32] codes of four bits as 16 bytes: element j low, element j + 16 high."""
    return codes[..., :16] | codes[..., 16:] << 4


def bits(d: F32) -> U8:
    return d.astype(np.float16).view(np.uint8).reshape(*d.shape, 2)


def quiet(function):  # type: ignore[no-untyped-def]
    """C divides by zero and overflows without a word; so do the twins."""

    def wrapper(weights: F32, importance: F32 | None = None) -> U8:
        with np.errstate(all="ignore"):
            packed: U8 = function(weights, importance)
            return packed.reshape(len(weights), -1)

    return wrapper


@quiet
def q6_k(weights: F32, importance: F32 | None) -> U8:
    """quantize_row_q6_K_ref, quantize_row_q6_K_impl."""
    x = blocks(weights, 256, 16)
    w = x * x if importance is None else spread(importance, weights, 256, 16)
    scales, codes = qx(x, w, 32)
    amax, peak = signed_max(scales)
    inverse = np.float32(-128) / peak
    sc = np.minimum(127, nearest(inverse[:, None] * scales))
    d = np.float32(1) / inverse
    codes = recoded(x, half(d)[:, None] * sc.astype(np.float32), codes, 32)
    zero = amax < EPS
    d, sc, codes = np.where(zero, np.float32(0), d), sc * ~zero[:, None], codes * ~zero[:, None, None]
    q = codes.astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    ql = np.stack([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], 2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    n = len(x)
    return np.concatenate([ql.reshape(n, -1), qh.reshape(n, -1), sc.astype(np.int8).view(np.uint8), bits(d)], 1)


@quiet
def q3_k(weights: F32, importance: F32 | None) -> U8:
    """quantize_row_q3_K_ref, quantize_row_q3_K_impl."""
    x = blocks(weights, 256, 16)
    if importance is None:
        scales, codes = q3(x)
        amax, peak = signed_max(scales)
        inverse = np.float32(-32) / peak
        zero = amax == 0
        sc = np.where(zero[:, None], 0, clamped(inverse[:, None] * scales, 32) + 32)
        d = np.where(zero, np.float32(0), np.float32(1) / inverse)
    else:
        sigma2 = np.float32(2) * total(x.reshape(-1, 256) * x.reshape(-1, 256)) / np.float32(256)
        w = spread(importance, weights, 256, 16) * np.sqrt(sigma2[:, None, None] + x * x)
        scales, codes = qx(x, w, 4)
        d, sc = qx(scales, total(w), 32)
    codes = recoded(x, half(d)[:, None] * (sc - 32).astype(np.float32), codes, 4)
    n = len(x)
    q = codes.astype(np.uint8).reshape(n, 8, 32)
    hmask = (q >> 2 << np.arange(8, dtype=np.uint8)[:, None]).sum(1, dtype=np.uint8)
    low = (q & 3).reshape(n, 2, 4, 32)
    qs = low[:, :, 0] | low[:, :, 1] << 2 | low[:, :, 2] << 4 | low[:, :, 3] << 6
    s = sc.astype(np.uint8)
    top = (s >> 4).reshape(n, 4, 4)
    packed = np.concatenate(
        [(s[:, :8] & 15) | (s[:, 8:] & 15) << 4, top[:, 0] | top[:, 1] << 2 | top[:, 2] << 4 | top[:, 3] << 6], 1
    )
    return np.concatenate([hmask, qs.reshape(n, -1), packed, bits(d)], 1)


def _legacy(weights: F32, importance: F32 | None, nmax: int) -> tuple[F32, U8]:
    x = blocks(weights, 32, 32)[:, 0]
    if importance is None:
        _, peak = signed_max(x)
        d = peak / np.float32(-nmax)
        inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
        codes = (x * inverse[:, None] + np.float32(nmax + 0.5)).astype(np.int8)
        return d, np.minimum(codes, 2 * nmax - 1).astype(np.uint8)
    sigma2 = np.repeat(total(weights * weights) / np.float32(weights.shape[1]), weights.shape[1] // 32)
    w = spread(importance, weights, 32, 32)[:, 0] * np.sqrt(sigma2[:, None] + x * x)
    d, codes = qx(x, w, nmax)
    return d, codes.astype(np.uint8)


@quiet
def q4_0(weights: F32, importance: F32 | None) -> U8:
    """quantize_row_q4_0_ref, quantize_row_q4_0_impl."""
    d, codes = _legacy(weights, importance, 8)
    return np.concatenate([bits(d), nibbles(codes)], 1)


@quiet
def q5_0(weights: F32, importance: F32 | None) -> U8:
    """quantize_row_q5_0_ref, quantize_row_q5_0_impl."""
    d, codes = _legacy(weights, importance, 16)
    qh = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.concatenate([bits(d), qh, nibbles(codes & 15)], 1)


def iq4_index(x: F32) -> I32:
    """best_index_int8 over the sixteen values: the nearer one, the upper one where both are as near."""
    upper = np.clip(np.searchsorted(IQ4_VALUES, x, side="right"), 1, 15)
    below, above = IQ4_VALUES[upper - 1], IQ4_VALUES[upper]
    return np.where(x - below < above - x, upper - 1, upper).astype(np.int32)


def iq4(x: F32, w: F32) -> F32:
    """The scale search of quantize_row_iq4_nl_impl for blocks [..., 32]."""
    amax, peak = signed_max(x)
    scale = best = np.zeros_like(peak)
    for step in [None, *range(-7, 8)]:
        if step is None:
            inverse = np.float32(1) / (-peak / IQ4_VALUES[0])
        else:
            inverse = np.float32(step - 127) / peak
        q = IQ4_VALUES[iq4_index(inverse[..., None] * x)]
        sumqx, sumq2 = total(w * q * x), total(w * q * q)
        better = sumq2 > 0
        if step is not None:
            better &= sumqx * sumqx > best * sumq2
        scale = np.where(better, sumqx / sumq2, scale)
        best = np.where(better, scale * sumqx, best)
    return np.where(amax < EPS, np.float32(0), scale)


def _iq4(weights: F32, importance: F32 | None, size: int) -> tuple[F32, F32]:
    x = blocks(weights, size, 32)
    w = x * x
    if importance is not None:
        sigma2 = total(w.reshape(-1, size)) * (np.float32(2) / np.float32(size))
        w = spread(importance, weights, size, 32) * np.sqrt(sigma2[:, None, None] + x * x)
    return x, iq4(x, w)


@quiet
def iq4_nl(weights: F32, importance: F32 | None) -> U8:
    """quantize_iq4_nl."""
    x, scales = _iq4(weights, importance, 32)
    inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
    codes = iq4_index(inverse[..., None] * x).astype(np.uint8)
    return np.concatenate([bits(scales[:, 0]), nibbles(codes[:, 0])], 1)


@quiet
def iq4_xs(weights: F32, importance: F32 | None) -> U8:
    """quantize_iq4_xs."""
    x, scales = _iq4(weights, importance, 256)
    _, peak = signed_max(scales)
    d = -peak / np.float32(32)
    inverse = np.where(d != 0, np.float32(1) / d, np.float32(0))
    sc = clamped(inverse[:, None] * scales, 32)
    dl = d[:, None] * sc.astype(np.float32)
    inverse = np.where(dl != 0, np.float32(1) / dl, np.float32(0))
    codes = iq4_index(inverse[..., None] * x).astype(np.uint8)
    s = (sc + 32).astype(np.uint8)
    n = len(x)
    high = ((s >> 4).astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)).sum(1, dtype=np.uint16)
    low = (s[:, 0::2] & 15) | (s[:, 1::2] & 15) << 4
    return np.concatenate([bits(d), high.view(np.uint8).reshape(n, 2), low, nibbles(codes).reshape(n, -1)], 1)


TWINS = {"Q3_K": q3_k, "Q6_K": q6_k, "Q4_0": q4_0, "Q5_0": q5_0, "IQ4_NL": iq4_nl, "IQ4_XS": iq4_xs}
