"""What the types without a minimum share: value = scale * code, the code signed, so only scales are searched for.

A kernel takes 32 blocks at a time (a lane group) from the rows of a matrix to scratch laid out [element][lane]
(`_lanes.py`), searches there, and leaves codes, scales and d as they will be stored (`_stages.py`). Both recipes walk
through inverse scales 1/s, take the codes l = round(x / s), and judge them by (sum w x l)^2 / sum w l^2, which is what
their least-squares scale sum w x l / sum w l^2 takes off the error; the codes themselves are not kept, since the
inverse scale gives them again.

`rtn` is llama.cpp's make_qx_quants, operation by operation: inverse scales within 3 to 20 % of -nmax / peak, peak being
the value of largest magnitude, then codes for the rounded scale.

`opt-rtn` differs in four points, each of which lowers the error after packing:
 1. Inverse scales of both signs over a wide range (`targets`: the codes that the peak may get). A larger step than the
    range asks for often fits better by chance, and with importance the peak may not matter. Whole codes are among the
    targets, so that values which lie on a grid already keep it.
 2. The scales of a super-block are fitted like weights, x being the scales and w their curvature sum w l^2: several
    super-scales, least squares, the best kept (`fit_scales`).
 3. Each group tries the neighbours of its rounded scale code by the error after packing, codes rounded anew.
 4. The super-scale is fitted to all codes once more, and kept where the packed error falls.
Without importance w = 1: the weights x^2 of llama.cpp pull towards the large values, which costs squared error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    absolute,
    aligned,
    broadcast,
    half_bits,
    half_value,
    larger,
    load,
    load_blocks,
    nearest,
    round_even,
    round_half,
    select,
    smaller,
    sqrt,
    store,
    to_float,
)
from ggufround_kernels.codec import F32

ZERO = np.float32(0)
ONE = np.float32(1)
EPS = np.float32(1e-15)  # llama.cpp: a group whose magnitudes are all below is a group of zeros
HALF_MAX = np.float32(65504)  # the largest float16

IQ4 = 0  # in place of nmax: the codes index IQ4_VALUES
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_NO_MEANS = np.empty(0, np.float32)
_LEVELS = np.array(IQ4_VALUES, np.float32)
_BORDERS = (_LEVELS[1:] + _LEVELS[:-1]) / 2  # exact; a value on a border goes up, as in best_index_int8


class Scratch(NamedTuple):
    """What a search works in, [n, LANES] of one lane group. x: weights; w: importance, then the weight of each error.
    Of each group, fitted: the scale found; inverse: the inverse scale that gave its codes; curvature: sum w l^2; kept:
    the signed scale code. means, flat: of x^2 over each row of the matrix, where the weights need it."""

    x: F32
    w: F32
    fitted: F32
    inverse: F32
    curvature: F32
    kept: F32
    means: F32


def scratch(block: int, groups: int, means: F32 = _NO_MEANS) -> Scratch:
    x, w = (aligned((block, LANES), np.float32) for _ in range(2))
    fitted, inverse, curvature, kept = (aligned((groups, LANES), np.float32) for _ in range(4))
    return Scratch(x, w, fitted, inverse, curvature, kept, means)


def both_signs(*targets: NDArray[Any]) -> F32:
    magnitudes = np.concatenate(targets)
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)


# --- loading and weighting -----------------------------------------------------------------------------------------


@kernel
def load_group(weights: Any, importance: Any, first: Any, count: Any, s: Any) -> None:
    """Blocks first .. first+count to s.x and their importance, which all rows share, to s.w."""
    size = s.x.shape[0]
    load_blocks(weights, first, count, size, s.x)
    if importance is not None:
        start = first * size % importance.size
        for lane in range(LANES):
            for i in range(size):
                s.w[i, lane] = importance[start + i]
            if lane < count - 1:
                start = start + size if start + size < importance.size else 0


@kernel
def sum_squares(s: Any) -> Any:
    """The sum of squares of a block, element by element."""
    total = broadcast(ZERO)
    for i in range(s.x.shape[0]):
        x = load(s.x, i)
        total = total + x * x
    return total


@kernel
def weigh_by(s: Any, sigma2: Any) -> None:
    """llama.cpp's weights: importance * sqrt(sigma2 + x * x)."""
    for i in range(s.x.shape[0]):
        x = load(s.x, i)
        store(s.w, i, load(s.w, i) * sqrt(sigma2 + x * x))


