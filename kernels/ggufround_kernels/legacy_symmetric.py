"""Q4_0 and Q5_0: 32 weights, value = d * (code - 8) or d * (code - 16)."""

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
    truncate,
)
from ggufround_kernels._symmetric import (
    ZERO,
    both_signs,
    codec,
    fit_block,
    inverse_of,
    load_group,
    load_rounded,
    peak_of,
    qx_search,
    store_rounded,
    weigh_by,
    weigh_equally,
)
from ggufround_kernels.codec import Codec

BLOCK = 32
Q4_NMAX, Q4_BYTES = 8, 18
Q5_NMAX, Q5_BYTES = 16, 22

# opt-rtn: the codes that a block's peak may get
Q4_TARGETS = both_signs(np.arange(5, 9, 0.25), np.arange(9, 15))
Q5_TARGETS = both_signs(np.arange(12, 17, 0.25), np.arange(17, 23))


@kernel
def row_mean_squares(weights: Any, n: Any) -> Any:
    """The sum of squares of each row, element by element, over n. Four rows at a time hide the additions' latency."""
    rows = weights.size // n
    means = np.empty(rows, np.float32)
    for row in range(0, rows, 4):
        a, b, c, d = row, min(row + 1, rows - 1), min(row + 2, rows - 1), min(row + 3, rows - 1)
        sa, sb, sc, sd = ZERO, ZERO, ZERO, ZERO
        for i in range(n):
            sa += weights[a * n + i] * weights[a * n + i]
            sb += weights[b * n + i] * weights[b * n + i]
            sc += weights[c * n + i] * weights[c * n + i]
            sd += weights[d * n + i] * weights[d * n + i]
        means[a], means[b], means[c], means[d] = sa, sb, sc, sd
    return means / np.float32(n)


@kernel
def reference_plain(s: Any, nmax: Any) -> None:
    """quantize_row_q4_0_ref and quantize_row_q5_0_ref."""
    _, peak = peak_of(s.x, 0, BLOCK)
    d = peak / np.float32(-nmax)
    inverse = inverse_of(d)
    store(s.d, 0, round_half(d))
    for i in range(BLOCK):
        code = truncate(load(s.x, i) * inverse + np.float32(nmax + 0.5))
        store(s.codes, i, smaller((code << 24) >> 24, 2 * nmax - 1))  # an int8 in the reference


@kernel
def reference_weighted(s: Any, nmax: Any) -> None:
    """quantize_row_q4_0_impl and quantize_row_q5_0_impl, the weights being in s.w."""
    d, inverse, zero = qx_search(s.x, s.w, 0, BLOCK, nmax, False)
    store(s.d, 0, round_half(d))
    for i in range(BLOCK):
        code = larger(smaller(nearest(inverse * load(s.x, i)), nmax - 1), -nmax) + nmax
        store(s.codes, i, select(zero, 0, code))


