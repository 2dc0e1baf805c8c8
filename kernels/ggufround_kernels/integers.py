"""Integers of 2 to 8 bits with a float16 scale for each group of neighbours in a row; groups of any size.

Symmetric: value = d * (code - half), half = 2^(bits - 1). As in AutoRound, d has a sign: it puts the side that reaches
further on the one code that has no counterpart, -half, so that all codes are used. Asymmetric: value = d * (code -
zero), d > 0, zero a code. Both hold 0 exactly, and no |d| is below FLOOR, AutoRound's, so that nothing divides by zero.

`rtn` is AutoRound's plain rounding: the extremes of a group (and 0) decide.

`opt-rtn` minimises sum w (x - value)^2, w the importance, or 1. Seen from the multiples of |d|, both kinds are the
same: codes are a window of 2^bits multiples, from -zero up. Asymmetric, the window may begin anywhere from -top to 0;
symmetric, at -half, or at 1 - half where d is negative. So there is one search:
 1. `tries_of`: scales that divide the extent of a group by something between half and thrice a window's width, with
    windows from one end of the group to the other. All are judged by the error that is left when d is fitted to the
    codes by least squares, which costs no second pass: with rest = x - d * l and the codes l, d grows by
    sum w rest l / sum w l^2, and the error falls by (sum w rest l)^2 / sum w l^2. These sums of rests stay precise
    where the codes have 8 bits; those of make_qx_quants (sum w x l) don't.
 2. The best one's d is rounded to float16, coded anew and fitted again, and the windows beside it likewise. What counts
    now is the error as it will be stored, and it must be below that of rtn.
Whole numbers are among the divisors: weights that lie on such a grid already keep it.

Lanes are groups (`_lanes.py`), 32 at a time.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ggufround_kernels import grouped
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    aligned,
    broadcast,
    larger,
    load,
    load_blocks,
    round_even,
    round_half,
    select,
    smaller,
    store,
)
from ggufround_kernels._vector import load_at, peak
from ggufround_kernels.codec import F32, Search
from ggufround_kernels.grouped import GroupCodec
from ggufround_kernels.rounded import Rounded

BITS = (2, 3, 4, 5, 6, 8)
ZERO = np.float32(0)
ONE = np.float32(1)
INFINITY = np.float32(np.inf)
FLOOR = np.float32(np.float16(1e-5))  # 168 * 2^-24
HALF_MAX = np.float32(65504)  # the largest float16
MAGIC = np.float32(12582912)  # 1.5 * 2^23: adding and subtracting it rounds to whole numbers, halves to even
REFITS = 3


class Scratch(NamedTuple):
    """Of 32 groups: weights and importances [group, LANES]; two rows of lanes."""

    x: F32
    w: F32
    rows: F32


# --- rtn -------------------------------------------------------------------------------------------------------------


@kernel
def extremes(weights: Any, first: Any, group: Any) -> Any:
    """The least and the largest of 0 and the weights first .. first + group."""
    low, high = ZERO, ZERO
    if group < LANES:
        for i in range(first, first + group):
            low = min(low, weights[i])
            high = max(high, weights[i])
        return low, high
    lows, highs = broadcast(ZERO), broadcast(ZERO)
    for start in range(0, group, LANES):
        x = load_at(weights, first + min(start, group - LANES))  # the last vector may overlap the one before
        lows, highs = smaller(x, lows), larger(x, highs)
    return -peak(-lows), peak(highs)


@kernel
def storable(d: Any) -> Any:
    """Lanes of magnitudes as they will be stored: float16 values, at least FLOOR and never infinite or NaN."""
    return larger(smaller(round_half(d), HALF_MAX), FLOOR)


@kernel
def plain(weights: Any, first: Any, count: Any, group: Any, top: Any, sym: Any, s: Any) -> Any:
    """AutoRound's (|d|, zero) of groups first .. first + count, and their extremes. Zero for sym: half, or where d is
    negative half - 1."""
    for lane in range(count):
        s.rows[0, lane], s.rows[1, lane] = extremes(weights, (first + lane) * group, group)
    low, high = load(s.rows, 0), load(s.rows, 1)
    if sym:
        half = (top + ONE) / np.float32(2)
        d = larger(high, -low) / half
        negative = ~(high < -low) & (round_half(d) > ZERO)
        return storable(d), select(negative, half - ONE, broadcast(half)), low, high
    d = storable((high - low) / top)
    return d, smaller(round_even(-low / d), top), low, high


@kernel
def finish(
    weights: Any, first: Any, count: Any, group: Any, top: Any, sym: Any, d: Any, zero: Any, s: Any, out: Any
) -> None:
    """Scales, zeros and codes of groups first .. first + count."""
    codes, scales, zeros = out
    half = (top + ONE) / np.float32(2)
    if sym:
        d, zero = select(zero < half, -d, d), broadcast(half)
    store(s.rows, 0, d)
    store(s.rows, 1, zero)
    for lane in range(count):
        scale, origin = s.rows[0, lane], s.rows[1, lane]
        scales[first + lane] = scale
        zeros[first + lane] = np.int32(origin)
        low, high = -origin, top - origin
        for i in range((first + lane) * group, (first + lane + 1) * group):
            code = (weights[i] / scale + MAGIC) - MAGIC
            code = code if code > low else low
            code = code if code < high else high
            codes[i] = np.int32(code + origin)


@kernel
def rtn(weights: Any, group: Any, top: Any, sym: Any, s: Any, out: Any) -> None:
    groups = out[1].size
    for first in range(0, groups, LANES):
        count = min(LANES, groups - first)
        d, zero, _, _ = plain(weights, first, count, group, top, sym, s)
        finish(weights, first, count, group, top, sym, d, zero, s, out)


# --- opt-rtn ---------------------------------------------------------------------------------------------------------


@kernel
def attempt(x: Any, w: Any, d: Any, zero: Any, top: Any) -> Any:
    """The error of each lane's group, how much less it would be with d fitted to the codes, and that d's difference."""
    inverse, low, high = ONE / d, -zero, top - zero
    error, slope, curvature = broadcast(ZERO), broadcast(ZERO), broadcast(ZERO)
    for i in range(x.shape[0]):
        v = load(x, i)
        code = larger(smaller(round_even(v * inverse), high), low)
        rest = v - d * code
        weighted_rest, weighted_code = rest, code
        if w is not None:
            weight = load(w, i)
            weighted_rest, weighted_code = weight * rest, weight * code
        error = error + weighted_rest * rest
        slope = slope + weighted_rest * code
        curvature = curvature + weighted_code * code
    step = select(curvature > ZERO, slope / curvature, ZERO)
    return error, slope * step, step


@kernel
def best_try(x: Any, w: Any, low: Any, high: Any, top: Any, sym: Any, tries: Any) -> Any:
    """(|d|, zero) of the least error after fitting d."""
    least, best, best_zero = broadcast(INFINITY), broadcast(FLOOR), broadcast(ZERO)
    extent = larger(high, -low) * np.float32(2) if sym else high - low
    for k in range(tries.shape[0]):
        parts, shift = tries[k, 0], tries[k, 1]
        d = storable(extent / parts)
        if sym:
            zero = broadcast((top + ONE) / np.float32(2) - shift)
        else:
            zero = larger(smaller(round_even(-low / d - shift), top), ZERO)
        error, gain, step = attempt(x, w, d, zero, top)
        better = error - gain < least
        least = select(better, error - gain, least)
        best, best_zero = select(better, d + step, best), select(better, zero, best_zero)
    return best, best_zero


@kernel
def best_of(x: Any, w: Any, low: Any, high: Any, d: Any, zero: Any, top: Any, sym: Any, tries: Any) -> Any:
    """(|d|, zero) of the least error as stored; d and zero are rtn's, which stay where nothing is better."""
    least, _, _ = attempt(x, w, d, zero, top)
    tried, tried_zero = best_try(x, w, low, high, top, sym, tries)
    for side in range(3):
        if side > 0:
            step = np.float32(2 * side - 3)
            tried, tried_zero = d, top - zero if sym else larger(smaller(zero + step, top), ZERO)
        for _ in range(REFITS):
            tried = storable(tried)
            error, _, step_to_fit = attempt(x, w, tried, tried_zero, top)
            better = error < least
            least = select(better, error, least)
            d, zero = select(better, tried, d), select(better, tried_zero, zero)
            tried = tried + step_to_fit
    return d, zero


