"""IQ4_NL and IQ4_XS: four-bit codes index sixteen unevenly spaced values; 32 weights a group.

IQ4_NL: value = d * level. IQ4_XS: 256 weights in 8 groups, value = d * scale * level, scale -32 .. 31.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
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
    IQ4,
    IQ4_VALUES,
    ONE,
    ZERO,
    Scratch,
    fit_block,
    fit_super_block,
    inverse_of,
    iq4_level,
    load_group,
    load_half,
    peak_of,
    scratch,
    store_codes,
    store_half,
    store_scales,
    sum_squares,
    weigh_by,
    weigh_by_squares,
    weigh_equally,
)
from ggufround_kernels.codec import F32, Codec
from ggufround_kernels.legacy_symmetric import pack_q4_0

GROUP = 32
NL_BYTES = 18
XS_BLOCK, XS_GROUPS, XS_SMAX, XS_BYTES = 256, 8, 32, 136

# opt-rtn: the levels that a group's peak may get, and the codes that the largest scale may get
TARGETS = np.array(
    [-104, -109, -115, -121, -127, -133, -139, -146, -153, 89, 95, 101, 107, 113, 119, 125, 131, 138], np.float32
)
XS_SCALE_TARGETS = -np.arange(18, 34, 1).astype(np.float32)


@kernel
def iq4_sums(s: Any, first: Any, inverse: Any) -> Any:
    """(sum w q x, sum w q q) in the reference's order for the levels q of an inverse scale."""
    sumqx, sumq2 = broadcast(ZERO), broadcast(ZERO)
    for i in range(first, first + GROUP):
        x, w = load(s.x, i), load(s.w, i)
        weighted = w * iq4_level(inverse * x)
        sumqx = sumqx + weighted * x
        sumq2 = sumq2 + weighted * iq4_level(inverse * x)
    return sumqx, sumq2


@kernel
def iq4_search(s: Any, first: Any) -> Any:
    """The scale of one group in quantize_row_iq4_nl_impl with ntry = 7, the weights being in s.w."""
    amax, peak = peak_of(s.x, first, GROUP)
    sumqx, sumq2 = iq4_sums(s, first, ONE / (-peak / np.float32(-127)))
    scale = select(sumq2 > ZERO, sumqx / sumq2, ZERO)
    best = scale * sumqx
    for step in range(-7, 8):
        sumqx, sumq2 = iq4_sums(s, first, np.float32(step - 127) / peak)
        better = (sumq2 > ZERO) & (sumqx * sumqx > best * sumq2)
        ratio = sumqx / sumq2
        scale, best = select(better, ratio, scale), select(better, ratio * sumqx, best)
    return select(amax < EPS, ZERO, scale)


@kernel
def weigh_iq4(s: Any, importance: Any) -> None:
    """The reference's weights for a loaded group."""
    if importance is None:
        weigh_by_squares(s)
    else:
        weigh_by(s, sum_squares(s) * (np.float32(2) / np.float32(s.x.shape[0])))


@kernel
def level_of(index: Any) -> Any:
    """The value of IQ4_VALUES at an index."""
    level = broadcast(np.float32(IQ4_VALUES[0]))
    for k in range(1, 16):
        level = select(index == k, np.float32(IQ4_VALUES[k]), level)
    return level


# --- IQ4_NL --------------------------------------------------------------------------------------------------------


@kernel
def iq4_nl_rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        weigh_iq4(s, importance)
        scale = iq4_search(s, 0)
        store(held.d, g, round_half(scale))
        store_codes(s, 0, GROUP, inverse_of(scale), IQ4, held, g)  # the codes are for the scale before rounding


@kernel
def iq4_nl_opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        weigh_iq4(s, importance)
        store(held.d, g, round_half(iq4_search(s, 0)))
        if importance is None:
            weigh_equally(s)
        fit_block(s, GROUP, TARGETS, IQ4, held, g)