@kernel
def search_group(
    weights: Any, importance: Any, n: Any, means: Any, first: Any, count: Any, s: Any, nmax: Any, targets: Any
) -> None:
    """Codes and d of one lane group: the reference's, and where there are targets those of opt-rtn."""
    load_group(weights, importance, first, count, BLOCK, s)
    if importance is None:
        reference_plain(s, nmax)
        if targets is not None:
            weigh_equally(s, BLOCK)
    else:
        for lane in range(LANES):
            s.sigma2[0, lane] = means[(first + min(lane, count - 1)) * BLOCK // n]
        weigh_by(s, BLOCK, load(s.sigma2, 0))
        reference_weighted(s, nmax)
    if targets is not None:
        fit_block(s, BLOCK, targets, nmax)


@kernel
def pack_q4_0(s: Any) -> None:
    d16 = half_bits(load(s.d, 0))
    store(s.packed, 0, d16)
    store(s.packed, 1, d16 >> 8)
    for i in range(16):
        store(s.packed, 2 + i, load(s.codes, i) | (load(s.codes, i + 16) << 4))


@kernel
def pack_q5_0(s: Any) -> None:
    d16 = half_bits(load(s.d, 0))
    store(s.packed, 0, d16)
    store(s.packed, 1, d16 >> 8)
    for byte in range(4):
        high = broadcast(np.int32(0))
        for bit in range(8):
            high = high | ((load(s.codes, 8 * byte + bit) >> 4) << bit)
        store(s.packed, 2 + byte, high)
    for i in range(16):
        store(s.packed, 6 + i, (load(s.codes, i) & 15) | ((load(s.codes, i + 16) & 15) << 4))


@kernel
def values_q4_0(s: Any) -> None:
    d = half_value(load(s.packed, 0) | (load(s.packed, 1) << 8))
    for i in range(BLOCK):
        code = (load(s.packed, 2 + i % 16) >> (i // 16 * 4)) & 15
        store(s.x, i, to_float(code - Q4_NMAX) * d)


@kernel
def values_q5_0(s: Any) -> None:
    d = half_value(load(s.packed, 0) | (load(s.packed, 1) << 8))
    for i in range(BLOCK):
        low = (load(s.packed, 6 + i % 16) >> (i // 16 * 4)) & 15
        high = (load(s.packed, 2 + i // 8) >> (i % 8)) & 1
        store(s.x, i, to_float((low | (high << 4)) - Q5_NMAX) * d)


@kernel
def emit_q4_0(s: Any, rounded: Any, packed: Any, first: Any, count: Any) -> None:
    if rounded is not None:
        store_rounded(s, rounded, first, count, BLOCK, 0)
    if packed is not None:
        pack_q4_0(s)
        store_blocks(s.packed, Q4_BYTES, packed, first, count)


@kernel
def emit_q5_0(s: Any, rounded: Any, packed: Any, first: Any, count: Any) -> None:
    if rounded is not None:
        store_rounded(s, rounded, first, count, BLOCK, 0)
    if packed is not None:
        pack_q5_0(s)
        store_blocks(s.packed, Q5_BYTES, packed, first, count)


@kernel
def means_of(weights: Any, importance: Any, n: Any) -> Any:
    if importance is None:
        return np.empty(0, np.float32)
    return row_mean_squares(weights, n)


@kernel
def q4_0_rtn(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    means = means_of(weights, importance, n)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        search_group(weights, importance, n, means, first, count, s, Q4_NMAX, None)
        emit_q4_0(s, rounded, packed, first, count)


@kernel
def q4_0_opt(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    means = means_of(weights, importance, n)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        search_group(weights, importance, n, means, first, count, s, Q4_NMAX, Q4_TARGETS)
        emit_q4_0(s, rounded, packed, first, count)


@kernel
def q5_0_rtn(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    means = means_of(weights, importance, n)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        search_group(weights, importance, n, means, first, count, s, Q5_NMAX, None)
        emit_q5_0(s, rounded, packed, first, count)


@kernel
def q5_0_opt(weights: Any, importance: Any, n: Any, s: Any, rounded: Any, packed: Any) -> None:
    means = means_of(weights, importance, n)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        search_group(weights, importance, n, means, first, count, s, Q5_NMAX, Q5_TARGETS)
        emit_q5_0(s, rounded, packed, first, count)


@kernel
def q4_0_pack(rounded: Any, s: Any, packed: Any) -> None:
    for first in range(0, rounded.d.size, LANES):
        count = min(LANES, rounded.d.size - first)
        load_rounded(s, rounded, first, count, BLOCK, 0)
        emit_q4_0(s, None, packed, first, count)


@kernel
def q5_0_pack(rounded: Any, s: Any, packed: Any) -> None:
    for first in range(0, rounded.d.size, LANES):
        count = min(LANES, rounded.d.size - first)
        load_rounded(s, rounded, first, count, BLOCK, 0)
        emit_q5_0(s, None, packed, first, count)


@kernel
def q4_0_unpack(packed: Any, s: Any, weights: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q4_BYTES, s.packed)
        values_q4_0(s)
        store_floats(s.x, BLOCK, weights, first, count)


@kernel
def q5_0_unpack(packed: Any, s: Any, weights: Any) -> None:
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q5_BYTES, s.packed)
        values_q5_0(s)
        store_floats(s.x, BLOCK, weights, first, count)


CODECS: dict[str, Codec] = {
    "Q4_0": codec(BLOCK, 0, Q4_BYTES, {"rtn": q4_0_rtn, "opt-rtn": q4_0_opt}, q4_0_pack, q4_0_unpack),
    "Q5_0": codec(BLOCK, 0, Q5_BYTES, {"rtn": q5_0_rtn, "opt-rtn": q5_0_opt}, q5_0_pack, q5_0_unpack),
}
