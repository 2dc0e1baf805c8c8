"""Q3_K and Q6_K: 256 weights in 16 groups of 16, value = d * scale * code, scale and code signed."""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    any_lane,
    broadcast,
    larger,
    load,
    load_bytes,
    nearest,
    round_half,
    select,
    smaller,
    store,
    store_blocks,
    store_floats,
    to_float,
)
from ggufround_kernels._stages import Layout, Stages, codec
from ggufround_kernels._symmetric import (
    EPS,
    ONE,
    ZERO,
    Scratch,
    both_signs,
    fit_super_block,
    load_group,
    load_half,
    peak_of,
    qx_search,
    scratch,
    store_half,
    store_scales,
    sum_squares,
    weigh_by,
    weigh_by_squares,
    weigh_equally,
)
from ggufround_kernels.codec import F32, Codec

BLOCK = 256
GROUPS = 16
GROUP = 16

Q6_NMAX, Q6_SMAX, Q6_BYTES = 32, 128, 210
Q3_NMAX, Q3_SMAX, Q3_BYTES = 4, 32, 110

# opt-rtn: the codes that a group's peak may get, and the codes that the largest scale may get
Q6_TARGETS = both_signs(np.arange(24, 36.5, 0.5))
Q6_SCALE_TARGETS = -np.arange(64, 133, 4).astype(np.float32)
Q3_TARGETS = both_signs(np.arange(2, 5, 0.25), np.arange(5, 8.5, 0.5))
Q3_SCALE_TARGETS = -np.arange(20, 34).astype(np.float32)


@kernel
def code_again(s: Any, nmax: Any, held: Any, g: Any) -> None:
    """Stored codes for the scales as stored. Where a scale is zero the codes are those of the search, which s.inverse
    gives again; all zeros have code 0 there, not nmax."""
    d = load(held.d, g)
    for group in range(GROUPS):
        scale, inverse = d * load(s.kept, group), load(s.inverse, group)
        gone = scale == ZERO
        offset = select(gone & (inverse == ZERO), np.int32(0), broadcast(np.int32(nmax)))
        for i in range(GROUP * group, GROUP * group + GROUP):
            x = load(s.x, i)
            code = nearest(select(gone, inverse * x, x / scale))
            store(held.codes, BLOCK * g + i, larger(smaller(code, nmax - 1), -nmax) + offset)


@kernel
def recode(s: Any, nmax: Any, held: Any, g: Any) -> None:
    """The same where the search has left its codes in held.codes."""
    d = load(held.d, g)
    for group in range(GROUPS):
        scale = d * load(s.kept, group)
        for i in range(GROUP * group, GROUP * group + GROUP):
            code = larger(smaller(nearest(load(s.x, i) / scale), nmax - 1), -nmax) + nmax
            store(held.codes, BLOCK * g + i, select(scale == ZERO, load(held.codes, BLOCK * g + i), code))


# --- Q6_K ----------------------------------------------------------------------------------------------------------


@kernel
def q6_k_reference(s: Any, held: Any, g: Any) -> None:
    """The scales of quantize_row_q6_K_ref and quantize_row_q6_K_impl, the weights being in s.w: d, s.kept."""
    for group in range(GROUPS):
        scale, inverse, _ = qx_search(s.x, s.w, GROUP * group, GROUP, Q6_NMAX, False)
        store(s.fitted, group, scale)
        store(s.inverse, group, inverse)
    amax, peak = peak_of(s.fitted, 0, GROUPS)
    zero = amax < EPS
    inverse_d = np.float32(-Q6_SMAX) / peak
    store(held.d, g, select(zero, ZERO, round_half(ONE / inverse_d)))
    for group in range(GROUPS):
        code = select(zero, 0, smaller(nearest(inverse_d * load(s.fitted, group)), Q6_SMAX - 1))
        store(s.kept, group, to_float(code))
        store(s.inverse, group, select(zero, ZERO, load(s.inverse, group)))


@kernel
def q6_k_rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        if importance is None:
            weigh_by_squares(s)
        q6_k_reference(s, held, g)
        code_again(s, Q6_NMAX, held, g)
        store_scales(s, 0, held, g)  # int8


@kernel
def q6_k_opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        if importance is None:
            weigh_by_squares(s)
        q6_k_reference(s, held, g)
        if importance is None:
            weigh_equally(s)
        fit_super_block(s, GROUPS, GROUP, Q6_TARGETS, Q6_NMAX, Q6_SCALE_TARGETS, Q6_SMAX, held, g)
        store_scales(s, 0, held, g)