# block_iq4_nl lies as block_q4_0 does: d float16; 16 bytes, element i in the low and i + 16 in the high nibble
@kernel
def unpack_iq4_nl(packed: Any, weights: Any, s: Any) -> None:
    values = np.empty((GROUP, LANES), np.float32)
    for first in range(0, weights.size // GROUP, LANES):
        count = min(LANES, weights.size // GROUP - first)
        load_bytes(packed, first, count, NL_BYTES, s)
        d = load_half(s, 0)
        for i in range(GROUP):
            store(values, i, d * level_of((load(s, 2 + i % 16) >> (i // 16 * 4)) & 15))
        store_floats(values, GROUP, weights, first, count)


# --- IQ4_XS --------------------------------------------------------------------------------------------------------


@kernel
def iq4_xs_reference(s: Any, held: Any, g: Any) -> None:
    """The scales of quantize_row_iq4_nl_impl for eight groups: d, s.kept, and in s.inverse the inverse scales that
    give the codes, taken before d is rounded to float16."""
    for group in range(XS_GROUPS):
        store(s.fitted, group, iq4_search(s, GROUP * group))
    _, peak = peak_of(s.fitted, 0, XS_GROUPS)
    d = -peak / np.float32(XS_SMAX)
    inverse_d = inverse_of(d)
    store(held.d, g, round_half(d))
    for group in range(XS_GROUPS):
        code = larger(smaller(nearest(inverse_d * load(s.fitted, group)), XS_SMAX - 1), -XS_SMAX)
        store(s.kept, group, to_float(code))
        store(s.inverse, group, inverse_of(d * to_float(code)))


@kernel
def iq4_xs_rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        weigh_iq4(s, importance)
        iq4_xs_reference(s, held, g)
        for group in range(XS_GROUPS):
            store_codes(s, GROUP * group, GROUP, load(s.inverse, group), IQ4, held, g)
        store_scales(s, XS_SMAX, held, g)


@kernel
def iq4_xs_opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        load_group(weights, importance, first + g * LANES, min(LANES, count - g * LANES), s)
        weigh_iq4(s, importance)
        iq4_xs_reference(s, held, g)
        if importance is None:
            weigh_equally(s)
        fit_super_block(s, XS_GROUPS, GROUP, TARGETS, IQ4, XS_SCALE_TARGETS, XS_SMAX, held, g)
        store_scales(s, XS_SMAX, held, g)


# block_iq4_xs: d float16; 2 bytes of upper bit pairs and 4 of low nibbles of the scales; 16 bytes a group as iq4_nl
@kernel
def pack_iq4_xs(held: Any, first: Any, count: Any, packed: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        store_half(s, 0, load(held.d, g))
        at = XS_GROUPS * g
        for j in range(2):
            top = broadcast(np.int32(0))
            for k in range(4):
                top = top | ((load(held.scales, at + 4 * j + k) >> 4) << (2 * k))
            store(s, 2 + j, top)
        for j in range(4):
            low, high = load(held.scales, at + 2 * j), load(held.scales, at + 2 * j + 1)
            store(s, 4 + j, (low & 15) | ((high & 15) << 4))
        for group in range(XS_GROUPS):
            for i in range(16):
                at = XS_BLOCK * g + GROUP * group + i
                store(s, 8 + 16 * group + i, load(held.codes, at) | (load(held.codes, at + 16) << 4))
        store_blocks(s, XS_BYTES, packed, first + g * LANES, min(LANES, count - g * LANES))


@kernel
def unpack_iq4_xs(packed: Any, weights: Any, s: Any) -> None:
    values = np.empty((XS_BLOCK, LANES), np.float32)
    for first in range(0, weights.size // XS_BLOCK, LANES):
        count = min(LANES, weights.size // XS_BLOCK - first)
        load_bytes(packed, first, count, XS_BYTES, s)
        d = load_half(s, 0)
        for group in range(XS_GROUPS):
            low = load(s, 4 + group // 2) >> (group % 2 * 4)
            high = load(s, 2 + group // 4) >> (group % 4 * 2)
            scale = d * to_float(((low & 15) | ((high & 3) << 4)) - XS_SMAX)
            for i in range(GROUP):
                index = (load(s, 8 + 16 * group + i % 16) >> (i // 16 * 4)) & 15
                store(values, GROUP * group + i, scale * level_of(index))
        store_floats(values, XS_BLOCK, weights, first, count)


def _scratch_nl(weights: F32, importance: F32 | None) -> Scratch:
    return scratch(GROUP, 1)


def _scratch_xs(weights: F32, importance: F32 | None) -> Scratch:
    return scratch(XS_BLOCK, XS_GROUPS)


CODECS: dict[str, Codec] = {
    "IQ4_NL": codec(
        Layout(GROUP, NL_BYTES, 0, mins=False),
        Stages({"rtn": iq4_nl_rtn, "opt-rtn": iq4_nl_opt}, pack_q4_0, unpack_iq4_nl, _scratch_nl),
    ),
    "IQ4_XS": codec(
        Layout(XS_BLOCK, XS_BYTES, XS_GROUPS, mins=False),
        Stages({"rtn": iq4_xs_rtn, "opt-rtn": iq4_xs_opt}, pack_iq4_xs, unpack_iq4_xs, _scratch_xs),
    ),
}
