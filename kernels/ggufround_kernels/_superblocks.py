"""The searches of Q2_K, Q4_K and Q5_K: 256 weights as d * scale * code - dmin * min, per sub-block of 16 or 32.

`reference` gives llama.cpp's values, `better` ours: per lane the lower error S = sum w * (x - x_packed)**2, where w is
one without importance and the reference's own weight with it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ggufround_kernels._affine import (
    Grid,
    code_of,
    fit_affine,
    fit_scales,
    is_suspect,
    keep_better,
    least_squares,
    lift_weights,
    packed_error,
    search_affine,
    search_scale,
)
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    absolute,
    aligned,
    any_lane,
    broadcast,
    larger,
    load,
    load_blocks,
    nearest,
    round_half,
    select,
    smaller,
    sqrt,
    store,
    to_float,
)
from ggufround_kernels._stages import Held, Layout, lane_groups, new_held, suspect_runs
from ggufround_kernels.codec import F32

f4 = np.float32
BLOCK = 256
TURNS = 3  # rounds of choosing scale and min codes, then refitting d and dmin
HALF_MAX = f4(65504.0)


class Shape(NamedTuple):
    """One type's numbers."""

    groups: int  # sub-blocks of a super-block
    size: int  # elements of a sub-block
    top: int  # highest code of an element
    high: int  # highest code of a sub-block's scale and min
    spread: int  # sigma2 of the error's weights is spread * mean(x**2)
    start: float  # the reference's candidates without importance: top + start + 0.1 * k, k = 0 .. steps
    steps: int
    grid: Grid  # our own candidates


class Scratch(NamedTuple):
    """What a search works in, rows of LANES float32."""

    x: Any  # 256 rows: weights
    w: Any  # 256 rows: importance, then the weights of the error
    codes: Any  # 32 rows: codes of a sub-block
    rows: Any  # 12 times 16 rows: one value a sub-block
    errors: Any  # one row a lane group: our own search's error
    suspects: Any  # likewise, uint8: where the reference's may be lower
    other: Held  # the reference's solution of one lane group
    shape: Shape


# first rows of Scratch.rows
SCALE, SHIFT, INVERSE, OFFSET, TOTAL, SC, M, SUM_X, SUM_L, STIFFNESS, BEST_SC, BEST_M = range(0, 192, 16)


@kernel
def _load_group(weights: Any, importance: Any, first: Any, count: Any, s: Any) -> None:
    """Weights to s.x; with importance the reference's weights importance * sqrt(sigma2 + x**2) to s.w."""
    load_blocks(weights, first, count, BLOCK, s.x)
    if importance is None:
        return
    per_row = importance.size // BLOCK
    for lane in range(LANES):
        start = ((first + min(lane, count - 1)) % per_row) * BLOCK
        for i in range(BLOCK):
            s.w[i, lane] = importance[start + i]
    total = broadcast(f4(0.0))
    for i in range(BLOCK):
        v = load(s.x, i)
        total += v * v
    variance = f4(s.shape.spread) * total / f4(BLOCK)
    for i in range(BLOCK):
        v = load(s.x, i)
        store(s.w, i, load(s.w, i) * sqrt(variance + v * v))


