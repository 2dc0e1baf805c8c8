"""MXFP4 and NVFP4: E2M1 codes (0, .5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign) times a small floating-point scale.

MXFP4: 32 weights share a power of two, 2^(e - 127), stored as e (E8M0). NVFP4: each 16 of 64 weights share a UE4M3
(4 bits of exponent with bias 7, 3 of mantissa, no sign; 448 at most, 0x7F is NaN), and the tensor a float32 beside it.
As in ggml, E2M1 values are doubled here and scales halved: then no scale exceeds float32.

`rtn` is llama.cpp's bytes. MXFP4: e puts the largest magnitude into [4, 8) steps, and cuts off what is above 6. NVFP4:
largest magnitude / 6, rounded by one bit alone; all from 248 up becomes 448, and what is below half of the smallest
scale, 2^-9, becomes 0.

`opt-rtn` tries the scales around that and keeps the one whose packed error is least. Weights for NVFP4 are expected
divided by `nvfp4_global_scale`, so that all 448 of the scales' range is used; the scale is rounded to nearest even.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggufround_kernels._chunks import Kernels, Layout, codec, weigh
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    absolute,
    any_lane,
    bits,
    broadcast,
    from_bits,
    larger,
    nearest,
    select,
    smaller,
    to_float,
    truncate,
)
from ggufround_kernels._vector import (
    bits_of,
    from_bits_of,
    lane_of,
    load_at,
    peak,
    peaks16,
    store_at,
    total,
    totals16,
)
from ggufround_kernels.codec import Codec

MX_BLOCK, MX_BYTES = 32, 17
NV_BLOCK, NV_BYTES, NV_GROUP = 64, 36, 16
ZERO = np.float32(0)
ONE = np.float32(1)
INFINITY = np.float32(np.inf)
MAGIC = np.float32(12582912)  # 1.5 * 2^23: adding it rounds to whole numbers
E8M0_TOP = 252  # 6 times its scale is the largest that a float32 can hold
UE4M3_TOP = 126  # the code of 448
UE4M3_NORMAL = np.float32(2.0**-6)
FAR = np.float32(2.0**20)  # magnitudes so far above 6 * 448 that differences to the values may be rounded

# opt-rtn: what is tried beside rtn's scale, added to its code
MX_STEPS = np.array([1, -1, -2], np.int32)
NV_STEPS = np.arange(-3, 8).astype(np.int32)  # from amax / 6: down to amax / 8, up to amax / 3 or 4


def nvfp4_global_scale(amax: float) -> np.float32:
    """The scale of a whole NVFP4 tensor whose largest magnitude is `amax`: amax / (6 * 448), the largest E2M1 value
    times the largest UE4M3.

    Weights are divided by it before they are quantised with opt-rtn, and multiplied by it (GGUF: the tensor's
    `.scale`) after they are unpacked. It is 1 for a tensor of zeros, or of weights so small that it would be zero.
    """
    scale = np.float32(amax) / np.float32(6 * 448)
    return scale if scale > 0 else np.float32(1)


# --- E2M1, values doubled and scales halved --------------------------------------------------------------------------


@kernel
def codes_of(x: Any, d: Any) -> Any:
    """i32: the nearest code, of two equally near the one of smaller magnitude; never -0, and 0 where d is 0."""
    a = select(broadcast(ZERO) < d, absolute(x), ZERO)
    code = broadcast(np.int32(0))
    for border in (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0):
        code = code + select(a > d * np.float32(border), broadcast(np.int32(1)), 0)
    return code | select(code > 0, (bits(x) >> 28) & 8, 0)


@kernel
def codes_compared(x: Any, d: Any) -> Any:
    """i32: the code whose float32 difference is least, the first of equals. Other codes than `codes_of` only where
    magnitudes are so large beside d that differences are rounded: then many are equal."""
    a = absolute(x)
    least, code = a, broadcast(np.int32(0))
    for k in range(1, 8):
        value = values_of(broadcast(np.int32(k)))
        miss = absolute(value * d - a)
        code = select(miss < least, broadcast(np.int32(k)), code)
        least = select(miss < least, miss, least)
    return code | select(code > 0, (bits(x) >> 28) & 8, 0)


@kernel
def values_of(codes: Any) -> Any:
    """f32: the doubled value; from 2 on the magnitude's bits are the top bits of a float32."""
    magnitude = codes & 7
    value = select(magnitude < 2, to_float(magnitude), from_bits((magnitude + 254) << 22))
    return from_bits(bits(value) | ((codes & 8) << 28))


