"""NumPy twins of llama.cpp's quantizers for the types without a search: Q8_0, TQ1_0, TQ2_0, Q1_0, Q2_0, MXFP4, NVFP4.

Slow and plain. `QUANTIZE[name]` takes finite float32 [rows, n] and returns uint8 [rows, n // block * nbytes];
`DEQUANTIZE[name]` is the inverse, float32 [rows, n]. The C functions are quantize_row_*_ref and dequantize_row_*.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def half_bytes(d: F32) -> U8:
    """float16, two bytes each, infinite where it overflows."""
    with np.errstate(over="ignore"):
        return d.astype(np.float16)[:, None].view(np.uint8)


def halves(raw: U8) -> F32:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def round_away(x: F32) -> I64:
    """roundf: to the nearest, halves away from zero."""
    exact = x.astype(np.float64)
    return np.where(exact < 0, np.ceil(exact - 0.5), np.floor(exact + 0.5)).astype(np.int64)


def over(x: F32, d: F32) -> F32:
    """x times the float32 1 / d; 0 where that is infinite or d is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return x * np.where(np.isfinite(inverse), inverse, np.float32(0))[:, None]


def largest(x: F32) -> F32:
    return np.abs(x).max(axis=1)


def nibbles(codes: U8) -> U8:
    """The first half of the codes in the low four bits, the second in the high."""
    low, high = np.split(codes, 2, axis=1)
    return low | high << 4


def codes_of_nibbles(raw: U8) -> U8:
    return np.concatenate([raw & 15, raw >> 4], axis=1)


# --- Q8_0 ------------------------------------------------------------------------------------------------------------


def quantize_q8_0(x: F32) -> U8:
    d = largest(x) / np.float32(127)
    return np.hstack([half_bytes(d), round_away(over(x, d)).astype(np.int8).view(np.uint8)])


def dequantize_q8_0(raw: U8) -> F32:
    return halves(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8)


# --- ternary ---------------------------------------------------------------------------------------------------------


def trits(x: F32) -> tuple[F32, U8]:
    d = largest(x)
    return d, (round_away(over(x, d)) + 1).astype(np.uint8)