@kernel
def weigh_by_squares(s: Any) -> None:
    """llama.cpp's weights without importance: x * x."""
    for i in range(s.x.shape[0]):
        x = load(s.x, i)
        store(s.w, i, x * x)


@kernel
def weigh_equally(s: Any) -> None:
    """Ours without importance."""
    for i in range(s.x.shape[0]):
        store(s.w, i, broadcast(ONE))


# --- codes ---------------------------------------------------------------------------------------------------------


@kernel
def iq4_level(x: Any) -> Any:
    """The value of IQ4_VALUES nearest to x."""
    level = broadcast(_LEVELS[15])
    for k in range(14, -1, -1):
        level = select(x < _BORDERS[k], _LEVELS[k], level)
    return level


@kernel
def iq4_index(x: Any) -> Any:
    """best_index_int8: the index of the value nearest to x, 15 for NaN."""
    index = broadcast(np.int32(15))
    for k in range(14, -1, -1):
        index = select(x < _BORDERS[k], np.int32(k), index)
    return index


@kernel
def rounded_code(x: Any, nmax: Any) -> Any:
    """The signed code nearest to x, as a float: -nmax .. nmax - 1, or a value of IQ4_VALUES."""
    if nmax == IQ4:
        return iq4_level(x)
    return larger(smaller(round_even(x), np.float32(nmax - 1)), -np.float32(nmax))


@kernel
def store_codes(s: Any, first: Any, n: Any, inverse: Any, nmax: Any, held: Any, g: Any) -> None:
    """Stored codes of rows first .. first+n for an inverse scale; that of zero where it is 0."""
    at = g * s.x.shape[0]
    for i in range(first, first + n):
        x = inverse * load(s.x, i)
        if nmax == IQ4:
            store(held.codes, at + i, iq4_index(x))
        else:
            store(held.codes, at + i, larger(smaller(nearest(x), nmax - 1), -nmax) + nmax)


@kernel
def store_scales(s: Any, offset: Any, held: Any, g: Any) -> None:
    """Stored codes of a super-block's scales from the signed codes in s.kept."""
    groups = s.kept.shape[0]
    for group in range(groups):
        store(held.scales, g * groups + group, nearest(load(s.kept, group)) + offset)


@kernel
def inverse_of(scale: Any) -> Any:
    """1 / scale, 0 where the scale is 0."""
    return select(scale != ZERO, ONE / scale, ZERO)


@kernel
def peak_of(x: Any, first: Any, n: Any) -> Any:
    """(largest magnitude, the first value that has it) of rows first .. first+n; NaN never counts."""
    amax, peak = broadcast(ZERO), broadcast(ZERO)
    for i in range(first, first + n):
        value = load(x, i)
        magnitude = absolute(value)
        more = magnitude > amax
        amax, peak = select(more, magnitude, amax), select(more, value, peak)
    return amax, peak


@kernel
def store_half(bytes_: Any, at: Any, d: Any) -> None:
    """float16 bits of d to rows at and at + 1 of a block's bytes."""
    bits = half_bits(d)
    store(bytes_, at, bits)
    store(bytes_, at + 1, bits >> 8)


@kernel
def load_half(bytes_: Any, at: Any) -> Any:
    """The inverse of store_half."""
    return half_value(load(bytes_, at) | (load(bytes_, at + 1) << 8))


# --- rtn -----------------------------------------------------------------------------------------------------------


@kernel
def qx_sums(x: Any, w: Any, first: Any, n: Any, inverse: Any, nmax: Any, guarded: Any) -> Any:
    """(sum w x l, sum w l l) in the reference's order for the codes l of an inverse scale. `guarded` where x may hold
    NaN or infinity: there the integer form of rounding, the reference's, gives other codes than the float form."""
    low, high = -np.float32(nmax), np.float32(nmax - 1)
    sumlx, suml2 = broadcast(ZERO), broadcast(ZERO)
    for i in range(first, first + n):
        value, weight = load(x, i), load(w, i)
        scaled = inverse * value
        rounded = to_float(nearest(scaled)) if guarded else round_even(scaled)
        code = larger(smaller(rounded, high), low)
        sumlx = sumlx + weight * value * code
        suml2 = suml2 + weight * code * code
    return sumlx, suml2


