"""Q2_K, Q4_K, Q5_K: 256 weights as d * scale * code - dmin * min, a scale and a min for each sub-block."""

from __future__ import annotations

from collections.abc import Callable
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
)
from ggufround_kernels._stages import Held, Layout, Stages, codec, lane_groups, new_held, suspect_groups
from ggufround_kernels.codec import F32, Codec

f4 = np.float32
BLOCK = 256
TURNS = 3  # rounds of choosing scale and min codes, then refitting d and dmin
TRIES = 5  # candidates of a sub-block in a round


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


SCALE, SHIFT, INVERSE, OFFSET, TOTAL, SC, M, SUM_X, SUM_L, SUM_L2, BEST_SC, BEST_M = range(0, 192, 16)


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
def _rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
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
            k = nearest(sc)
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
            store(held.scales, g * shape.groups + j, k)
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
        for j in range(shape.groups):
            sc = load(s.rows, BEST_SC + j)
            m = load(s.rows, BEST_M + j)
            scale = d * sc
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
        store(s.suspects, g, select(is_suspect(error, noise), broadcast(np.int32(1)), 0))


def _search_better(weights: F32, importance: F32 | None, first: int, count: int, held: Held, s: Scratch) -> None:
    """Our own search; where its error is out of the ordinary, the better of it and the reference's solution."""
    _opt(weights, importance, first, count, held, s)
    for g in suspect_groups(s.suspects, count):
        begin = first + g * LANES
        lanes = min(LANES, first + count - begin)
        _rtn(weights, importance, begin, lanes, s.other, s)
        _keep_better(weights, importance, begin, lanes, g, held, s)


@kernel
def _keep_better(weights: Any, importance: Any, first: Any, count: Any, g: Any, held: Any, s: Any) -> None:
    _load_group(weights, importance, first, count, s)
    if importance is None:
        keep_better(s.x, None, g, held, s.other, s.errors, s.suspects)
    else:
        lift_weights(s.w, BLOCK)
        keep_better(s.x, s.w, g, held, s.other, s.errors, s.suspects)


@kernel
def _search_super(w: Any, s: Any) -> Any:
    shape = s.shape
    n = shape.size
    rows = s.rows
    for j in range(shape.groups):
        scale, shift, sum_w, sum_x, sum_l, sum_l2 = search_affine(s.x, j * n, w, n, shape.top, shape.grid, f4(0.0))
        store(rows, SCALE + j, scale)
        store(rows, SHIFT + j, shift)
        store(rows, TOTAL + j, sum_w)
        store(rows, SUM_X + j, sum_x)
        store(rows, SUM_L + j, sum_l)
        store(rows, SUM_L2 + j, sum_l2)
    # super-scales from the quadratic model of each sub-block's error around its best scale and shift
    high = f4(shape.high)
    for j in range(shape.groups):
        sum_l = load(rows, SUM_L + j)
        absorbed = sum_l * sum_l / load(rows, TOTAL + j)  # by the min, where it is free to move
        free = load(rows, SHIFT + j) > 0.0
        store(rows, INVERSE + j, load(rows, SUM_L2 + j) - select(free, absorbed, 0.0))
    d = search_scale(rows, SCALE, INVERSE, shape.groups, shape.high)
    inverse = select(d > 0.0, f4(1.0) / d, 0.0)
    for j in range(shape.groups):
        scale = d * code_of(load(rows, SCALE + j), inverse, f4(0.0), high)
        shift = (scale * load(rows, SUM_L + j) - load(rows, SUM_X + j)) / load(rows, TOTAL + j)
        store(rows, OFFSET + j, larger(shift, 0.0))
    dmin = search_scale(rows, OFFSET, TOTAL, shape.groups, shape.high)
    best_error = broadcast(f4(np.inf))
    best_d = d
    best_dmin = dmin
    for j in range(shape.groups):
        store(rows, BEST_SC + j, broadcast(f4(0.0)))
        store(rows, BEST_M + j, broadcast(f4(0.0)))
    for _ in range(TURNS):
        inverse_d = select(d > 0.0, f4(1.0) / d, 0.0)
        inverse_dmin = select(dmin > 0.0, f4(1.0) / dmin, 0.0)
        total = broadcast(f4(0.0))
        aa = total
        ab = total
        bb = total
        ax = total
        bx = total
        for j in range(shape.groups):
            sum_w = load(rows, TOTAL + j)
            sum_x = load(rows, SUM_X + j)
            kept_l = load(rows, SUM_L + j)
            middle = code_of(load(rows, SCALE + j), inverse_d, f4(0.0), high)
            error = broadcast(f4(np.inf))
            kept_sc = middle
            kept_m = middle
            new_l = kept_l
            new_l2 = kept_l
            new_xl = kept_l
            for t in range(TRIES):
                if t < 3:
                    sc = larger(smaller(middle + f4(t - 1), high), 0.0)
                    shift = (d * sc * kept_l - sum_x) / sum_w
                    m = code_of(shift, inverse_dmin, f4(0.0), high)
                else:
                    sc = kept_sc
                    m = larger(smaller(kept_m + f4(2 * t - 7), high), 0.0)
                tried, sum_l, sum_l2, sum_xl = packed_error(s.x, j * n, w, n, shape.top, d * sc, dmin * m)
                better = tried < error
                error = select(better, tried, error)
                kept_sc = select(better, sc, kept_sc)
                kept_m = select(better, m, kept_m)
                new_l = select(better, sum_l, new_l)
                new_l2 = select(better, sum_l2, new_l2)
                new_xl = select(better, sum_xl, new_xl)
            total += error
            aa += kept_sc * kept_sc * new_l2
            ab += kept_sc * kept_m * new_l
            bb += kept_m * kept_m * sum_w
            ax += kept_sc * new_xl
            bx += kept_m * sum_x
            store(rows, SC + j, kept_sc)
            store(rows, M + j, kept_m)
            scale, shift, energy = least_squares(sum_w, sum_x, new_l, new_l2, new_xl, f4(0.0))
            store(rows, SCALE + j, select(energy > 0.0, scale, load(rows, SCALE + j)))
            store(rows, SUM_L + j, new_l)
        better = total < best_error
        best_error = select(better, total, best_error)
        best_d = select(better, d, best_d)
        best_dmin = select(better, dmin, best_dmin)
        for j in range(shape.groups):
            store(rows, BEST_SC + j, select(better, load(rows, SC + j), load(rows, BEST_SC + j)))
            store(rows, BEST_M + j, select(better, load(rows, M + j), load(rows, BEST_M + j)))
        # d and dmin that fit these codes best
        determinant = aa * bb - ab * ab
        solvable = determinant > aa * bb * f4(1e-6)
        both = (ax * bb - bx * ab) / determinant
        lows = (ax * ab - bx * aa) / determinant
        usable = solvable & (both > 0.0) & (lows > 0.0)
        d = select(usable, smaller(round_half(both), f4(65504.0)), d)
        dmin = select(usable, smaller(round_half(lows), f4(65504.0)), dmin)
    return best_d, best_dmin, best_error


