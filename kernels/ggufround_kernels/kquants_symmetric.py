"""Q3_K and Q6_K: 256 weights in 16 groups of 16, value = d * scale * code, scale and code signed."""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    any_lane,
    broadcast,
    half_bits,
    half_value,
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
from ggufround_kernels._symmetric import (
    EPS,
    ONE,
    ZERO,
    both_signs,
    codec,
    fit_super_block,
    load_group,
    load_rounded,
    peak_of,
    qx_search,
    store_rounded,
    sum_squares,
    weigh_by,
    weigh_by_squares,
    weigh_equally,
)
from ggufround_kernels.codec import Codec

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
def code_again(s: Any, nmax: Any) -> None:
    """Stored codes for the scales as stored. Where a scale is zero the codes are those of the search, which s.inverse
    gives again; all zeros have code 0 there, not nmax."""
    d = load(s.d, 0)
    for group in range(GROUPS):
        scale, inverse = d * load(s.kept, group), load(s.inverse, group)
        gone = scale == ZERO
        offset = select(gone & (inverse == ZERO), np.int32(0), broadcast(np.int32(nmax)))
        for i in range(GROUP * group, GROUP * group + GROUP):
            x = load(s.x, i)
            code = nearest(select(gone, inverse * x, x / scale))
            store(s.codes, i, larger(smaller(code, nmax - 1), -nmax) + offset)


@kernel
def recode(s: Any, nmax: Any) -> None:
    """The same where the search has left its codes in s.codes."""
    d = load(s.d, 0)
    for group in range(GROUPS):
        scale = d * load(s.kept, group)
        for i in range(GROUP * group, GROUP * group + GROUP):
            code = larger(smaller(nearest(load(s.x, i) / scale), nmax - 1), -nmax) + nmax
            store(s.codes, i, select(scale == ZERO, load(s.codes, i), code))


@kernel
def store_scales(s: Any, offset: Any) -> None:
    for group in range(GROUPS):
        store(s.scales, group, nearest(load(s.kept, group)) + offset)


# --- Q6_K ----------------------------------------------------------------------------------------------------------


@kernel
def q6_k_reference(s: Any) -> None:
    """The scales of quantize_row_q6_K_ref and quantize_row_q6_K_impl, the weights being in s.w: s.d, s.kept."""
    for group in range(GROUPS):
        scale, inverse, _ = qx_search(s.x, s.w, GROUP * group, GROUP, Q6_NMAX, False)
        store(s.fitted, group, scale)
        store(s.inverse, group, inverse)
    amax, peak = peak_of(s.fitted, 0, GROUPS)
    zero = amax < EPS
    inverse_d = np.float32(-Q6_SMAX) / peak
    d = select(zero, ZERO, round_half(ONE / inverse_d))
    store(s.d, 0, d)
    for group in range(GROUPS):
        code = select(zero, 0, smaller(nearest(inverse_d * load(s.fitted, group)), Q6_SMAX - 1))
        store(s.kept, group, to_float(code))
        store(s.inverse, group, select(zero, ZERO, load(s.inverse, group)))


@kernel
def pack_q6_k(s: Any) -> None:
    for half in range(2):
        for i in range(32):
            at = 128 * half + i
            a, b, c, d = load(s.codes, at), load(s.codes, at + 32), load(s.codes, at + 64), load(s.codes, at + 96)
            store(s.packed, 64 * half + i, (a & 15) | ((c & 15) << 4))
            store(s.packed, 64 * half + 32 + i, (b & 15) | ((d & 15) << 4))
            store(s.packed, 128 + 32 * half + i, (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6))
    for group in range(GROUPS):
        store(s.packed, 192 + group, load(s.scales, group))
    d16 = half_bits(load(s.d, 0))
    store(s.packed, 208, d16)
    store(s.packed, 209, d16 >> 8)