@kernel
def qx_search(x: Any, w: Any, first: Any, n: Any, nmax: Any, guarded: Any) -> Any:
    """make_qx_quants, rmse_type 1, on rows first .. first+n: (scale, inverse scale of the best codes, all zero)."""
    amax, peak = peak_of(x, first, n)
    inverse = np.float32(-nmax) / peak
    sumlx, suml2 = qx_sums(x, w, first, n, inverse, nmax, guarded)
    scale = select(suml2 != ZERO, sumlx / suml2, ZERO)
    best = scale * sumlx
    for step in range(-9, 10):
        if step != 0:
            tried = -(np.float32(nmax) + np.float32(0.1) * np.float32(step)) / peak
            sumlx, suml2 = qx_sums(x, w, first, n, tried, nmax, guarded)
            better = (suml2 > ZERO) & (sumlx * sumlx > best * suml2)
            ratio = sumlx / suml2
            scale = select(better, ratio, scale)
            best = select(better, ratio * sumlx, best)
            inverse = select(better, tried, inverse)
    zero = amax < EPS
    return select(zero, ZERO, scale), select(zero, ZERO, inverse), zero


# --- opt-rtn -------------------------------------------------------------------------------------------------------


@kernel
def stored_half(d: Any) -> Any:
    """The nearest finite float16; NaN, which overflow can bring, gives one too."""
    return round_half(smaller(larger(d, -HALF_MAX), HALF_MAX))


@kernel
def sums(s: Any, first: Any, n: Any, inverse: Any, nmax: Any) -> Any:
    """(sum w x l, sum w l l) for the codes l of an inverse scale."""
    sumlx, suml2 = broadcast(ZERO), broadcast(ZERO)
    for i in range(first, first + n):
        x = load(s.x, i)
        code = rounded_code(inverse * x, nmax)
        weighted = load(s.w, i) * code
        sumlx = sumlx + weighted * x
        suml2 = suml2 + weighted * code
    return sumlx, suml2


@kernel
def packed_error(s: Any, first: Any, n: Any, scale: Any, nmax: Any) -> Any:
    """sum w (x - scale * l)^2 with the best codes for a scale as stored."""
    inverse, error = inverse_of(scale), broadcast(ZERO)
    for i in range(first, first + n):
        x = load(s.x, i)
        miss = x - scale * rounded_code(inverse * x, nmax)
        error = error + load(s.w, i) * miss * miss
    return error


@kernel
def fit_group(s: Any, first: Any, n: Any, targets: Any, nmax: Any) -> Any:
    """(scale, curvature) of a group: the best over the targets, codes that the peak may get."""
    amax, peak = peak_of(s.x, first, n)
    unit = select(amax > ZERO, ONE / peak, ZERO)
    best, scale, curvature = broadcast(ZERO), broadcast(ZERO), broadcast(ZERO)
    for k in range(targets.size):
        sumlx, suml2 = sums(s, first, n, unit * targets[k], nmax)
        ratio = select(suml2 > ZERO, sumlx / suml2, ZERO)
        gain = ratio * sumlx
        better = gain > best
        best = select(better, gain, best)
        scale, curvature = select(better, ratio, scale), select(better, suml2, curvature)
    return scale, curvature


@kernel
def fit_block(s: Any, n: Any, targets: Any, nmax: Any, held: Any, g: Any) -> None:
    """The whole of opt-rtn for a block with d alone: leaves d and codes. held.d begins as the reference's, which stays
    where it packs better."""
    kept = stored_half(load(held.d, g))
    best = packed_error(s, 0, n, kept, nmax)
    scale, _ = fit_group(s, 0, n, targets, nmax)
    for _ in range(2):
        d = stored_half(scale)
        error = packed_error(s, 0, n, d, nmax)
        better = error < best
        best, kept = select(better, error, best), select(better, d, kept)
        sumlx, suml2 = sums(s, 0, n, inverse_of(d), nmax)
        scale = select(suml2 > ZERO, sumlx / suml2, ZERO)
    store(held.d, g, kept)
    store_codes(s, 0, n, inverse_of(kept), nmax, held, g)