@kernel
def level(a: Any) -> Any:
    """The value nearest to a magnitude."""
    magic = select(a < np.float32(4), broadcast(MAGIC), select(a < np.float32(8), broadcast(2 * MAGIC), 4 * MAGIC))
    return smaller((a + magic) - magic, np.float32(12))


# --- MXFP4 -----------------------------------------------------------------------------------------------------------


@kernel
def exponent_of(largest: Any) -> Any:
    """floor(log2f(x)) for x > 0. Just below a power of two log2f rounds up to a whole number: how many float32 do so
    (44 at 2^65, none at 2) follows from the logarithm in float64, rounded to float32."""
    raw = bits_of(largest)
    if raw >> 23 and raw & 0x7FFFFF < 0x7FFF80:
        return np.int64(raw >> 23) - 127
    return np.int64(math.floor(np.float32(math.log2(np.float64(largest)))))


@kernel
def half_e8m0(e: Any) -> Any:
    """2^(e - 128)."""
    return from_bits_of(0x00200000 << e if e < 2 else (e - 1) << 23)


@kernel
def rtn_mxfp4(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    """quantize_row_mxfp4_ref. Below 2^-125 its exponent wraps around and all codes are 0; where it would be 255, NaN
    to llama.cpp itself, it is 0 here."""
    for b in range(scales.size):
        x = load_at(weights, b * MX_BLOCK)
        largest = peak(absolute(x))
        e = (exponent_of(largest) + 125) & 0xFF if largest > ZERO else 0
        e = 0 if e == 255 else e
        scales[b] = e
        store_at(codes, b * MX_BLOCK, codes_of(x, half_e8m0(e)))


@kernel
def opt_mxfp4(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    for b in range(scales.size):
        x = load_at(weights, b * MX_BLOCK)
        largest = peak(absolute(x))
        e = min(max(exponent_of(largest) + 125, 1), E8M0_TOP) if largest > ZERO else 1
        y = x * half_e8m0(256 - e)  # in steps of rtn's scale, lest squares overflow
        a = absolute(y)
        w = weigh(importance, (first + b) % per_row * MX_BLOCK, y, total(y * y) / np.float32(MX_BLOCK))
        miss = a - level(a)
        best, chosen = total(w * miss * miss), 0 if largest > ZERO else -1
        for step in MX_STEPS:
            unit = half_e8m0(128 + step)
            miss = a - level(a * half_e8m0(128 - step)) * unit
            error = total(w * miss * miss) if e + step <= E8M0_TOP else INFINITY
            chosen = step if error < best else chosen
            best = error if error < best else best
        e = max(e + chosen, 0)
        scales[b] = e
        store_at(codes, b * MX_BLOCK, codes_of(x, half_e8m0(e)))


# block_mxfp4: e, 16 bytes code j | code j + 16 << 4
@kernel
def pack_mxfp4(codes: Any, scales: Any, packed: Any) -> None:
    for b in range(scales.size):
        packed[b * MX_BYTES] = scales[b]
        for j in range(16):
            packed[b * MX_BYTES + 1 + j] = codes[b * MX_BLOCK + j] | (codes[b * MX_BLOCK + 16 + j] << 4)


@kernel
def unpack_mxfp4(packed: Any, weights: Any) -> None:
    codes = np.empty(MX_BLOCK, np.uint8)
    for b in range(weights.size // MX_BLOCK):
        for j in range(16):
            byte = packed[b * MX_BYTES + 1 + j]
            codes[j], codes[16 + j] = byte & 15, byte >> 4
        d = half_e8m0(np.int64(packed[b * MX_BYTES]))
        store_at(weights, b * MX_BLOCK, values_of(load_at(codes, 0)) * d)


# --- NVFP4: two groups of 16 on 32 lanes -----------------------------------------------------------------------------


@kernel
def ue4m3_reference(x: Any) -> Any:
    """i32: ggml_fp32_to_ue4m3 of x >= 0."""
    normal = ((bits(x) + 0x80000) >> 20) - 960
    normal = select(normal >= 120, 126, normal)
    return select(x < UE4M3_NORMAL, smaller(truncate(x * np.float32(512) + np.float32(0.5)), 7), normal)


@kernel
def ue4m3_nearest(x: Any) -> Any:
    """i32: the nearest code to x >= 0, of two equally near the even one, 126 from 448 up."""
    raw = bits(x)
    normal = ((raw + (((raw >> 20) & 1) + 0x7FFFF)) >> 20) - 960
    return smaller(select(x < UE4M3_NORMAL, nearest(x * np.float32(512)), normal), UE4M3_TOP)


@kernel
def half_ue4m3(code: Any) -> Any:
    """f32: half the value of codes 0 to 126."""
    return select(code < 8, to_float(code) * np.float32(2.0**-10), from_bits((code + 952) << 20))


@kernel
def store_scales(scales: Any, vector: Any, code: Any) -> None:
    scales[2 * vector] = lane_of(code, 0)
    scales[2 * vector + 1] = lane_of(code, NV_GROUP)


@kernel
def rtn_nvfp4(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    """quantize_row_nvfp4_ref."""
    for v in range(scales.size // 2):
        x = load_at(weights, v * LANES)
        largest = peaks16(absolute(x))
        code = ue4m3_reference(largest / np.float32(6))
        store_scales(scales, v, code)
        if any_lane(largest > FAR):
            store_at(codes, v * LANES, codes_compared(x, half_ue4m3(code)))
        else:
            store_at(codes, v * LANES, codes_of(x, half_ue4m3(code)))


@kernel
def nv_errors(a: Any, w: Any, code: Any) -> Any:
    """Of each group, in all its lanes."""
    d = half_ue4m3(code)
    inverse = select(d > ZERO, ONE / d, ZERO)
    miss = a - level(a * inverse) * d
    return totals16(w * miss * miss)


@kernel
def opt_nvfp4(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    for v in range(scales.size // 2):
        x = load_at(weights, v * LANES)
        block = v // 2
        other = load_at(weights, (v ^ 1) * LANES)
        sigma2 = total(x * x + other * other) / np.float32(NV_BLOCK)
        w = weigh(importance, (first + block) % per_row * NV_BLOCK + v % 2 * LANES, x, sigma2)
        a = absolute(x)
        largest = peaks16(a) / np.float32(6)
        chosen = ue4m3_reference(largest)
        best = nv_errors(a, w, chosen)
        middle = ue4m3_nearest(largest)
        for step in NV_STEPS:
            code = larger(smaller(middle + step, UE4M3_TOP), 1)
            errors = nv_errors(a, w, code)
            chosen = select(errors < best, code, chosen)
            best = smaller(errors, best)
        store_scales(scales, v, chosen)
        store_at(codes, v * LANES, codes_of(x, half_ue4m3(chosen)))


# block_nvfp4: 4 scales, then for each group 8 bytes code j | code j + 8 << 4
@kernel
def pack_nvfp4(codes: Any, scales: Any, packed: Any) -> None:
    for g in range(scales.size):
        block, s = g // 4 * NV_BYTES, g % 4
        packed[block + s] = scales[g]
        for j in range(8):
            packed[block + 4 + 8 * s + j] = codes[g * NV_GROUP + j] | (codes[g * NV_GROUP + 8 + j] << 4)


@kernel
def unpack_nvfp4(packed: Any, weights: Any) -> None:
    codes, units = np.empty(LANES, np.uint8), np.empty(LANES, np.uint8)
    for v in range(weights.size // LANES):
        block = v // 2 * NV_BYTES
        for g in range(2):
            s = v % 2 * 2 + g
            for j in range(8):
                byte = packed[block + 4 + 8 * s + j]
                codes[g * NV_GROUP + j], codes[g * NV_GROUP + 8 + j] = byte & 15, byte >> 4
            units[g * NV_GROUP : (g + 1) * NV_GROUP] = packed[block + s]
        scale = load_at(units, 0)
        d = select(scale == 127, ZERO, half_ue4m3(scale & 127))  # 127 is NaN, which ggml reads as 0
        store_at(weights, v * LANES, values_of(load_at(codes, 0)) * d)


CODECS: dict[str, Codec] = {
    "MXFP4": codec(
        Layout(MX_BLOCK, MX_BYTES, scales=1),
        Kernels({"rtn": rtn_mxfp4, "opt-rtn": opt_mxfp4}, pack_mxfp4, unpack_mxfp4),
    ),
    "NVFP4": codec(
        Layout(NV_BLOCK, NV_BYTES, scales=4),
        Kernels({"rtn": rtn_nvfp4, "opt-rtn": opt_nvfp4}, pack_nvfp4, unpack_nvfp4),
    ),
}
