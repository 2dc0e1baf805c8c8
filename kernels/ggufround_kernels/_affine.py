"""The searches behind every type that stores code * scale - min, on lanes (see _lanes: one lane is one block).

`fit_affine` and `fit_scales` are the reference's searches, operation by operation: `make_qkx2_quants` and
`make_qkx3_quants` (equal for finite input) and `make_qp_quants` of ggml-quants.c. They keep the inverse scale and the
offset that gave the best codes instead of the codes: the caller recomputes codes once, where it needs them at all.

`least_squares` is the first step of our own search. For given codes the best scale and min, and the error they leave,
follow from five sums, so a candidate costs one pass over the elements where the reference takes two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    absolute,
    any_lane,
    broadcast,
    larger,
    load,
    nearest,
    round_even,
    round_half,
    select,
    smaller,
    store,
    to_float,
)

f4 = np.float32


class Grid(NamedTuple):
    """Candidates of `search_affine`: the range is divided by top + start + step * k, k < steps, each with the codes'
    rounding shifted by phase + phase_step * i, i < phases; then `refinements` from the best so far."""

    start: float
    step: float
    steps: int
    phase: float
    phase_step: float
    phases: int
    refinements: int


@kernel
def fit_affine(
    x: Any, w: Any, row: Any, n: Any, top: Any, start: Any, step: Any, steps: Any, mad: Any, codes: Any
) -> Any:
    """Scale, min (>= 0), the inverse scale and offset behind the codes, and the sum of weights of n elements.

    x, w: rows row .. row+n; codes: scratch of n rows; `mad` sums absolute errors instead of squares.
    Candidates divide the range by top + start + step * k, k = 0 .. steps."""
    low = load(x, row)
    high = low
    sum_w = load(w, row)
    sum_x = sum_w * low
    for i in range(1, n):
        v = load(x, row + i)
        u = load(w, row + i)
        low = smaller(v, low)
        high = larger(v, high)
        sum_w += u
        sum_x += u * v
    low = select(low > 0.0, 0.0, low)
    first_low = low
    flat = high == low
    levels = f4(top)
    inverse = levels / (high - low)
    scale = f4(1.0) / inverse
    best = broadcast(f4(0.0))
    for i in range(n):
        v = load(x, row + i)
        code = to_float(larger(smaller(nearest(inverse * (v - low)), top), 0))
        diff = scale * code + low - v
        best += load(w, row + i) * (absolute(diff) if mad else diff * diff)
    used_inverse = inverse
    used_low = low
    for k in range(steps + 1):
        # the reference lets an accepted offset shift the range of the candidates that follow
        inverse = (start + step * f4(k) + levels) / (high - low)
        sum_l = broadcast(f4(0.0))
        sum_l2 = broadcast(f4(0.0))
        sum_xl = broadcast(f4(0.0))
        for i in range(n):
            v = load(x, row + i)
            code = to_float(larger(smaller(nearest(inverse * (v - low)), top), 0))
            store(codes, i, code)
            weighted = load(w, row + i) * code
            sum_l += weighted
            sum_l2 += weighted * code
            sum_xl += weighted * v
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = new_low > 0.0
        new_low = select(above, 0.0, new_low)
        new_scale = select(above, sum_xl / sum_l2, new_scale)
        error = broadcast(f4(0.0))
        for i in range(n):
            diff = new_scale * load(codes, i) + new_low - load(x, row + i)
            error += load(w, row + i) * (absolute(diff) if mad else diff * diff)
        better = (determinant > 0.0) & (error < best)
        best = select(better, error, best)
        scale = select(better, new_scale, scale)
        used_inverse = select(better, inverse, used_inverse)
        used_low = select(better, low, used_low)
        low = select(better, new_low, low)
    scale = select(flat, 0.0, scale)
    used_inverse = select(flat, 0.0, used_inverse)
    low = select(flat, first_low, low)
    return scale, -low, used_inverse, used_low, sum_w


@kernel
def fit_scales(rows: Any, x: Any, w: Any, codes: Any, n: Any, top: Any) -> Any:
    """Super-scale of n non-negative scales; x, w, codes: first rows of the scales, their weights, and their codes
    (written; floats 0 .. 255)."""
    high = broadcast(f4(0.0))
    for i in range(n):
        high = larger(high, load(rows, x + i))
    levels = f4(top)
    inverse = levels / high
    scale = f4(1.0) / inverse
    best = broadcast(f4(0.0))
    for i in range(n):
        v = load(rows, x + i)
        diff = v - scale * to_float(nearest(inverse * v) & 255)
        best += load(rows, w + i) * diff * diff
    for k in range(-4, 5):
        if k == 0:
            continue
        tried = (f4(0.1) * f4(k) + levels) / high
        tried_scale = f4(1.0) / tried
        error = broadcast(f4(0.0))
        for i in range(n):
            v = load(rows, x + i)
            diff = v - tried_scale * to_float(smaller(nearest(tried * v), top))
            error += load(rows, w + i) * diff * diff
        better = error < best
        best = select(better, error, best)
        inverse = select(better, tried, inverse)
    sum_xl = broadcast(f4(0.0))
    sum_l2 = broadcast(f4(0.0))
    for i in range(n):
        v = load(rows, x + i)
        code = smaller(nearest(inverse * v), top)
        store(rows, codes + i, to_float(code & 255))
        weight = load(rows, w + i)
        sum_xl += weight * v * to_float(code)
        sum_l2 += weight * to_float(code) * to_float(code)
    for _ in range(5):
        changed = broadcast(f4(0.0))
        for i in range(n):
            v = load(rows, x + i)
            weight = load(rows, w + i)
            old = load(rows, codes + i)
            rest_xl = sum_xl - weight * v * old
            rest_l2 = sum_l2 - weight * old * old
            new = smaller(nearest(v * rest_l2 / rest_xl), top)
            value = to_float(new)
            new_xl = rest_xl + weight * v * value
            new_l2 = rest_l2 + weight * value * value
            better = (rest_xl > 0.0) & (rest_l2 > 0.0) & (value != old)
            better = better & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
            store(rows, codes + i, select(better, to_float(new & 255), old))
            sum_xl = select(better, new_xl, sum_xl)
            sum_l2 = select(better, new_l2, sum_l2)
            changed = select(better, 1.0, changed)
        if not any_lane(changed > 0.0):
            break
    zero = high < f4(1e-15)
    for i in range(n):
        store(rows, codes + i, select(zero, 0.0, load(rows, codes + i)))
    return select(zero | ~(sum_l2 > 0.0), 0.0, sum_xl / sum_l2)


@kernel
def weigh(w: Any, row: Any, value: Any) -> Any:
    """value times the weight of an element; weights of None are all one and cost nothing."""
    if w is None:
        return value
    return load(w, row) * value


@kernel
def sum_weights(w: Any, row: Any, n: Any) -> Any:
    if w is None:
        return broadcast(f4(n))
    total = load(w, row)
    for i in range(1, n):
        total += load(w, row + i)
    return total


@kernel
def code_of(v: Any, inverse: Any, shift: Any, levels: Any) -> Any:
    """round((v + shift) * inverse) clamped to 0 .. levels, as a float."""
    return round_even(larger(smaller((v + shift) * inverse, levels), f4(0.0)))


@kernel
def least_squares(sum_w: Any, sum_x: Any, sum_l: Any, sum_l2: Any, sum_xl: Any, floor: Any) -> Any:
    """Best scale and shift (x ~ scale * code - shift, shift >= 0) for given codes, and the energy they explain.

    A floor of -inf instead of 0 lets the shift be negative.

    Where the codes do not vary the energy is -1."""
    mean_l = sum_l / sum_w
    variance = sum_l2 - mean_l * sum_l
    covariance = sum_xl - mean_l * sum_x
    scale = covariance / variance
    shift = (scale * sum_l - sum_x) / sum_w
    energy = covariance * scale + sum_x * sum_x / sum_w
    plain = sum_xl / sum_l2
    free = shift > floor
    energy = select(free, energy, plain * sum_xl)
    energy = select(variance > sum_l2 * f4(1e-5), energy, -1.0)
    return select(free, scale, plain), select(free, shift, 0.0), energy


@kernel
def search_affine(x: Any, row: Any, w: Any, n: Any, top: Any, grid: Any, floor: Any) -> Any:
    """Continuous scale and shift of n elements with the sums of weights, of codes and of squared codes."""
    sum_w = sum_weights(w, row, n)
    least = sum_w * f4(2.0**-24)
    low = broadcast(f4(np.inf))
    high = -low
    sum_x = broadcast(f4(0.0))
    for i in range(n):
        v = load(x, row + i)
        sum_x += weigh(w, row + i, v)
        if w is None:
            low = smaller(v, low)
            high = larger(v, high)
        else:  # an outlier without importance must not stretch the range
            counts = load(w, row + i) > least
            low = select(counts & (v < low), v, low)
            high = select(counts & (v > high), v, high)
    low = smaller(low, -floor)
    levels = f4(top)
    extent = larger(high - low, 0.0)
    inverse = select(extent > 0.0, f4(1.0) / extent, 0.0)
    scale = extent / levels
    shift = -low
    best = broadcast(f4(-1.0))
    best_l = sum_w * levels  # the codes of equal elements
    best_l2 = best_l * levels
    for k in range(grid.steps * grid.phases + grid.refinements):
        if k < grid.steps * grid.phases:
            parts = levels + f4(grid.start) + f4(grid.step) * f4(k // grid.phases)
            phase = f4(grid.phase) + f4(grid.phase_step) * f4(k % grid.phases)
            tried = parts * inverse
            offset = extent * (-phase / parts) - low
        else:
            tried = select(scale > 0.0, f4(1.0) / scale, 0.0)
            offset = shift
        sum_l = broadcast(f4(0.0))
        sum_l2 = broadcast(f4(0.0))
        sum_xl = broadcast(f4(0.0))
        for i in range(n):
            v = load(x, row + i)
            code = code_of(v, tried, offset, levels)
            weighted = weigh(w, row + i, code)
            sum_l += weighted
            sum_l2 += weighted * code
            sum_xl += weighted * v
        new_scale, new_shift, energy = least_squares(sum_w, sum_x, sum_l, sum_l2, sum_xl, floor)
        better = energy > best
        best = select(better, energy, best)
        scale = select(better, new_scale, scale)
        shift = select(better, new_shift, shift)
        best_l = select(better, sum_l, best_l)
        best_l2 = select(better, sum_l2, best_l2)
    return scale, shift, sum_w, sum_x, best_l, best_l2


@kernel
def packed_error(x: Any, row: Any, w: Any, n: Any, top: Any, scale: Any, shift: Any) -> Any:
    """Sum of w * (x - (scale * code - shift))**2 with the nearest codes, and these codes' sums l, l2, xl."""
    levels = f4(top)
    inverse = select(scale > 0.0, f4(1.0) / scale, 0.0)
    error = broadcast(f4(0.0))
    sum_l = error
    sum_l2 = error
    sum_xl = error
    for i in range(n):
        v = load(x, row + i)
        code = code_of(v, inverse, shift, levels)
        weighted = weigh(w, row + i, code)
        sum_l += weighted
        sum_l2 += weighted * code
        sum_xl += weighted * v
        diff = scale * code - shift - v
        error += weigh(w, row + i, diff * diff)
    return error, sum_l, sum_l2, sum_xl


