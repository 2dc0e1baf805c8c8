"""Q4_1 and Q5_1: 32 weights as d * code + m, both float16.

With importance the error's weights are importance * sqrt(sigma2 + x**2), where sigma2 is the mean of x**2 over the
whole row, so the rows' sums come first (`_row_variances`, rows on lanes, added in the reference's order).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggufround_kernels._affine import (
    Grid,
    code_of,
    fit_affine,
    is_suspect,
    keep_better,
    lift_weights,
    packed_error,
    search_affine,
)
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    aligned,
    broadcast,
    half_bits,
    half_value,
    larger,
    load,
    load_blocks,
    load_bytes,
    nearest,
    round_half,
    select,
    smaller,
    sqrt,
    store,
    store_blocks,
    store_floats,
    to_float,
    truncate,
)
from ggufround_kernels._stages import Held, Layout, Stages, codec, lane_groups, new_held, suspect_runs
from ggufround_kernels.codec import F32, Codec

f4 = np.float32
BLOCK = 32


class Shape(NamedTuple):
    top: int  # highest code
    grid: Grid


class Scratch(NamedTuple):
    """What a search works in, rows of LANES float32."""

    x: Any  # 32 rows: weights
    w: Any  # 32 rows: weights of the error
    codes: Any  # 32 rows
    variances: Any  # mean of x**2 of every row of the matrix; empty without importance
    errors: Any  # one row a lane group: our own search's error
    suspects: Any  # likewise, uint8: where the reference's may be lower
    other: Held  # the reference's solution of one lane group
    shape: Shape


@kernel
def _row_variances(weights: Any, rows: Any, out: Any) -> None:
    """Mean of squares of each row, the sum in float32 from left to right."""
    n = weights.size // rows
    columns = np.empty((BLOCK, LANES), np.float32)
    means = np.empty((1, LANES), np.float32)
    for first in range(0, rows, LANES):
        count = min(LANES, rows - first)
        total = broadcast(f4(0.0))
        for column in range(0, n, BLOCK):
            for lane in range(LANES):
                start = (first + min(lane, count - 1)) * n + column
                for i in range(BLOCK):
                    columns[i, lane] = weights[start + i]
            for i in range(BLOCK):
                v = load(columns, i)
                total += v * v
        store(means, 0, total / f4(n))
        for lane in range(count):
            out[first + lane] = means[0, lane]


@kernel
def _load_group(weights: Any, importance: Any, first: Any, count: Any, s: Any) -> None:
    """Weights to s.x; with importance the weights of the error to s.w."""
    load_blocks(weights, first, count, BLOCK, s.x)
    if importance is None:
        return
    per_row = importance.size // BLOCK
    for lane in range(LANES):
        block = first + min(lane, count - 1)
        s.codes[0, lane] = s.variances[block // per_row]
        start = block % per_row * BLOCK
        for i in range(BLOCK):
            s.w[i, lane] = importance[start + i]
    variance = load(s.codes, 0)
    for i in range(BLOCK):
        v = load(s.x, i)
        store(s.w, i, load(s.w, i) * sqrt(variance + v * v))


@kernel
def _reference(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    """quantize_row_qX_1_ref without importance, quantize_row_qX_1_impl with it."""
    top = s.shape.top
    for g in range((count + LANES - 1) // LANES):
        begin = first + g * LANES
        _load_group(weights, importance, begin, min(LANES, first + count - begin), s)
        if importance is None:
            low = load(s.x, 0)
            high = low
            for i in range(1, BLOCK):
                v = load(s.x, i)
                low = smaller(v, low)
                high = larger(v, high)
            d = (high - low) / f4(top)
            inverse = select(d != 0.0, f4(1.0) / d, 0.0)
            for i in range(BLOCK):
                code = truncate((load(s.x, i) - low) * inverse + f4(0.5))
                # the reference casts to 8 bits, which turns an overflow of the cast to int into 0
                store(held.codes, g * BLOCK + i, smaller(code & 255, top))
        else:
            d, shift, inverse, offset, _ = fit_affine(s.x, s.w, 0, BLOCK, top, f4(-0.9), f4(0.05), 36, False, s.codes)
            low = -shift
            for i in range(BLOCK):
                code = nearest(inverse * (load(s.x, i) - offset))
                store(held.codes, g * BLOCK + i, larger(smaller(code, top), 0))
        store(held.d, g, round_half(d))
        store(held.dmin, g, round_half(low))


@kernel
def _opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    """Least squares for scale and minimum over many candidate scales, then the codes of the float16 values."""
    for g in range((count + LANES - 1) // LANES):
        begin = first + g * LANES
        _load_group(weights, importance, begin, min(LANES, first + count - begin), s)
        if importance is None:
            d, low, error, noise = _fit_block(None, s)
        else:
            lift_weights(s.w, BLOCK)
            d, low, error, noise = _fit_block(s.w, s)
        inverse = select(d > 0.0, f4(1.0) / d, 0.0)
        for i in range(BLOCK):
            code = code_of(load(s.x, i), inverse, -low, f4(s.shape.top))
            store(held.codes, g * BLOCK + i, nearest(code))
        store(held.d, g, d)
        store(held.dmin, g, low)
        store(s.errors, g, error)
        store(s.suspects, g, select(is_suspect(error, noise, f4(0.35)), broadcast(np.int32(1)), 0))


def _better(weights: F32, importance: F32 | None, first: int, count: int, held: Held, s: Scratch) -> None:
    """Our own search; where its error is out of the ordinary, the better of it and the reference's solution."""
    _opt(weights, importance, first, count, held, s)
    for g, number in suspect_runs(s.suspects, count):
        begin = first + g * LANES
        blocks = min(number * LANES, first + count - begin)
        _reference(weights, importance, begin, blocks, s.other, s)
        _keep_better(weights, importance, begin, blocks, g, held, s)