@kernel
def reference(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    """quantize_row_qX_K_ref without importance, quantize_row_qX_K_impl with it."""
    shape = s.shape
    n = shape.size
    for g in range((count + LANES - 1) // LANES):
        begin = first + g * LANES
        _load_group(weights, importance, begin, min(LANES, first + count - begin), s)
        high_scale = broadcast(f4(0.0))
        high_low = broadcast(f4(0.0))
        for j in range(shape.groups):
            row = j * n
            if importance is None:
                rms = broadcast(f4(0.0))
                if n == 32:
                    for i in range(n):
                        v = load(s.x, row + i)
                        rms += v * v
                    rms = sqrt(rms / f4(n))
                for i in range(n):
                    store(s.w, row + i, rms + absolute(load(s.x, row + i)))
                fit = fit_affine(s.x, s.w, row, n, shape.top, f4(shape.start), f4(0.1), shape.steps, n == 16, s.codes)
            else:
                fit = fit_affine(s.x, s.w, row, n, shape.top, f4(-0.9), f4(0.05), 36, False, s.codes)
            scale, low, inverse, offset, total = fit
            high_scale = larger(scale, high_scale)
            high_low = larger(low, high_low)
            store(s.rows, SCALE + j, scale)
            store(s.rows, SHIFT + j, low)
            store(s.rows, INVERSE + j, inverse)
            store(s.rows, OFFSET + j, offset)
            store(s.rows, TOTAL + j, total)
        if importance is None:
            d = high_scale / f4(shape.high)
            dmin = high_low / f4(shape.high)
            inverse_scale = select(high_scale > 0.0, f4(shape.high) / high_scale, 0.0)
            inverse_low = select(high_low > 0.0, f4(shape.high) / high_low, 0.0)
            for j in range(shape.groups):
                sc = nearest(inverse_scale * load(s.rows, SCALE + j)) & 255
                m = nearest(inverse_low * load(s.rows, SHIFT + j)) & 255
                store(s.rows, SC + j, to_float(sc if shape.high == 15 else smaller(sc, 63)))
                store(s.rows, M + j, to_float(m if shape.high == 15 else smaller(m, 63)))
        else:
            d = fit_scales(s.rows, SCALE, TOTAL, SC, shape.groups, shape.high)
            dmin = fit_scales(s.rows, SHIFT, TOTAL, M, shape.groups, shape.high)
        _wrap_scales(shape, s.rows)
        d = round_half(d)
        dmin = round_half(dmin)
        store(held.d, g, d)
        store(held.dmin, g, dmin)
        for j in range(shape.groups):
            sc = load(s.rows, SC + j)
            m = load(s.rows, M + j)
            scale = d * sc
            shift = dmin * m
            idle = scale == 0.0
            fallback = any_lane(idle)
            for i in range(n):
                v = load(s.x, j * n + i)
                code = larger(smaller(nearest((v + shift) / scale), shape.top), 0)
                if fallback:
                    # the reference leaves the codes of its search where d * sc is zero
                    kept = nearest(load(s.rows, INVERSE + j) * (v - load(s.rows, OFFSET + j)))
                    code = select(idle, larger(smaller(kept, shape.top), 0), code)
                store(held.codes, g * BLOCK + j * n + i, code)
            store(held.scales, g * shape.groups + j, nearest(sc))
            store(held.mins, g * shape.groups + j, nearest(m))


@kernel
def _wrap_scales(shape: Any, rows: Any) -> None:
    """Scale and min codes as they come back from the reference's bytes.

    Extreme importance can fit a negative scale, whose code is then above the field's highest and runs into its
    neighbours: Q5_K clamps it, Q4_K and Q2_K do not."""
    for j in range(shape.groups - 1, -1, -1):
        sc = nearest(load(rows, SC + j))
        m = nearest(load(rows, M + j))
        if shape.high == 15:
            byte = sc | (m << 4)
            sc = byte & 15
            m = (byte >> 4) & 15
        elif shape.top == 31:
            sc = smaller(sc, 63)
            m = smaller(m, 63)
        elif j < 4:
            sc = sc & 63
            m = m & 63
        else:
            sc = (sc & 63) | ((nearest(load(rows, SC + j - 4)) >> 6) << 4)
            m = (m & 63) | ((nearest(load(rows, M + j - 4)) >> 6) << 4)
        store(rows, SC + j, to_float(sc))
        store(rows, M + j, to_float(m))


@kernel
def _opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    """Our own search, with its error and the lanes where the reference may do better."""
    shape = s.shape
    n = shape.size
    for g in range((count + LANES - 1) // LANES):
        begin = first + g * LANES
        _load_group(weights, importance, begin, min(LANES, first + count - begin), s)
        if importance is None:
            d, dmin, error = _search_super(None, s)
        else:
            lift_weights(s.w, BLOCK)
            d, dmin, error = _search_super(s.w, s)
        noise = broadcast(f4(0.0))
        idle = broadcast(f4(0.0))
        for j in range(shape.groups):
            sc = load(s.rows, BEST_SC + j)
            m = load(s.rows, BEST_M + j)
            scale = d * sc
            idle += select(sc == 0.0, broadcast(f4(1.0)), 0.0)
            noise += load(s.rows, TOTAL + j) * scale * scale * f4(1.0 / 12.0)
            inverse = select(scale > 0.0, f4(1.0) / scale, 0.0)
            for i in range(n):
                code = code_of(load(s.x, j * n + i), inverse, dmin * m, f4(shape.top))
                store(held.codes, g * BLOCK + j * n + i, nearest(code))
            store(held.scales, g * shape.groups + j, nearest(sc))
            store(held.mins, g * shape.groups + j, nearest(m))
        store(held.d, g, d)
        store(held.dmin, g, dmin)
        store(s.errors, g, error)
        suspect = is_suspect(error, noise, f4(0.15)) | (
            idle > f4(shape.groups // 2)
        )  # a few sub-blocks outweigh the rest
        store(s.suspects, g, select(suspect, broadcast(np.int32(1)), 0))


def better(weights: F32, importance: F32 | None, first: int, count: int, held: Held, s: Scratch) -> None:
    """Our own search; where its error is out of the ordinary, the better of it and the reference's solution."""
    _opt(weights, importance, first, count, held, s)
    for g, number in suspect_runs(s.suspects, count):
        begin = first + g * LANES
        blocks = min(number * LANES, first + count - begin)
        reference(weights, importance, begin, blocks, s.other, s)
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
def _search_super(w: Any, s: Any) -> Any:
    """d, dmin and the error of each lane's super-block; codes of scales and mins to rows BEST_SC and BEST_M of s.rows.

    Each sub-block's best continuous scale and shift come first, then the super-scales that suit them all. In every
    turn the sub-blocks choose codes for the d and dmin at hand by their true error, and d and dmin are refitted."""
    shape = s.shape
    n = shape.size
    rows = s.rows
    for j in range(shape.groups):
        scale, shift, sum_w, sum_x, sum_l, sum_l2 = search_affine(s.x, j * n, w, n, shape.top, shape.grid, f4(0.0))
        absorbed = select(shift > 0.0, sum_l * sum_l / sum_w, 0.0)  # by the min, where it is free to move
        store(rows, SCALE + j, scale)
        store(rows, STIFFNESS + j, sum_l2 - absorbed)
        store(rows, TOTAL + j, sum_w)
        store(rows, SUM_X + j, sum_x)
        store(rows, SUM_L + j, sum_l)
        store(rows, BEST_SC + j, broadcast(f4(0.0)))
        store(rows, BEST_M + j, broadcast(f4(0.0)))
    d, dmin = _start_super(shape, rows)
    best_error = broadcast(f4(np.inf))
    best_d = d
    best_dmin = dmin
    for _ in range(TURNS):
        error, new_d, new_dmin = _turn(w, d, dmin, s)
        better = error < best_error
        best_error = select(better, error, best_error)
        best_d = select(better, d, best_d)
        best_dmin = select(better, dmin, best_dmin)
        for j in range(shape.groups):
            store(rows, BEST_SC + j, select(better, load(rows, SC + j), load(rows, BEST_SC + j)))
            store(rows, BEST_M + j, select(better, load(rows, M + j), load(rows, BEST_M + j)))
        d = new_d
        dmin = new_dmin
    return best_d, best_dmin, best_error


@kernel
def _start_super(shape: Any, rows: Any) -> Any:
    """d from the sub-blocks' scales, then dmin from the mins that suit the rounded scales."""
    d = search_scale(rows, SCALE, STIFFNESS, shape.groups, shape.high)
    inverse = select(d > 0.0, f4(1.0) / d, 0.0)
    for j in range(shape.groups):
        scale = d * code_of(load(rows, SCALE + j), inverse, f4(0.0), f4(shape.high))
        shift = (scale * load(rows, SUM_L + j) - load(rows, SUM_X + j)) / load(rows, TOTAL + j)
        store(rows, SHIFT + j, larger(shift, 0.0))
    return d, search_scale(rows, SHIFT, TOTAL, shape.groups, shape.high)


@kernel
def _turn(w: Any, d: Any, dmin: Any, s: Any) -> Any:
    """Codes of all scales and mins for d and dmin (rows SC and M), their error, and the refitted d and dmin."""
    shape = s.shape
    rows = s.rows
    total = broadcast(f4(0.0))
    aa = total
    ab = total
    bb = total
    ax = total
    bx = total
    for j in range(shape.groups):
        sum_w = load(rows, TOTAL + j)
        sum_x = load(rows, SUM_X + j)
        error, sc, m, sum_l, sum_l2, sum_xl = _round_group(w, d, dmin, j, s)
        total += error
        aa += sc * sc * sum_l2
        ab += sc * m * sum_l
        bb += m * m * sum_w
        ax += sc * sum_xl
        bx += m * sum_x
        store(rows, SC + j, sc)
        store(rows, M + j, m)
        scale, _, energy = least_squares(sum_w, sum_x, sum_l, sum_l2, sum_xl, f4(0.0))
        store(rows, SCALE + j, select(energy > 0.0, scale, load(rows, SCALE + j)))
        store(rows, SUM_L + j, sum_l)
    determinant = aa * bb - ab * ab
    new_d = (ax * bb - bx * ab) / determinant
    new_dmin = (ax * ab - bx * aa) / determinant
    usable = (determinant > aa * bb * f4(1e-6)) & (new_d > 0.0) & (new_dmin > 0.0)
    new_d = select(usable, smaller(round_half(new_d), HALF_MAX), d)
    return total, new_d, select(usable, smaller(round_half(new_dmin), HALF_MAX), dmin)


@kernel
def _round_group(w: Any, d: Any, dmin: Any, j: Any, s: Any) -> Any:
    """Scale and min codes of sub-block j with the least error: three scale codes each with the min that suits it, then
    the best one's neighbouring mins. Returns error, sc, m and the sums of the codes."""
    n = s.shape.size
    high = f4(s.shape.high)
    inverse_d = select(d > 0.0, f4(1.0) / d, 0.0)
    inverse_dmin = select(dmin > 0.0, f4(1.0) / dmin, 0.0)
    sum_w = load(s.rows, TOTAL + j)
    sum_x = load(s.rows, SUM_X + j)
    before = load(s.rows, SUM_L + j)
    middle = code_of(load(s.rows, SCALE + j), inverse_d, f4(0.0), high)
    error = broadcast(f4(np.inf))
    best_sc = middle
    best_m = middle
    best_l = before
    best_l2 = before
    best_xl = before
    for t in range(5):
        if t < 3:
            sc = larger(smaller(middle + f4(t - 1), high), 0.0)
            m = code_of((d * sc * before - sum_x) / sum_w, inverse_dmin, f4(0.0), high)
        else:
            sc = best_sc
            m = larger(smaller(best_m + f4(2 * t - 7), high), 0.0)
        tried, sum_l, sum_l2, sum_xl = packed_error(s.x, j * n, w, n, s.shape.top, d * sc, dmin * m)
        better = tried < error
        error = select(better, tried, error)
        best_sc = select(better, sc, best_sc)
        best_m = select(better, m, best_m)
        best_l = select(better, sum_l, best_l)
        best_l2 = select(better, sum_l2, best_l2)
        best_xl = select(better, sum_xl, best_xl)
    return error, best_sc, best_m, best_l, best_l2, best_xl


def new_scratch(layout: Layout, shape: Shape) -> Scratch:
    """Scratch for the searches of one call."""
    x, w, codes, rows = (aligned((count, LANES), np.float32) for count in (BLOCK, BLOCK, 32, 192))
    errors = aligned((lane_groups(layout), LANES), np.float32)
    suspects = aligned((lane_groups(layout), LANES), np.uint8)
    return Scratch(x, w, codes, rows, errors, suspects, new_held(layout, lane_groups(layout)), shape)