@kernel
def values_q6_k(s: Any) -> None:
    """The weights of packed blocks, to s.x."""
    d = half_value(load(s.packed, 208) | (load(s.packed, 209) << 8))
    for i in range(BLOCK):
        half, part, column = i // 128, i % 128 // 32, i % 32
        low = load(s.packed, 64 * half + 32 * (part % 2) + column) >> (part // 2 * 4)
        high = load(s.packed, 128 + 32 * half + column) >> (2 * part)
        scale = (load(s.packed, 192 + i // GROUP) << 24) >> 24  # int8
        code = ((low & 15) | ((high & 3) << 4)) - Q6_NMAX
        store(s.x, i, d * to_float(scale) * to_float(code))


@kernel
def emit_q6_k(s: Any, rounded: Any, packed: Any, first: Any, count: Any) -> None:
    if rounded is not None:
        store_rounded(s, rounded, first, count, BLOCK, GROUPS)
    if packed is not None:
        pack_q6_k(s)
        store_blocks(s.packed, Q6_BYTES, packed, first, count)


@kernel
def q6_k_rtn(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_group(weights, importance, first, count, BLOCK, s)
        if importance is None:
            weigh_by_squares(s, BLOCK)
        q6_k_reference(s)
        code_again(s, Q6_NMAX)
        store_scales(s, 0)  # int8
        emit_q6_k(s, rounded, packed, first, count)


@kernel
def q6_k_opt(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_group(weights, importance, first, count, BLOCK, s)
        if importance is None:
            weigh_by_squares(s, BLOCK)
        q6_k_reference(s)
        if importance is None:
            weigh_equally(s, BLOCK)
        fit_super_block(s, GROUPS, GROUP, Q6_TARGETS, Q6_NMAX, Q6_SCALE_TARGETS, Q6_SMAX)
        store_scales(s, 0)
        emit_q6_k(s, rounded, packed, first, count)


@kernel
def q6_k_pack(rounded: Any, s: Any, packed: Any) -> None:
    for first in range(0, rounded.d.size, LANES):
        count = min(LANES, rounded.d.size - first)
        load_rounded(s, rounded, first, count, BLOCK, GROUPS)
        emit_q6_k(s, None, packed, first, count)


@kernel
def q6_k_unpack(packed: Any, s: Any, weights: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q6_BYTES, s.packed)
        values_q6_k(s)
        store_floats(s.x, BLOCK, weights, first, count)


# --- Q3_K ----------------------------------------------------------------------------------------------------------


@kernel
def q3_search(s: Any, group: Any) -> Any:
    """make_q3_quants with do_rmse, the weights x * x being in s.w: up to five rounds of coordinate descent over the
    signed codes, which pass through s.inverse; leaves stored codes in s.codes and returns the scale."""
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
        store(s.codes, first + i, select(zero, 0, nearest(load(s.inverse, i)) + Q3_NMAX))
    return select((suml2 > ZERO) & ~zero, sumlx / suml2, ZERO)


@kernel
def q3_k_reference(s: Any) -> None:
    """The scales and first codes of quantize_row_q3_K_ref, the weights x * x being in s.w: s.d, s.kept, s.codes."""
    for group in range(GROUPS):
        store(s.fitted, group, q3_search(s, group))
    amax, peak = peak_of(s.fitted, 0, GROUPS)
    zero = amax == ZERO
    inverse_d = np.float32(-Q3_SMAX) / peak
    store(s.d, 0, select(zero, ZERO, round_half(ONE / inverse_d)))
    for group in range(GROUPS):
        code = larger(smaller(nearest(inverse_d * load(s.fitted, group)), Q3_SMAX - 1), -Q3_SMAX)
        store(s.kept, group, to_float(select(zero, -Q3_SMAX, code)))


@kernel
def q3_k_reference_weighted(s: Any) -> None:
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
    store(s.d, 0, round_half(d))
    for group in range(GROUPS):
        code = larger(smaller(nearest(inverse_d * load(s.fitted, group)), Q3_SMAX - 1), -Q3_SMAX)
        store(s.kept, group, to_float(select(zero, -Q3_SMAX, code)))


@kernel
def pack_q3_k(s: Any) -> None:
    for column in range(32):
        high = broadcast(np.int32(0))
        for half in range(2):
            low = broadcast(np.int32(0))
            for part in range(4):
                code = load(s.codes, 128 * half + 32 * part + column)
                low = low | ((code & 3) << (2 * part))
                high = high | ((code >> 2) << (4 * half + part))
            store(s.packed, 32 + 32 * half + column, low)
        store(s.packed, column, high)
    for j in range(8):
        store(s.packed, 96 + j, (load(s.scales, j) & 15) | ((load(s.scales, j + 8) & 15) << 4))
    for j in range(4):
        top = load(s.scales, j) >> 4
        for k in range(1, 4):
            top = top | ((load(s.scales, j + 4 * k) >> 4) << (2 * k))
        store(s.packed, 104 + j, top)
    d16 = half_bits(load(s.d, 0))
    store(s.packed, 108, d16)
    store(s.packed, 109, d16 >> 8)


@kernel
def values_q3_k(s: Any) -> None:
    """The weights of packed blocks, to s.x."""
    d = half_value(load(s.packed, 108) | (load(s.packed, 109) << 8))
    for i in range(BLOCK):
        half, part, column, group = i // 128, i % 128 // 32, i % 32, i // GROUP
        low = load(s.packed, 32 + 32 * half + column) >> (2 * part)
        high = load(s.packed, column) >> (i // 32)
        scale = load(s.packed, 96 + group % 8) >> (group // 8 * 4)
        top = load(s.packed, 104 + group % 4) >> (group // 4 * 2)
        scale = ((scale & 15) | ((top & 3) << 4)) - Q3_SMAX
        code = ((low & 3) | ((high & 1) << 2)) - Q3_NMAX
        store(s.x, i, d * to_float(scale) * to_float(code))


@kernel
def emit_q3_k(s: Any, rounded: Any, packed: Any, first: Any, count: Any) -> None:
    if rounded is not None:
        store_rounded(s, rounded, first, count, BLOCK, GROUPS)
    if packed is not None:
        pack_q3_k(s)
        store_blocks(s.packed, Q3_BYTES, packed, first, count)


@kernel
def weigh_q3_k(s: Any, importance: Any) -> None:
    """The reference's weights for a loaded group."""
    if importance is None:
        weigh_by_squares(s, BLOCK)
    else:
        weigh_by(s, BLOCK, np.float32(2) * sum_squares(s, BLOCK) / np.float32(BLOCK))


@kernel
def q3_k_rtn(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_group(weights, importance, first, count, BLOCK, s)
        weigh_q3_k(s, importance)
        if importance is None:
            q3_k_reference(s)
            recode(s, Q3_NMAX)
        else:
            q3_k_reference_weighted(s)
            code_again(s, Q3_NMAX)
        store_scales(s, Q3_SMAX)
        emit_q3_k(s, rounded, packed, first, count)


@kernel
def q3_k_opt(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_group(weights, importance, first, count, BLOCK, s)
        weigh_q3_k(s, importance)
        if importance is None:
            q3_k_reference(s)
            weigh_equally(s, BLOCK)
        else:
            q3_k_reference_weighted(s)
        fit_super_block(s, GROUPS, GROUP, Q3_TARGETS, Q3_NMAX, Q3_SCALE_TARGETS, Q3_SMAX)
        store_scales(s, Q3_SMAX)
        emit_q3_k(s, rounded, packed, first, count)


@kernel
def q3_k_pack(rounded: Any, s: Any, packed: Any) -> None:
    for first in range(0, rounded.d.size, LANES):
        count = min(LANES, rounded.d.size - first)
        load_rounded(s, rounded, first, count, BLOCK, GROUPS)
        emit_q3_k(s, None, packed, first, count)


@kernel
def q3_k_unpack(packed: Any, s: Any, weights: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q3_BYTES, s.packed)
        values_q3_k(s)
        store_floats(s.x, BLOCK, weights, first, count)


CODECS: dict[str, Codec] = {
    "Q3_K": codec(BLOCK, GROUPS, Q3_BYTES, {"rtn": q3_k_rtn, "opt-rtn": q3_k_opt}, q3_k_pack, q3_k_unpack),
    "Q6_K": codec(BLOCK, GROUPS, Q6_BYTES, {"rtn": q6_k_rtn, "opt-rtn": q6_k_opt}, q6_k_pack, q6_k_unpack),
}