def trit_bytes(codes: U8) -> U8:
    """codes [blocks, 5, bytes], the most significant first: n / 243 of 256, rounded up."""
    n = np.einsum("bkm,k->bm", codes.astype(np.int64), 3 ** np.arange(4, -1, -1))
    return (-(-n * 256 // 243)).astype(np.uint8)


def trits_of_bytes(raw: U8) -> U8:
    """[blocks, bytes] to [blocks, 5, bytes]: each time three times the fraction shows the next digit."""
    digits, fraction = [], raw.astype(np.int64)
    for _ in range(5):
        digits.append(fraction * 3 >> 8)
        fraction = fraction * 3 & 0xFF
    return np.stack(digits, axis=1).astype(np.uint8)


def quantize_tq1_0(x: F32) -> U8:
    d, codes = trits(x)
    blocks = len(x)
    last = np.concatenate([codes[:, 240:].reshape(blocks, 4, 4), np.zeros((blocks, 1, 4), np.uint8)], axis=1)
    parts = codes[:, :160].reshape(blocks, 5, 32), codes[:, 160:240].reshape(blocks, 5, 16), last
    return np.hstack([*map(trit_bytes, parts), half_bytes(d)])


def dequantize_tq1_0(raw: U8) -> F32:
    parts = raw[:, :32], raw[:, 32:48], raw[:, 48:52]
    codes = np.hstack([trits_of_bytes(part).reshape(len(raw), -1) for part in parts])[:, :256]
    return (codes.astype(np.float32) - 1) * halves(raw[:, 52:])


def quantize_tq2_0(x: F32) -> U8:
    d, codes = trits(x)
    quads = codes.reshape(len(x), 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.hstack([quads.sum(axis=2, dtype=np.uint8).reshape(len(x), 64), half_bytes(d)])


def dequantize_tq2_0(raw: U8) -> F32:
    quads = raw[:, :64].reshape(len(raw), 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return (quads.reshape(len(raw), 256).astype(np.float32) - 1) * halves(raw[:, 64:])


def quantize_q2_0(x: F32) -> U8:
    d = largest(x)
    with np.errstate(divide="ignore", over="ignore"):
        lost = (d > 0) & np.isinf(np.float32(1) / d)  # C casts NaN and infinity to an int, which is clamped to 0
    codes = np.where(lost[:, None], 0, round_away(over(x, d)) + 1).astype(np.uint8)
    quads = codes.reshape(len(x), 16, 4) << np.array([0, 2, 4, 6], np.uint8)
    return np.hstack([half_bytes(d), quads.sum(axis=2, dtype=np.uint8)])


def dequantize_q2_0(raw: U8) -> F32:
    codes = raw[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return (codes.reshape(len(raw), 64).astype(np.float32) - 1) * halves(raw[:, :2])


def quantize_q1_0(x: F32) -> U8:
    d = np.zeros(len(x), np.float32)
    for i in range(128):
        d = d + np.abs(x[:, i])
    return np.hstack([half_bytes(d / np.float32(128)), np.packbits(x >= 0, axis=1, bitorder="little")])


def dequantize_q1_0(raw: U8) -> F32:
    signs = np.unpackbits(raw[:, 2:], axis=1, bitorder="little").astype(np.float32)
    return (2 * signs - 1) * halves(raw[:, :2])


# --- MXFP4 and NVFP4 -------------------------------------------------------------------------------------------------


def e2m1_codes(x: F32, d: F32) -> U8:
    """The first code with the least float32 difference |value * d - x|."""
    with np.errstate(over="ignore"):
        misses = np.abs(E2M1 * 2 * (d / 2)[:, None, None] - x[:, :, None])
    return misses.argmin(axis=2).astype(np.uint8)


def e8m0(e: NDArray[np.integer]) -> F32:
    return np.ldexp(np.float32(1), e.astype(np.int32) - 127)


def quantize_mxfp4(x: F32) -> U8:
    """Where C gives e = 255, NaN, this gives 0."""
    peak = largest(x)
    with np.errstate(divide="ignore"):
        log2f = np.log2(peak.astype(np.float64)).astype(np.float32)
    e = np.where(peak > 0, np.floor(np.where(peak > 0, log2f, 0)) - 2 + 127, 0).astype(np.int64) & 0xFF
    e = np.where(e == 255, 0, e).astype(np.uint8)
    return np.hstack([e[:, None], nibbles(e2m1_codes(x, e8m0(e)))])


def dequantize_mxfp4(raw: U8) -> F32:
    return E2M1[codes_of_nibbles(raw[:, 1:])] * e8m0(raw[:, :1])


def ue4m3(code: NDArray[np.integer]) -> F32:
    exponent, mantissa = code.astype(np.int32) >> 3, (code & 7).astype(np.float32)
    value = np.where(exponent > 0, np.ldexp(1 + mantissa / 8, exponent - 7), np.ldexp(mantissa, -9))
    return np.where(code == 127, 0, value).astype(np.float32)


def ggml_ue4m3_code(x: float) -> int:
    """ggml_fp32_to_ue4m3 for x >= 0: the mantissa is rounded by the next bit alone; from exponent 8 on 448."""
    if x < 2**-6:
        return min(int(np.float32(x) * np.float32(512) + np.float32(0.5)), 7)
    bits = int(np.float32(x).view(np.uint32))
    code = ((bits >> 23) - 127 + 7) * 8 + (bits >> 20 & 7) + (bits >> 19 & 1)
    return 126 if code >= 15 * 8 else code


def quantize_nvfp4(x: F32) -> U8:
    groups = x.reshape(-1, 16)
    scales = np.array([ggml_ue4m3_code(v) for v in largest(groups) / np.float32(6)], np.uint8)
    codes = nibbles(e2m1_codes(groups, ue4m3(scales)))
    return np.hstack([scales.reshape(-1, 4), codes.reshape(-1, 32)])


def dequantize_nvfp4(raw: U8) -> F32:
    codes = codes_of_nibbles(raw[:, 4:].reshape(-1, 8))
    return (E2M1[codes] * ue4m3(raw[:, :4].reshape(-1, 1))).reshape(len(raw), 64)


# --- by rows ---------------------------------------------------------------------------------------------------------

BLOCKS = {  # weights, bytes
    "Q8_0": (32, 34), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "Q1_0": (128, 18), "Q2_0": (64, 18), "MXFP4": (32, 17),
    "NVFP4": (64, 36),
}  # fmt: skip


def by_rows(function: Callable[..., NDArray], size: int) -> Callable[..., NDArray]:
    """A function of blocks [blocks, size], as one of rows."""
    return lambda rows: function(rows.reshape(-1, size)).reshape(len(rows), -1)


_FUNCTIONS: dict[str, tuple[Callable[[F32], U8], Callable[[U8], F32]]] = {
    "Q8_0": (quantize_q8_0, dequantize_q8_0),
    "TQ1_0": (quantize_tq1_0, dequantize_tq1_0),
    "TQ2_0": (quantize_tq2_0, dequantize_tq2_0),
    "Q1_0": (quantize_q1_0, dequantize_q1_0),
    "Q2_0": (quantize_q2_0, dequantize_q2_0),
    "MXFP4": (quantize_mxfp4, dequantize_mxfp4),
    "NVFP4": (quantize_nvfp4, dequantize_nvfp4),
}
QUANTIZE: dict[str, Callable[[F32], U8]] = {n: by_rows(f[0], BLOCKS[n][0]) for n, f in _FUNCTIONS.items()}
DEQUANTIZE: dict[str, Callable[[U8], F32]] = {n: by_rows(f[1], BLOCKS[n][1]) for n, f in _FUNCTIONS.items()}
