"""MXFP8 of the OCP microscaling formats: 32 weights share a power of two, 2^(e - 127), stored as e (E8M0); each is an
E4M3 (sign, 4 bits of exponent with bias 7, 3 of mantissa; 448 at most, 127 is NaN) times that.

`rtn` is the standard's own choice, as AutoRound and torch round: e puts the largest magnitude into [256, 512) steps,
what is above 448 is cut off to it, elements go to the nearest value and halves to even, keeping the sign of a zero.
AutoRound takes the exponent from a float32 logarithm, which for a few float32 just below a power of two (none of which
is a bfloat16) rounds up; here it is exact. A group of zeros gets AutoRound's e.

`opt-rtn` tries e + 1 (a peak above 448 is no longer cut off) and e - 1 and on while that does no harm (where the peak
hardly counts, the smallest weights get finer steps), and keeps the least sum w (x - value)^2, w the importance, or 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels import grouped
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    absolute,
    bits,
    broadcast,
    from_bits,
    nearest,
    select,
    smaller,
    to_float,
)
from ggufround_kernels._vector import bits_of, from_bits_of, load_at, peak, store_at, total
from ggufround_kernels.codec import F32, Search
from ggufround_kernels.grouped import GroupCodec
from ggufround_kernels.rounded import Rounded

GROUP = 32
ZERO = np.float32(0)
NAN = np.float32(np.nan)
TOP = np.float32(448)
NORMAL = np.float32(2.0**-6)  # the least magnitude with an exponent of its own
PER_STEP = np.float32(2.0**9)  # below, values are multiples of 2^-9
ZEROS_E = 120  # AutoRound's e for a group of zeros
DEPTH = 24  # E4M3 spans 18 powers of two
E_TOP = 246  # that of the largest float32; beyond, weights may round up to infinity


@kernel
def power(exponent: Any) -> Any:
    """2^exponent, -127 .. 127."""
    return from_bits_of((exponent + 127) << 23 if exponent > -127 else 0x00400000)


@kernel
def magnitudes_of(a: Any) -> Any:
    """i32: the codes nearest to magnitudes, of two equally near the even one, that of 448 from there up."""
    raw = bits(smaller(a, TOP))
    normal = ((raw + (((raw >> 20) & 1) + 0x7FFFF)) >> 20) - 960
    return select(a < NORMAL, nearest(a * PER_STEP), normal)


@kernel
def values_of(magnitudes: Any) -> Any:
    """f32: the values of codes 0 .. 127."""
    value = select(magnitudes < 8, to_float(magnitudes) / PER_STEP, from_bits((magnitudes + 960) << 20))
    return select(magnitudes == 127, NAN, value)


@kernel
def floor_exponent(largest: Any) -> Any:
    """The e of the standard, at least 0: floor(log2(largest)) - 8 + 127."""
    return max(np.int64(bits_of(largest) >> 23) - 8, 0) if largest > ZERO else ZEROS_E


@kernel
def encode(x: Any, e: Any) -> Any:
    """i32: the codes of weights."""
    y = x * power(127 - e)
    return magnitudes_of(absolute(y)) | ((bits(x) >> 24) & 0x80)


@kernel
def rtn(weights: Any, codes: Any, scales: Any) -> None:
    for g in range(scales.size):
        x = load_at(weights, g * GROUP)
        e = floor_exponent(peak(absolute(x)))
        scales[g] = e
        store_at(codes, g * GROUP, encode(x, e))


@kernel
def miss(a: Any, w: Any, step: Any) -> Any:
    """The error of magnitudes in steps of e, if they are stored under e + step."""
    rest = a - values_of(magnitudes_of(a * power(-step))) * power(step)
    return total(w * rest * rest)


@kernel
def opt(weights: Any, importance: Any, n: Any, codes: Any, scales: Any) -> None:
    for g in range(scales.size):
        x = load_at(weights, g * GROUP)
        largest = peak(absolute(x))
        e = floor_exponent(largest)
        if largest > ZERO:
            a = absolute(x) * power(127 - e)
            w = broadcast(np.float32(1))
            if importance is not None:
                w = load_at(importance, g * GROUP % n)
            least, chosen = miss(a, w, 0), 0
            for step in range(1, -DEPTH, -1):
                if step == 0 or not 0 <= e + step <= E_TOP:
                    continue
                error = miss(a, w, step)
                if step < 0 and error > least:
                    break
                if error < least:
                    least, chosen = error, step
            e += chosen
        scales[g] = e
        store_at(codes, g * GROUP, encode(x, e))


@kernel
def decode(codes: Any, scales: Any, weights: Any) -> None:
    for g in range(scales.size):
        code, e = load_at(codes, g * GROUP), np.int64(scales[g])
        value = values_of(code & 127) * (power(e - 127) if e < 255 else NAN)
        store_at(weights, g * GROUP, from_bits(bits(value) | ((code & 0x80) << 24)))


def _search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
    rows, n = weights.shape
    codes, scales = np.empty((rows, n), np.uint8), np.empty((rows, n // GROUP), np.uint8)
    if search == "rtn":
        rtn(weights.reshape(-1), codes.reshape(-1), scales.reshape(-1))
    else:
        given = None if importance is None else grouped.shares(importance, GROUP)
        opt(weights.reshape(-1), given, n, codes.reshape(-1), scales.reshape(-1))
    return Rounded(codes, scales=scales)


def _dequantise(rounded: Rounded) -> F32:
    weights = np.empty(rounded.codes.shape, np.float32)
    assert rounded.scales is not None
    decode(rounded.codes.reshape(-1), rounded.scales.reshape(-1), weights.reshape(-1))
    return weights


MXFP8 = grouped.checked(GroupCodec("MXFP8", 8, GROUP, True, _search, _dequantise, scale="u1"))