@kernel
def scale_code(scaled: Any, smax: Any) -> Any:
    return larger(smaller(round_even(scaled), np.float32(smax - 1)), -np.float32(smax))


@kernel
def fit_scales(s: Any, groups: Any, targets: Any, smax: Any) -> Any:
    """The super-scale for the fitted scales: codes -smax .. smax - 1, targets for the largest, least squares twice."""
    amax, peak = peak_of(s.fitted, 0, groups)
    unit = select(amax > ZERO, ONE / peak, ZERO)
    best, d = broadcast(ZERO), broadcast(ZERO)
    for k in range(targets.size):
        inverse = unit * targets[k]
        for _ in range(2):
            sumlx, suml2 = broadcast(ZERO), broadcast(ZERO)
            for group in range(groups):
                scale = load(s.fitted, group)
                code = scale_code(inverse * scale, smax)
                weighted = load(s.curvature, group) * code
                sumlx, suml2 = sumlx + weighted * scale, suml2 + weighted * code
            ratio = select(suml2 > ZERO, sumlx / suml2, ZERO)
            gain = ratio * sumlx
            better = gain > best
            best, d = select(better, gain, best), select(better, ratio, d)
            inverse = inverse_of(ratio)
    return stored_half(d)


@kernel
def super_error(s: Any, groups: Any, n: Any, d: Any, codes: Any, nmax: Any) -> Any:
    """packed_error of a super-block for d and the signed scale codes of its groups."""
    total = broadcast(ZERO)
    for group in range(groups):
        total = total + packed_error(s, group * n, n, d * load(codes, group), nmax)
    return total


@kernel
def fit_super_block(
    s: Any, groups: Any, n: Any, targets: Any, nmax: Any, scale_targets: Any, smax: Any, held: Any, g: Any
) -> None:
    """The whole of opt-rtn for a super-block of `groups` groups of n: leaves d, codes and s.kept. held.d and s.kept
    begin as the reference's, which stay where they pack better."""
    for group in range(groups):
        scale, curvature = fit_group(s, group * n, n, targets, nmax)
        store(s.fitted, group, scale)
        store(s.curvature, group, curvature)
    d = fit_scales(s, groups, scale_targets, smax)
    inverse_d, total = inverse_of(d), broadcast(ZERO)
    sumlx, suml2 = broadcast(ZERO), broadcast(ZERO)
    for group in range(groups):
        middle = code = scale_code(load(s.fitted, group) * inverse_d, smax)
        error = broadcast(np.float32(np.inf))
        for step in (0, -1, 1, -2, 2):
            tried = scale_code(middle + np.float32(step), smax)
            tried_error = packed_error(s, group * n, n, d * tried, nmax)
            better = tried_error < error
            error, code = select(better, tried_error, error), select(better, tried, code)
        store(s.fitted, group, code)  # from here on the code, not the scale
        total = total + error
        lx, l2 = sums(s, group * n, n, inverse_of(d * code), nmax)
        sumlx, suml2 = sumlx + lx * code, suml2 + l2 * code * code
    tried_d = stored_half(select(suml2 > ZERO, sumlx / suml2, ZERO))
    tried_total = super_error(s, groups, n, tried_d, s.fitted, nmax)
    better = tried_total < total
    total, d = select(better, tried_total, total), select(better, tried_d, d)
    reference_d = stored_half(load(held.d, g))
    better = total < super_error(s, groups, n, reference_d, s.kept, nmax)
    d = select(better, d, reference_d)
    store(held.d, g, d)
    for group in range(groups):
        code = select(better, load(s.fitted, group), load(s.kept, group))
        store(s.kept, group, code)
        store_codes(s, group * n, n, inverse_of(d * code), nmax, held, g)