@kernel
def search_scale(rows: Any, targets: Any, weights: Any, n: Any, top: Any) -> Any:
    """The float16 super-scale among 16 candidates whose multiples, 0 .. top, come nearest to the n targets.

    targets, weights: first rows of the values and of the weights of their squared errors."""
    high = load(rows, targets)
    for j in range(1, n):
        high = larger(high, load(rows, targets + j))
    levels = f4(top)
    best = broadcast(f4(np.inf))
    result = round_half(high / levels)
    for k in range(16):
        scale = round_half(high / (levels - f4(0.5) + f4(0.5) * f4(k)))
        inverse = select(scale > 0.0, f4(1.0) / scale, 0.0)
        error = broadcast(f4(0.0))
        for j in range(n):
            target = load(rows, targets + j)
            diff = target - scale * code_of(target, inverse, f4(0.0), levels)
            error += load(rows, weights + j) * (diff * diff)
        better = error < best
        best = select(better, error, best)
        result = select(better, scale, result)
    return smaller(result, f4(65504.0))


@kernel
def lift_weights(w: Any, n: Any) -> None:
    """Raise zeros among n rows of weights to a trifle, so that elements without importance are rounded sensibly."""
    total = sum_weights(w, 0, n)
    trifle = select(total > 0.0, total * f4(2.0**-40), 1.0)
    for i in range(n):
        store(w, i, larger(load(w, i), trifle))


