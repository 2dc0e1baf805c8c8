"""MXFP4 and NVFP4 as safetensors checkpoints hold them: codes of neighbours side by side, and the rounding of their
own runtimes, which is not llama.cpp's (microfloat.py has that): to the nearest value, halves to even. As in AutoRound,
a zero keeps its sign in MXFP4 and has none in NVFP4.

MXFP4, `rtn`: the OCP standard's exponent, which puts the largest magnitude into [4, 8) steps (exactly: as in mxfp8.py,
AutoRound's logarithm is not followed where it rounds up); what is above 6 is cut off to it. A group of zeros gets
AutoRound's exponent. NVFP4, `rtn`: the E4M3 nearest to largest / 6, the weights having been divided by the tensor's
global scale.

`opt-rtn` chooses scales as microfloat.py does, and then rounds in the same way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels import grouped, microfloat
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import LANES, absolute, bits, nearest, select, smaller
from ggufround_kernels._vector import bits_of, lane_of, load_at, peak, peaks16, store_at
from ggufround_kernels.codec import F32, Search
from ggufround_kernels.grouped import GroupCodec
from ggufround_kernels.microfloat import half_ue4m3, ue4m3_nearest, values_of
from ggufround_kernels.mxfp8 import power
from ggufround_kernels.rounded import Rounded

MX_GROUP, NV_GROUP, NV_BLOCK = 32, 16, 64
ZERO = np.float32(0)
TOP = np.float32(6)
ZEROS_E = 126  # AutoRound's exponent of a group of zeros


@kernel
def codes_of(y: Any) -> Any:
    """i32: the codes of magnitudes, for weights in steps of their scale."""
    a = smaller(absolute(y), TOP)
    fine, whole, coarse = nearest(a + a), nearest(a) + 2, nearest(a * np.float32(0.5)) + 4
    return select(a < np.float32(2), fine, select(a < np.float32(4), whole, coarse))


@kernel
def sign_of(y: Any) -> Any:
    return (bits(y) >> 28) & 8


@kernel
def mx_codes(weights: Any, scales: Any, units: Any, codes: Any) -> None:
    for g in range(scales.size):
        e = np.int64(scales[g])
        y = load_at(weights, g * MX_GROUP) * power(127 - e)
        store_at(codes, g * MX_GROUP, codes_of(y) | sign_of(y))


@kernel
def mx_exponents(weights: Any, scales: Any) -> None:
    for g in range(scales.size):
        largest = peak(absolute(load_at(weights, g * MX_GROUP)))
        scales[g] = max(np.int64(bits_of(largest) >> 23) - 2, 0) if largest > ZERO else ZEROS_E


@kernel
def nv_scales(weights: Any, scales: Any) -> None:
    for v in range(scales.size // 2):
        code = ue4m3_nearest(peaks16(absolute(load_at(weights, v * LANES))) / TOP)
        scales[2 * v] = lane_of(code, 0)
        scales[2 * v + 1] = lane_of(code, NV_GROUP)


@kernel
def nv_codes(weights: Any, scales: Any, units: Any, codes: Any) -> None:
    for v in range(scales.size // 2):
        units[:NV_GROUP], units[NV_GROUP:] = scales[2 * v], scales[2 * v + 1]
        d = half_ue4m3(load_at(units, 0))
        inverse = select(d > ZERO, np.float32(0.5) / d, ZERO)
        y = load_at(weights, v * LANES) * inverse
        code = codes_of(y)
        store_at(codes, v * LANES, code | select(code > 0, sign_of(y), 0))


@kernel
def mx_decode(codes: Any, scales: Any, units: Any, weights: Any) -> None:
    for g in range(scales.size):
        unit = power(np.int64(scales[g]) - 127) * np.float32(0.5)
        store_at(weights, g * MX_GROUP, values_of(load_at(codes, g * MX_GROUP)) * unit)


@kernel
def nv_decode(codes: Any, scales: Any, units: Any, weights: Any) -> None:
    for v in range(scales.size // 2):
        units[:NV_GROUP], units[NV_GROUP:] = scales[2 * v], scales[2 * v + 1]
        store_at(weights, v * LANES, values_of(load_at(codes, v * LANES)) * half_ue4m3(load_at(units, 0)))


def _codec(name: str, group: int, multiple: int, choose: Any, encode: Any, decode: Any) -> GroupCodec:
    """choose(weights, scales), encode(weights, scales, units, codes), decode(codes, scales, units, weights): all flat;
    units is room for the scales of one vector."""

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        rows, n = weights.shape
        if search == "opt-rtn":
            scales = microfloat.CODECS[name].search(weights, importance, search).scales
            assert scales is not None
        else:
            scales = np.empty((rows, n // group), np.uint8)
            choose(weights.reshape(-1), scales.reshape(-1))
        codes = np.empty((rows, n), np.uint8)
        encode(weights.reshape(-1), scales.reshape(-1), np.empty(LANES, np.uint8), codes.reshape(-1))
        return Rounded(codes, scales=scales)

    def dequantise(rounded: Rounded) -> F32:
        weights = np.empty(rounded.codes.shape, np.float32)
        assert rounded.scales is not None
        units = np.empty(LANES, np.uint8)
        decode(rounded.codes.reshape(-1), rounded.scales.reshape(-1), units, weights.reshape(-1))
        return weights

    return grouped.checked(GroupCodec(name, 4, group, True, search, dequantise, scale="u1"), multiple)


FP4 = {
    "MXFP4": _codec("MXFP4", MX_GROUP, MX_GROUP, mx_exponents, mx_codes, mx_decode),
    "NVFP4": _codec("NVFP4", NV_GROUP, NV_BLOCK, nv_scales, nv_codes, nv_decode),
}