@kernel
def load_importance(importance: Any, first: Any, count: Any, group: Any, w: Any) -> None:
    """That of groups first .. first + count to the lanes of w."""
    for lane in range(LANES):
        column = (first + min(lane, count - 1)) * group % importance.size
        for i in range(group):
            w[i, lane] = importance[column + i]


@kernel
def opt(weights: Any, importance: Any, group: Any, top: Any, sym: Any, tries: Any, s: Any, out: Any) -> None:
    groups = out[1].size
    for first in range(0, groups, LANES):
        count = min(LANES, groups - first)
        d, zero, low, high = plain(weights, first, count, group, top, sym, s)
        load_blocks(weights, first, count, group, s.x)
        if importance is None:
            d, zero = best_of(s.x, None, low, high, d, zero, top, sym, tries)
        else:
            load_importance(importance, first, count, group, s.w)
            d, zero = best_of(s.x, s.w, low, high, d, zero, top, sym, tries)
        finish(weights, first, count, group, top, sym, d, zero, s, out)


@kernel
def decode(codes: Any, scales: Any, zeros: Any, group: Any, weights: Any) -> None:
    for g in range(scales.size):
        scale, zero = scales[g], np.int32(zeros[g])
        for i in range(g * group, (g + 1) * group):
            weights[i] = scale * np.float32(np.int32(codes[i]) - zero)