# block_q2_K: 16 bytes scale | min << 4; 64 bytes, elements l, l+32, l+64, l+96 of a half in bit pairs; d, dmin float16
@kernel
def _pack_q2_k(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        for j in range(16):
            store(s, j, load(held.scales, 16 * g + j) | (load(held.mins, 16 * g + j) << 4))
        for half in range(2):
            for i in range(32):
                row = g * BLOCK + 128 * half + i
                low = load(held.codes, row) | (load(held.codes, row + 32) << 2)
                high = (load(held.codes, row + 64) << 4) | (load(held.codes, row + 96) << 6)
                store(s, 16 + 32 * half + i, low | high)
        _pack_supers(held, g, s, 80)
        begin = first + g * LANES
        store_blocks(s, 84, out, begin, min(LANES, first + count - begin))


# block_q4_K: d, dmin float16; 12 bytes of 6-bit scales and mins; 128 bytes, elements i and i+32 of 64 in nibbles
@kernel
def _pack_q4_k(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        _pack_supers(held, g, s, 0)
        _pack_scales(held, g, s)
        for c in range(4):
            for i in range(32):
                row = g * BLOCK + 64 * c + i
                store(s, 16 + 32 * c + i, load(held.codes, row) | (load(held.codes, row + 32) << 4))
        begin = first + g * LANES
        store_blocks(s, 144, out, begin, min(LANES, first + count - begin))


# block_q5_K: as q4_K, with 32 bytes before the nibbles: bit k of byte i is the fifth bit of element 32 * k + i
@kernel
def _pack_q5_k(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        _pack_supers(held, g, s, 0)
        _pack_scales(held, g, s)
        for i in range(32):
            fifth = broadcast(np.int32(0))
            for c in range(4):
                row = g * BLOCK + 64 * c + i
                low = load(held.codes, row)
                high = load(held.codes, row + 32)
                fifth = fifth | ((low >> 4) << (2 * c)) | ((high >> 4) << (2 * c + 1))
                store(s, 48 + 32 * c + i, (low & 15) | ((high & 15) << 4))
            store(s, 16 + i, fifth)
        begin = first + g * LANES
        store_blocks(s, 176, out, begin, min(LANES, first + count - begin))


@kernel
def _pack_supers(held: Any, g: Any, s: Any, row: Any) -> None:
    d = half_bits(load(held.d, g))
    dmin = half_bits(load(held.dmin, g))
    store(s, row, d)
    store(s, row + 1, d >> 8)
    store(s, row + 2, dmin)
    store(s, row + 3, dmin >> 8)


@kernel
def _pack_scales(held: Any, g: Any, s: Any) -> None:
    """Sub-blocks 0-3 in the low six bits of bytes 4 + j and 8 + j; 4-7 in nibbles of bytes 12 + j and the free bits."""
    for j in range(4):
        sc = load(held.scales, 8 * g + j)
        m = load(held.mins, 8 * g + j)
        late_sc = load(held.scales, 8 * g + j + 4)
        late_m = load(held.mins, 8 * g + j + 4)
        store(s, 4 + j, sc | ((late_sc >> 4) << 6))
        store(s, 8 + j, m | ((late_m >> 4) << 6))
        store(s, 12 + j, (late_sc & 15) | ((late_m & 15) << 4))


@kernel
def _unpack_scales(s: Any, rows: Any) -> None:
    for j in range(4):
        sc = load(s, 4 + j)
        m = load(s, 8 + j)
        late = load(s, 12 + j)
        store(rows, SC + j, to_float(sc & 63))
        store(rows, M + j, to_float(m & 63))
        store(rows, SC + j + 4, to_float((late & 15) | ((sc >> 6) << 4)))
        store(rows, M + j + 4, to_float((late >> 4) | ((m >> 6) << 4)))


@kernel
def _unpack_super(s: Any, row: Any) -> Any:
    return half_value(load(s, row) | (load(s, row + 1) << 8))


@kernel
def _unpack_q2_k(packed: Any, out: Any, s: Any) -> None:
    x = np.empty((BLOCK, LANES), np.float32)
    total = out.size // BLOCK
    for first in range(0, total, LANES):
        count = min(LANES, total - first)
        load_bytes(packed, first, count, 84, s)
        d = _unpack_super(s, 80)
        dmin = _unpack_super(s, 82)
        for j in range(16):
            byte = load(s, j)
            scale = d * to_float(byte & 15)
            shift = dmin * to_float(byte >> 4)
            for i in range(16):
                element = 16 * j + i
                code = (load(s, 16 + 32 * (j // 8) + element % 32) >> (2 * (element // 32 % 4))) & 3
                store(x, element, scale * to_float(code) - shift)
        store_floats(x, BLOCK, out, first, count)


@kernel
def _unpack_q45_k(packed: Any, out: Any, s: Any) -> None:
    x = np.empty((BLOCK, LANES), np.float32)
    rows = np.empty((192, LANES), np.float32)
    total = out.size // BLOCK
    size = packed.size // total
    codes = size - 128
    for first in range(0, total, LANES):
        count = min(LANES, total - first)
        load_bytes(packed, first, count, size, s)
        d = _unpack_super(s, 0)
        dmin = _unpack_super(s, 2)
        _unpack_scales(s, rows)
        for j in range(8):
            scale = d * load(rows, SC + j)
            shift = dmin * load(rows, M + j)
            for i in range(32):
                code = (load(s, codes + 32 * (j // 2) + i) >> (4 * (j % 2))) & 15
                if codes > 16:
                    code = code | (((load(s, 16 + i) >> j) & 1) << 4)
                store(x, 32 * j + i, scale * to_float(code) - shift)
        store_floats(x, BLOCK, out, first, count)


def _codec(nbytes: int, shape: Shape, pack: Callable[..., None], unpack: Callable[..., None]) -> Codec:
    layout = Layout(BLOCK, nbytes, shape.groups)

    def scratch(weights: F32, importance: F32 | None) -> Scratch:
        x, w, codes, rows = (aligned((count, LANES), np.float32) for count in (BLOCK, BLOCK, 32, 192))
        errors, suspects = (
            aligned((lane_groups(layout), LANES), np.float32),
            aligned((lane_groups(layout), LANES), np.uint8),
        )
        return Scratch(x, w, codes, rows, errors, suspects, new_held(layout, 1), shape)

    return codec(layout, Stages({"rtn": _rtn, "opt-rtn": _search_better}, pack, unpack, scratch))


# The grids of candidates are the best measured on the matrices of a real model at about 100 M weights/s (AVX-512):
# Q5_K gains most from wide steps with fewer levels, Q2_K from shifted rounding.
_Q2_K = Shape(16, 16, 3, 15, 1, -0.5, 15, Grid(-1.2, 0.4, 7, -0.2, 0.4, 3, 1))
_Q4_K = Shape(8, 32, 15, 63, 2, -1.0, 20, Grid(-2.4, 0.4, 9, -0.2, 0.4, 3, 1))
_Q5_K = Shape(8, 32, 31, 63, 2, -0.5, 15, Grid(-3.6, 0.6, 8, -0.2, 0.3, 3, 1))

CODECS: dict[str, Codec] = {
    "Q2_K": _codec(84, _Q2_K, _pack_q2_k, _unpack_q2_k),
    "Q4_K": _codec(144, _Q4_K, _pack_q4_k, _unpack_q45_k),
    "Q5_K": _codec(176, _Q5_K, _pack_q5_k, _unpack_q45_k),
}