@kernel
def _keep_better(weights: Any, importance: Any, first: Any, count: Any, g: Any, held: Any, s: Any) -> None:
    for k in range((count + LANES - 1) // LANES):
        begin = first + k * LANES
        _load_group(weights, importance, begin, min(LANES, first + count - begin), s)
        if importance is None:
            keep_better(s.x, None, g + k, held, k, s.other, s.errors, s.suspects)
        else:
            lift_weights(s.w, BLOCK)
            keep_better(s.x, s.w, g + k, held, k, s.other, s.errors, s.suspects)


@kernel
def _fit_block(w: Any, s: Any) -> Any:
    """float16 scale and minimum of each lane's block, the error they leave, and that of even rounding."""
    scale, shift, sum_w, sum_x, sum_l, _ = search_affine(s.x, 0, w, BLOCK, s.shape.top, s.shape.grid, f4(-np.inf))
    limit = f4(65504.0)
    d = smaller(round_half(scale), limit)
    low = select(sum_l > 0.0, (sum_x - d * sum_l) / sum_w, -shift)  # the minimum that suits the rounded scale
    low = larger(smaller(round_half(low), limit), -limit)
    error, _, _, _ = packed_error(s.x, 0, w, BLOCK, s.shape.top, d, -low)
    return d, low, error, sum_w * d * d * f4(1.0 / 12.0)


@kernel
def _pack_head(held: Any, g: Any, s: Any) -> None:
    d = half_bits(load(held.d, g))
    m = half_bits(load(held.dmin, g))
    store(s, 0, d)
    store(s, 1, d >> 8)
    store(s, 2, m)
    store(s, 3, m >> 8)


# block_q4_1: d, m float16; 16 bytes, element i in the low and i + 16 in the high nibble
@kernel
def _pack_q4_1(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        _pack_head(held, g, s)
        for i in range(16):
            row = g * BLOCK + i
            store(s, 4 + i, load(held.codes, row) | (load(held.codes, row + 16) << 4))
        begin = first + g * LANES
        store_blocks(s, 20, out, begin, min(LANES, first + count - begin))


# block_q5_1: d, m float16; 4 bytes, bit i the fifth bit of element i; 16 bytes of nibbles as q4_1
@kernel
def _pack_q5_1(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        _pack_head(held, g, s)
        for k in range(4):
            fifth = broadcast(np.int32(0))
            for i in range(8):
                fifth = fifth | ((load(held.codes, g * BLOCK + 8 * k + i) >> 4) << i)
            store(s, 4 + k, fifth)
        for i in range(16):
            row = g * BLOCK + i
            store(s, 8 + i, (load(held.codes, row) & 15) | ((load(held.codes, row + 16) & 15) << 4))
        begin = first + g * LANES
        store_blocks(s, 24, out, begin, min(LANES, first + count - begin))


@kernel
def _unpack(packed: Any, out: Any, s: Any) -> None:
    x = np.empty((BLOCK, LANES), np.float32)
    total = out.size // BLOCK
    size = packed.size // total if total else 0
    for first in range(0, total, LANES):
        count = min(LANES, total - first)
        load_bytes(packed, first, count, size, s)
        d = half_value(load(s, 0) | (load(s, 1) << 8))
        m = half_value(load(s, 2) | (load(s, 3) << 8))
        for i in range(BLOCK):
            code = (load(s, size - 16 + i % 16) >> (4 * (i // 16))) & 15
            if size == 24:
                code = code | (((load(s, 4 + i // 8) >> (i % 8)) & 1) << 4)
            store(x, i, d * to_float(code) + m)
        store_floats(x, BLOCK, out, first, count)


def _codec(nbytes: int, shape: Shape, pack: Callable[..., None]) -> Codec:
    layout = Layout(BLOCK, nbytes, 0)

    def scratch(weights: F32, importance: F32 | None) -> Scratch:
        rows = len(weights)
        variances = np.empty(0 if importance is None else rows, np.float32)
        if importance is not None:
            _row_variances(weights.reshape(-1), rows, variances)
        x, w, codes = (aligned((BLOCK, LANES), np.float32) for _ in range(3))
        errors, suspects = (
            aligned((lane_groups(layout), LANES), np.float32),
            aligned((lane_groups(layout), LANES), np.uint8),
        )
        return Scratch(x, w, codes, variances, errors, suspects, new_held(layout, lane_groups(layout)), shape)

    return codec(layout, Stages({"rtn": _reference, "opt-rtn": _better}, pack, _unpack, scratch))


CODECS: dict[str, Codec] = {
    "Q4_1": _codec(20, Shape(top=15, grid=Grid(-2.4, 0.4, 9, -0.2, 0.4, 3, 1)), _pack_q4_1),
    "Q5_1": _codec(24, Shape(top=31, grid=Grid(-3.6, 0.6, 8, -0.4, 0.2, 5, 2)), _pack_q5_1),
}
