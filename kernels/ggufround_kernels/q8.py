"""Q8_0: 32 weights as d * code, d float16, codes signed bytes in -127 .. 127.

With 8 bits the errors of a block are as good as random in d: scales half a percent apart round its weights anew, and
the best of a dozen has a fifth less squared error than the first. `opt-rtn` tries those that map the peak to 127.4 down
to 120, each as float16 stores it, and then fits d to the best one's codes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
)
from ggufround_kernels._rows import Layout, Stages, codec, load_weighted, peak
from ggufround_kernels.codec import Codec

f4 = np.float32
BLOCK = 32
BELOW_HALF = np.float32(0.49999997)  # adding it and cutting off rounds halves away from zero, as roundf, below 2**22
TARGETS = np.array([127.4, 126.6, 126, 125.4, 124.7, 124, 123.4, 122.7, 122, 121.3, 120.6, 120], np.float32)


# quantize_row_q8_0_ref
@kernel
def _rtn(weights: Any, importance: Any, start: Any, scales: Any, factors: Any) -> None:
    bits = weights.view(np.int32)
    peaks = factors.view(np.int32)
    for b in range(scales.size):
        peaks[b] = peak(bits, b * BLOCK, BLOCK)
    for b in range(scales.size):
        d = factors[b] / f4(127.0)
        inverse = f4(1.0) / d
        scales[b] = d
        factors[b] = inverse if d > f4(0.0) and inverse < f4(np.inf) else f4(0.0)  # the reference: (int8_t) inf is 0


@kernel
def _try(x: Any, w: Any, d: Any) -> Any:
    """Error of the blocks on lanes with scale d, and the sums of the least-squares scale for its codes."""
    inverse = select(d > 0.0, f4(1.0) / d, 0.0)
    error = broadcast(f4(0.0))
    sum_xl = error
    sum_l2 = error
    for i in range(BLOCK):
        v = load(x, i)
        code = larger(smaller(round_even(v * inverse), 127.0), -127.0)
        rest = v - d * code
        if w is None:
            error = error + rest * rest
            sum_xl = sum_xl + v * code
            sum_l2 = sum_l2 + code * code
        else:
            weight = load(w, i)
            error = error + weight * rest * rest
            sum_xl = sum_xl + weight * v * code
            sum_l2 = sum_l2 + weight * code * code
    return error, sum_xl, sum_l2


@kernel
def _search(x: Any, w: Any) -> Any:
    """The best float16 scale of each block on lanes."""
    top = absolute(load(x, 0))
    for i in range(1, BLOCK):
        top = larger(absolute(load(x, i)), top)
    best = smaller(round_half(top / f4(127.0)), 65504.0)
    least, best_xl, best_l2 = _try(x, w, best)
    for target in TARGETS:
        d = smaller(round_half(top / target), 65504.0)
        error, sum_xl, sum_l2 = _try(x, w, d)
        better = error < least
        least = select(better, error, least)
        best = select(better, d, best)
        best_xl = select(better, sum_xl, best_xl)
        best_l2 = select(better, sum_l2, best_l2)
    d = smaller(round_half(select(best_l2 > 0.0, best_xl / best_l2, best)), 65504.0)
    error, _, _ = _try(x, w, d)
    return select(error < least, d, best)


@kernel
def _opt(weights: Any, importance: Any, start: Any, scales: Any, factors: Any) -> None:
    x = np.empty((BLOCK, LANES), np.float32)
    w = np.empty((BLOCK, LANES), np.float32)
    row = np.empty((1, LANES), np.float32)
    for first in range(0, scales.size, LANES):
        count = min(LANES, scales.size - first)
        load_weighted(weights, importance, start, first, count, BLOCK, x, w)
        if importance is None:
            d = _search(x, None)
        else:
            d = _search(x, w)
        store(row, 0, d)
        store_floats(row, 1, scales, first, count)
    for b in range(scales.size):
        factors[b] = f4(1.0) / scales[b] if scales[b] > f4(0.0) else f4(0.0)


@kernel
def _encode(weights: Any, factors: Any, codes: Any) -> None:
    for b in range(factors.size):
        for i in range(b * BLOCK, b * BLOCK + BLOCK):
            y = weights[i] * factors[b]
            y = min(max(y, f4(-127.0)), f4(127.0))
            codes[i] = np.int32(y + (BELOW_HALF if y > f4(0.0) else -BELOW_HALF))


# block_q8_0: d float16; 32 int8
@kernel
def _pack(codes: Any, packed: Any) -> None:
    for b in range(len(packed)):
        for i in range(BLOCK):
            packed[b, 2 + i] = codes[b * BLOCK + i]


@kernel
def _unpack(packed: Any, scales: Any, out: Any) -> None:
    for b in range(len(packed)):
        for i in range(BLOCK):
            out[b * BLOCK + i] = scales[b] * f4(np.int8(packed[b, 2 + i]))


CODECS: dict[str, Codec] = {
    "Q8_0": codec(Layout(BLOCK, 34, BLOCK, 0, True), Stages({"rtn": _rtn, "opt-rtn": _opt}, _encode, _pack, _unpack)),
}
