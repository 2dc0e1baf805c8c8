"""Q8_0: 32 weights as d * code, d float16, codes signed bytes in -127 .. 127.

With 8 bits the errors of a block are as good as random in d: a scale half a percent away rounds its weights anew, and
the best of a dozen has a fifth less squared error than the first. `opt-rtn` tries those that put the peak on 127.4 down
to 120, each as float16 stores it, then fits d to the best one's codes by least squares. It takes 32 blocks on lanes;
all else takes a block as one vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._chunks import Kernels, Layout, codec, load_group, weight_at
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    absolute,
    broadcast,
    larger,
    load,
    round_even,
    round_half,
    select,
    smaller,
    store,
    store_floats,
    to_float,
    truncate,
)
from ggufround_kernels._vector import (
    half_bits_of,
    half_value_of,
    load_at,
    peak,
    round_away,
    round_half_of,
    store_at,
)
from ggufround_kernels.codec import Codec

BLOCK, NBYTES = 32, 34
ZERO = np.float32(0)
ONE = np.float32(1)
TOP = np.float32(127)
HALF_MAX = np.float32(65504)

# opt-rtn: the codes, as real numbers, that a block's peak may get
TARGETS = np.array([127.4, 126.6, 126, 125.4, 124.7, 124, 123.4, 122.7, 122, 121.3, 120.6, 120], np.float32)


@kernel
def inverse_of(d: Any) -> Any:
    """1 / d, but 0 where that is infinite: there the reference's codes are 0, and d is 0 as a float16."""
    inverse = ONE / d
    return inverse if inverse < np.float32(np.inf) else ZERO


@kernel
def rtn(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    """quantize_row_q8_0_ref: the codes are those of d before it is rounded to float16."""
    for b in range(scales.size):
        x = load_at(weights, b * BLOCK)
        d = peak(absolute(x)) / TOP
        scales[b] = round_half_of(d)
        store_at(codes, b * BLOCK, round_away(x * inverse_of(d)))


@kernel
def storable(d: Any) -> Any:
    """Lanes of scales as they will be stored: float16 values, never infinite."""
    return smaller(round_half(d), HALF_MAX)


@kernel
def nearest_codes(x: Any, inverse: Any) -> Any:
    return larger(smaller(round_even(x * inverse), TOP), -TOP)


@kernel
def attempt(x: Any, w: Any, d: Any) -> Any:
    """The error of each lane's block under scale d, and the sums w x l and w l^2 over its codes l."""
    inverse = select(d > ZERO, ONE / d, ZERO)
    error, xl, ll = broadcast(ZERO), broadcast(ZERO), broadcast(ZERO)
    for i in range(BLOCK):
        v = load(x, i)
        code = nearest_codes(v, inverse)
        rest = v - d * code
        weight = weight_at(w, i)
        error, xl, ll = error + weight * rest * rest, xl + weight * v * code, ll + weight * code * code
    return error, xl, ll


@kernel
def best_scale(x: Any, w: Any) -> Any:
    """The float16 scale of each lane's block with the least error, rtn's among those that are tried."""
    largest = absolute(load(x, 0))
    for i in range(1, BLOCK):
        largest = larger(absolute(load(x, i)), largest)
    best = storable(largest / TOP)
    least, best_xl, best_ll = attempt(x, w, best)
    for target in TARGETS:
        d = storable(largest / target)
        error, xl, ll = attempt(x, w, d)
        better = error < least
        least, best = select(better, error, least), select(better, d, best)
        best_xl, best_ll = select(better, xl, best_xl), select(better, ll, best_ll)
    fitted = storable(select(best_ll > ZERO, best_xl / best_ll, best))
    error, _, _ = attempt(x, w, fitted)
    return select(error < least, fitted, best)


@kernel
def opt(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    x, w = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.float32)
    row = np.empty((1, LANES), np.float32)
    for begin in range(0, scales.size, LANES):
        count = min(LANES, scales.size - begin)
        load_group(weights, importance, per_row, first, begin, count, BLOCK, x, w)
        if importance is None:
            store(row, 0, best_scale(x, None))
        else:
            store(row, 0, best_scale(x, w))
        store_floats(row, 1, scales, begin, count)
    for b in range(scales.size):
        inverse = inverse_of(scales[b])
        store_at(codes, b * BLOCK, truncate(nearest_codes(load_at(weights, b * BLOCK), inverse)))


# block_q8_0: float16 d; 32 signed bytes
@kernel
def pack(codes: Any, scales: Any, packed: Any) -> None:
    for b in range(scales.size):
        d16 = half_bits_of(scales[b])
        packed[b * NBYTES] = d16 & 0xFF
        packed[b * NBYTES + 1] = d16 >> 8
        store_at(packed, b * NBYTES + 2, load_at(codes, b * BLOCK))


@kernel
def unpack(packed: Any, weights: Any) -> None:
    for b in range(weights.size // BLOCK):
        d = half_value_of(packed[b * NBYTES] | (packed[b * NBYTES + 1] << 8))
        code = (load_at(packed, b * NBYTES + 2) << 24) >> 24
        store_at(weights, b * BLOCK, to_float(code) * d)


CODECS: dict[str, Codec] = {"Q8_0": codec(Layout(BLOCK, NBYTES), Kernels({"rtn": rtn, "opt-rtn": opt}, pack, unpack))}