# block_q6_K: ql 128 bytes of low nibbles, qh 64 bytes of upper bit pairs, 16 int8 scales, d float16
@kernel
def pack_q6_k(held: Any, first: Any, count: Any, packed: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        for half in range(2):
            for i in range(32):
                at = BLOCK * g + 128 * half + i
                a, b = load(held.codes, at), load(held.codes, at + 32)
                c, d = load(held.codes, at + 64), load(held.codes, at + 96)
                store(s, 64 * half + i, (a & 15) | ((c & 15) << 4))
                store(s, 64 * half + 32 + i, (b & 15) | ((d & 15) << 4))
                store(s, 128 + 32 * half + i, (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6))
        for group in range(GROUPS):
            store(s, 192 + group, load(held.scales, GROUPS * g + group))
        store_half(s, 208, load(held.d, g))
        store_blocks(s, Q6_BYTES, packed, first + g * LANES, min(LANES, count - g * LANES))


@kernel
def unpack_q6_k(packed: Any, weights: Any, s: Any) -> None:
    values = np.empty((BLOCK, LANES), np.float32)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q6_BYTES, s)
        d = load_half(s, 208)
        for i in range(BLOCK):
            half, part, column = i // 128, i % 128 // 32, i % 32
            low = load(s, 64 * half + 32 * (part % 2) + column) >> (part // 2 * 4)
            high = load(s, 128 + 32 * half + column) >> (2 * part)
            scale = (load(s, 192 + i // GROUP) << 24) >> 24  # int8
            code = ((low & 15) | ((high & 3) << 4)) - Q6_NMAX
            store(values, i, d * to_float(scale) * to_float(code))
        store_floats(values, BLOCK, weights, first, count)


# --- Q3_K ----------------------------------------------------------------------------------------------------------


@kernel
def q3_search(s: Any, group: Any, held: Any, g: Any) -> Any:
    """make_q3_quants with do_rmse, the weights x * x being in s.w: up to five rounds of coordinate descent over the
    signed codes, which pass through s.inverse; leaves stored codes in held.codes and returns the scale."""
    first = GROUP * group
    amax, peak = peak_of(s.x, first, GROUP)
    inverse = np.float32(-Q3_NMAX) / peak
    sumlx, suml2 = broadcast(ZERO), broadcast(ZERO)
    for i in range(GROUP):
        x, w = load(s.x, first + i), load(s.w, first + i)
        code = to_float(larger(smaller(nearest(inverse * x), Q3_NMAX - 1), -Q3_NMAX))
        store(s.inverse, i, code)
        sumlx = sumlx + w * x * code
        suml2 = suml2 + w * code * code
    for _ in range(5):
        changed = suml2 != suml2
        for i in range(GROUP):
            x, w, old = load(s.x, first + i), load(s.w, first + i), load(s.inverse, i)
            slx, sl2 = sumlx - w * x * old, suml2 - w * old * old
            new = to_float(larger(smaller(nearest(x * sl2 / slx), Q3_NMAX - 1), -Q3_NMAX))
            tlx, tl2 = slx + w * x * new, sl2 + w * new * new
            better = (slx > ZERO) & (new != old) & (tl2 > ZERO) & (tlx * tlx * suml2 > sumlx * sumlx * tl2)
            store(s.inverse, i, select(better, new, old))
            sumlx, suml2 = select(better, tlx, sumlx), select(better, tl2, suml2)
            changed = changed | better
        if not any_lane(changed):
            break
    zero = amax < EPS
    for i in range(GROUP):
        store(held.codes, BLOCK * g + first + i, select(zero, 0, nearest(load(s.inverse, i)) + Q3_NMAX))
    return select((suml2 > ZERO) & ~zero, sumlx / suml2, ZERO)


@kernel
def q3_k_reference(s: Any, held: Any, g: Any) -> None:
    """The scales and first codes of quantize_row_q3_K_ref, the weights x * x being in s.w: d, s.kept, codes."""
    for group in range(GROUPS):
        store(s.fitted, group, q3_search(s, group, held, g))
    amax, peak = peak_of(s.fitted, 0, GROUPS)
    zero = amax == ZERO
    inverse_d = np.float32(-Q3_SMAX) / peak
    store(held.d, g, select(zero, ZERO, round_half(ONE / inverse_d)))
    for group in range(GROUPS):
        code = larger(smaller(nearest(inverse_d * load(s.fitted, group)), Q3_SMAX - 1), -Q3_SMAX)
        store(s.kept, group, to_float(select(zero, -Q3_SMAX, code)))


@kernel
def q3_k_reference_weighted(s: Any, held: Any, g: Any) -> None:
    """The same for quantize_row_q3_K_impl, the weights being in s.w; their sums in s.curvature weigh the scales."""
    for group in range(GROUPS):
        total = broadcast(ZERO)
        for i in range(GROUP * group, GROUP * group + GROUP):
            total = total + load(s.w, i)
        store(s.curvature, group, total)
        scale, inverse, _ = qx_search(s.x, s.w, GROUP * group, GROUP, Q3_NMAX, False)
        store(s.fitted, group, scale)
        store(s.inverse, group, inverse)
    d, inverse_d, zero = qx_search(s.fitted, s.curvature, 0, GROUPS, Q3_SMAX, True)
    store(held.d, g, round_half(d))
    for group in range(GROUPS):
        code = larger(smaller(nearest(inverse_d * load(s.fitted, group)), Q3_SMAX - 1), -Q3_SMAX)
        store(s.kept, group, to_float(select(zero, -Q3_SMAX, code)))


@kernel
def weigh_q3_k(s: Any, importance: Any) -> None:
    """The reference's weights for a loaded group."""
    if importance is None:
        weigh_by_squares(s)
    else:
        weigh_by(s, np.float32(2) * sum_squares(s) / np.float32(BLOCK))


@kernel
def q3_k_rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        weigh_q3_k(s, importance)
        if importance is None:
            q3_k_reference(s, held, g)
            recode(s, Q3_NMAX, held, g)
        else:
            q3_k_reference_weighted(s, held, g)
            code_again(s, Q3_NMAX, held, g)
        store_scales(s, Q3_SMAX, held, g)


@kernel
def q3_k_opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        weigh_q3_k(s, importance)
        if importance is None:
            q3_k_reference(s, held, g)
            weigh_equally(s)
        else:
            q3_k_reference_weighted(s, held, g)
        fit_super_block(s, GROUPS, GROUP, Q3_TARGETS, Q3_NMAX, Q3_SCALE_TARGETS, Q3_SMAX, held, g)
        store_scales(s, Q3_SMAX, held, g)


# block_q3_K: hmask 32 bytes of high bits, qs 64 bytes of low bit pairs, 12 bytes of 6-bit scales, d float16
@kernel
def pack_q3_k(held: Any, first: Any, count: Any, packed: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        for column in range(32):
            high = broadcast(np.int32(0))
            for half in range(2):
                low = broadcast(np.int32(0))
                for part in range(4):
                    code = load(held.codes, BLOCK * g + 128 * half + 32 * part + column)
                    low = low | ((code & 3) << (2 * part))
                    high = high | ((code >> 2) << (4 * half + part))
                store(s, 32 + 32 * half + column, low)
            store(s, column, high)
        at = GROUPS * g
        for j in range(8):
            store(s, 96 + j, (load(held.scales, at + j) & 15) | ((load(held.scales, at + j + 8) & 15) << 4))
        for j in range(4):
            top = load(held.scales, at + j) >> 4
            for k in range(1, 4):
                top = top | ((load(held.scales, at + j + 4 * k) >> 4) << (2 * k))
            store(s, 104 + j, top)
        store_half(s, 108, load(held.d, g))
        store_blocks(s, Q3_BYTES, packed, first + g * LANES, min(LANES, count - g * LANES))


@kernel
def unpack_q3_k(packed: Any, weights: Any, s: Any) -> None:
    values = np.empty((BLOCK, LANES), np.float32)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q3_BYTES, s)
        d = load_half(s, 108)
        for i in range(BLOCK):
            half, part, column, group = i // 128, i % 128 // 32, i % 32, i // GROUP
            low = load(s, 32 + 32 * half + column) >> (2 * part)
            high = load(s, column) >> (i // 32)
            scale = load(s, 96 + group % 8) >> (group // 8 * 4)
            top = load(s, 104 + group % 4) >> (group // 4 * 2)
            scale = ((scale & 15) | ((top & 3) << 4)) - Q3_SMAX
            code = ((low & 3) | ((high & 1) << 2)) - Q3_NMAX
            store(values, i, d * to_float(scale) * to_float(code))
        store_floats(values, BLOCK, weights, first, count)


def _scratch(weights: F32, importance: F32 | None) -> Scratch:
    return scratch(BLOCK, GROUPS)


CODECS: dict[str, Codec] = {
    "Q3_K": codec(
        Layout(BLOCK, Q3_BYTES, GROUPS, mins=False),
        Stages({"rtn": q3_k_rtn, "opt-rtn": q3_k_opt}, pack_q3_k, unpack_q3_k, _scratch),
    ),
    "Q6_K": codec(
        Layout(BLOCK, Q6_BYTES, GROUPS, mins=False),
        Stages({"rtn": q6_k_rtn, "opt-rtn": q6_k_opt}, pack_q6_k, unpack_q6_k, _scratch),
    ),
}