@kernel
def is_suspect(error: Any, noise: Any, least: Any) -> Any:
    """Lanes whose error is far from that of even rounding (step**2 / 12): data on a lattice, outliers, extreme weights.
    `least` is the share of it that is still ordinary; small blocks vary more.

    Only there can the reference's own solution be better than ours; elsewhere it need not be computed."""
    return ~((error > noise * least) & (error < noise * f4(2.0)))


@kernel
def keep_better(x: Any, w: Any, g: Any, held: Any, k: Any, other: Any, errors: Any, suspects: Any) -> None:
    """Replace suspect lanes of lane group g of `held` by those of group k of `other` where their error is lower."""
    block = x.shape[0]
    groups = held.scales.shape[0] // held.d.shape[0]
    d = load(other.d, k)
    dmin = load(other.dmin, k)
    scale = d
    low = dmin
    error = broadcast(f4(0.0))
    for i in range(block):
        if groups > 0:
            j = i // (block // groups)
            scale = d * to_float(load(other.scales, k * groups + j))
            low = -(dmin * to_float(load(other.mins, k * groups + j)))
        diff = scale * to_float(load(other.codes, k * block + i)) + low - load(x, i)
        error += weigh(w, i, diff * diff)
    better = (load(suspects, g) != 0) & (error < load(errors, g))
    store(held.d, g, select(better, d, load(held.d, g)))
    store(held.dmin, g, select(better, dmin, load(held.dmin, g)))
    for i in range(block):
        row = g * block + i
        store(held.codes, row, select(better, load(other.codes, k * block + i), load(held.codes, row)))
    for j in range(groups):
        row = g * groups + j
        store(held.scales, row, select(better, load(other.scales, k * groups + j), load(held.scales, row)))
        store(held.mins, row, select(better, load(other.mins, k * groups + j), load(held.mins, row)))
