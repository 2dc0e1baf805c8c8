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
    IQ4,
    IQ4_VALUES,
    ONE,
    ZERO,
    codec,
    fit_block,
    fit_super_block,
    inverse_of,
    iq4_level,
    load_group,
    load_rounded,
    peak_of,
    store_codes,
    store_rounded,
    sum_squares,
    weigh_by,
    weigh_by_squares,
    weigh_equally,
)
from ggufround_kernels.codec import Codec

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
def weigh_iq4(s: Any, importance: Any, size: Any) -> None:
    """The reference's weights for a loaded group."""
    if importance is None:
        weigh_by_squares(s, size)
    else:
        weigh_by(s, size, sum_squares(s, size) * (np.float32(2) / np.float32(size)))


# --- IQ4_NL --------------------------------------------------------------------------------------------------------


@kernel
def pack_iq4_nl(s: Any) -> None:
    d16 = half_bits(load(s.d, 0))
    store(s.packed, 0, d16)
    store(s.packed, 1, d16 >> 8)
    for i in range(16):
        store(s.packed, 2 + i, load(s.codes, i) | (load(s.codes, i + 16) << 4))


@kernel
def values_iq4_nl(s: Any) -> None:
    d = half_value(load(s.packed, 0) | (load(s.packed, 1) << 8))
    for i in range(GROUP):
        store(s.x, i, d * level_of((load(s.packed, 2 + i % 16) >> (i // 16 * 4)) & 15))


@kernel
def level_of(index: Any) -> Any:
    """The value of IQ4_VALUES at an index."""
    level = broadcast(np.float32(IQ4_VALUES[0]))
    for k in range(1, 16):
        level = select(index == k, np.float32(IQ4_VALUES[k]), level)
    return level


@kernel
def emit_iq4_nl(s: Any, rounded: Any, packed: Any, first: Any, count: Any) -> None:
    if rounded is not None:
        store_rounded(s, rounded, first, count, GROUP, 0)
    if packed is not None:
        pack_iq4_nl(s)
        store_blocks(s.packed, NL_BYTES, packed, first, count)


@kernel
def iq4_nl_rtn(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // GROUP, LANES):
        count = min(LANES, weights.size // GROUP - first)
        load_group(weights, importance, first, count, GROUP, s)
        weigh_iq4(s, importance, GROUP)
        scale = iq4_search(s, 0)
        store(s.d, 0, round_half(scale))
        store_codes(s, 0, GROUP, inverse_of(scale), IQ4)  # the codes are for the scale before rounding
        emit_iq4_nl(s, rounded, packed, first, count)


@kernel
def iq4_nl_opt(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // GROUP, LANES):
        count = min(LANES, weights.size // GROUP - first)
        load_group(weights, importance, first, count, GROUP, s)
        weigh_iq4(s, importance, GROUP)
        store(s.d, 0, round_half(iq4_search(s, 0)))
        if importance is None:
            weigh_equally(s, GROUP)
        fit_block(s, GROUP, TARGETS, IQ4)
        emit_iq4_nl(s, rounded, packed, first, count)


@kernel
def iq4_nl_pack(rounded: Any, s: Any, packed: Any) -> None:
    for first in range(0, rounded.d.size, LANES):
        count = min(LANES, rounded.d.size - first)
        load_rounded(s, rounded, first, count, GROUP, 0)
        emit_iq4_nl(s, None, packed, first, count)


@kernel
def iq4_nl_unpack(packed: Any, s: Any, weights: Any) -> None:
    for first in range(0, weights.size // GROUP, LANES):
        count = min(LANES, weights.size // GROUP - first)
        load_bytes(packed, first, count, NL_BYTES, s.packed)
        values_iq4_nl(s)
        store_floats(s.x, GROUP, weights, first, count)


# --- IQ4_XS --------------------------------------------------------------------------------------------------------


@kernel
def iq4_xs_reference(s: Any) -> None:
    """The scales of quantize_row_iq4_nl_impl for eight groups: s.d, s.kept, and in s.inverse the inverse scales that
    give the codes, taken before d is rounded to float16."""
    for group in range(XS_GROUPS):
        store(s.fitted, group, iq4_search(s, GROUP * group))
    _, peak = peak_of(s.fitted, 0, XS_GROUPS)
    d = -peak / np.float32(XS_SMAX)
    inverse_d = inverse_of(d)
    store(s.d, 0, round_half(d))
    for group in range(XS_GROUPS):
        code = larger(smaller(nearest(inverse_d * load(s.fitted, group)), XS_SMAX - 1), -XS_SMAX)
        store(s.kept, group, to_float(code))
        store(s.inverse, group, inverse_of(d * to_float(code)))


@kernel
def pack_iq4_xs(s: Any) -> None:
    d16 = half_bits(load(s.d, 0))
    store(s.packed, 0, d16)
    store(s.packed, 1, d16 >> 8)
    for j in range(2):
        top = broadcast(np.int32(0))
        for k in range(4):
            top = top | ((load(s.scales, 4 * j + k) >> 4) << (2 * k))
        store(s.packed, 2 + j, top)
    for j in range(4):
        store(s.packed, 4 + j, (load(s.scales, 2 * j) & 15) | ((load(s.scales, 2 * j + 1) & 15) << 4))
    for group in range(XS_GROUPS):
        for i in range(16):
            at = GROUP * group + i
            store(s.packed, 8 + 16 * group + i, load(s.codes, at) | (load(s.codes, at + 16) << 4))


@kernel
def values_iq4_xs(s: Any) -> None:
    d = half_value(load(s.packed, 0) | (load(s.packed, 1) << 8))
    for group in range(XS_GROUPS):
        low = load(s.packed, 4 + group // 2) >> (group % 2 * 4)
        high = load(s.packed, 2 + group // 4) >> (group % 4 * 2)
        scale = d * to_float(((low & 15) | ((high & 3) << 4)) - XS_SMAX)
        for i in range(GROUP):
            index = (load(s.packed, 8 + 16 * group + i % 16) >> (i // 16 * 4)) & 15
            store(s.x, GROUP * group + i, scale * level_of(index))


@kernel
def emit_iq4_xs(s: Any, rounded: Any, packed: Any, first: Any, count: Any) -> None:
    for group in range(XS_GROUPS):
        store(s.scales, group, nearest(load(s.kept, group)) + XS_SMAX)
    if rounded is not None:
        store_rounded(s, rounded, first, count, XS_BLOCK, XS_GROUPS)
    if packed is not None:
        pack_iq4_xs(s)
        store_blocks(s.packed, XS_BYTES, packed, first, count)


@kernel
def iq4_xs_rtn(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // XS_BLOCK, LANES):
        count = min(LANES, weights.size // XS_BLOCK - first)
        load_group(weights, importance, first, count, XS_BLOCK, s)
        weigh_iq4(s, importance, XS_BLOCK)
        iq4_xs_reference(s)
        for group in range(XS_GROUPS):
            store_codes(s, GROUP * group, GROUP, load(s.inverse, group), IQ4)
        emit_iq4_xs(s, rounded, packed, first, count)


@kernel
def iq4_xs_opt(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    for first in range(0, weights.size // XS_BLOCK, LANES):
        count = min(LANES, weights.size // XS_BLOCK - first)
        load_group(weights, importance, first, count, XS_BLOCK, s)
        weigh_iq4(s, importance, XS_BLOCK)
        iq4_xs_reference(s)
        if importance is None:
            weigh_equally(s, XS_BLOCK)
        fit_super_block(s, XS_GROUPS, GROUP, TARGETS, IQ4, XS_SCALE_TARGETS, XS_SMAX)
        emit_iq4_xs(s, rounded, packed, first, count)


@kernel
def iq4_xs_pack(rounded: Any, s: Any, packed: Any) -> None:
    for first in range(0, rounded.d.size, LANES):
        count = min(LANES, rounded.d.size - first)
        load_rounded(s, rounded, first, count, XS_BLOCK, XS_GROUPS)
        pack_iq4_xs(s)
        store_blocks(s.packed, XS_BYTES, packed, first, count)


@kernel
def iq4_xs_unpack(packed: Any, s: Any, weights: Any) -> None:
    for first in range(0, weights.size // XS_BLOCK, LANES):
        count = min(LANES, weights.size // XS_BLOCK - first)
        load_bytes(packed, first, count, XS_BYTES, s.packed)
        values_iq4_xs(s)
        store_floats(s.x, XS_BLOCK, weights, first, count)


CODECS: dict[str, Codec] = {
    "IQ4_NL": codec(GROUP, 0, NL_BYTES, {"rtn": iq4_nl_rtn, "opt-rtn": iq4_nl_opt}, iq4_nl_pack, iq4_nl_unpack),
    "IQ4_XS": codec(
        XS_BLOCK, XS_GROUPS, XS_BYTES, {"rtn": iq4_xs_rtn, "opt-rtn": iq4_xs_opt}, iq4_xs_pack, iq4_xs_unpack
    ),
}