# --- the codec -------------------------------------------------------------------------------------------------------

PARTS = {  # in how many steps the extent of a group is divided; a window is 2^bits - 1 wide
    2: np.r_[1.5:4.5:0.125, 4.5:9.5:0.5],
    3: np.r_[3.5:10.5:0.25, 10.5:21.5:1],
    4: np.r_[7.5:20:0.5, 20:38:2],
    5: np.r_[16:26:1, 26:36:0.5, 36:64:4],
    6: np.r_[32:52:1, 52:68:0.5, 68:96:4],
    8: np.r_[232:273:1],
}


@cache
def tries_of(bits: int, sym: bool) -> F32:
    """[tries, 2]: parts, and what is taken off the zero that puts the window's beginning on the group's least."""
    top, tries = 2**bits - 1, []
    for parts in PARTS[bits]:
        over = parts - top  # by how much the group is wider than a window
        if sym:
            shifts = [0.0] if over <= -1 else [0.0, 1.0]
        else:
            shifts = [0.0] if over <= -1 else list(np.linspace(0, over, min(2 + int(abs(over)), 4)))
        tries += [(parts, shift) for shift in shifts]
    return np.array(tries, np.float32)


def _codec(bits: int, group: int, sym: bool) -> GroupCodec:
    top = np.float32(2**bits - 1)

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        (rows, n), flat = weights.shape, weights.reshape(-1)
        codes, scales = np.empty((rows, n), np.uint8), np.empty((rows, n // group), np.float32)
        zeros = np.empty((rows, n // group), np.uint8)
        out = codes.reshape(-1), scales.reshape(-1), zeros.reshape(-1)
        size = group if search == "opt-rtn" else 0
        x, w = (aligned((size, LANES), np.float32) for _ in range(2))
        s = Scratch(x, w, aligned((2, LANES), np.float32))
        if search == "rtn":
            rtn(flat, group, top, sym, s, out)
        else:
            weights_of_errors = None if importance is None else grouped.shares(importance, group)
            opt(flat, weights_of_errors, group, top, sym, tries_of(bits, sym), s, out)
        return Rounded(codes, d=scales) if sym else Rounded(codes, d=scales, mins=zeros)

    def dequantise(rounded: Rounded) -> F32:
        weights, scales, zeros = np.empty(rounded.codes.shape, np.float32), rounded.d, rounded.mins
        assert scales is not None
        if sym:
            zeros = np.full(scales.shape, 2 ** (bits - 1), np.uint8)
        assert zeros is not None
        decode(rounded.codes.reshape(-1), scales.reshape(-1), zeros.reshape(-1), group, weights.reshape(-1))
        return weights

    return GroupCodec(f"INT{bits} g{group} {'sym' if sym else 'asym'}", bits, group, sym, search, dequantise)


@cache
def integer_codec(bits: int, group: int, symmetric: bool) -> GroupCodec:
    """The codec of integers of `bits` bits in groups of `group`; a caller that wants one group a row passes its length.
    ValueError for bits that are none of 2, 3, 4, 5, 6, 8, and for a group below 1."""
    if bits not in BITS:
        raise ValueError(f"integers of {bits} bits; must be one of {', '.join(map(str, BITS))}")
    if group < 1:
        raise ValueError(f"groups of {group} weights; must be at least 1")
    return grouped.checked(_codec(bits, group, symmetric))
