"""Q4_0 and Q5_0: 32 weights, value = d * (code - 8) or d * (code - 16)."""

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
    truncate,
)
from ggufround_kernels._stages import Layout, Stages, codec
from ggufround_kernels._symmetric import (
    ZERO,
    Scratch,
    both_signs,
    fit_block,
    inverse_of,
    load_group,
    load_half,
    peak_of,
    qx_search,
    scratch,
    store_half,
    weigh_by,
    weigh_equally,
)
from ggufround_kernels.codec import F32, Codec

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
def reference_plain(s: Any, nmax: Any, held: Any, g: Any) -> None:
    """quantize_row_q4_0_ref and quantize_row_q5_0_ref."""
    _, peak = peak_of(s.x, 0, BLOCK)
    d = peak / np.float32(-nmax)
    inverse = inverse_of(d)
    store(held.d, g, round_half(d))
    for i in range(BLOCK):
        code = truncate(load(s.x, i) * inverse + np.float32(nmax + 0.5))
        store(held.codes, BLOCK * g + i, smaller((code << 24) >> 24, 2 * nmax - 1))  # an int8 in the reference


@kernel
def reference_weighted(s: Any, nmax: Any, held: Any, g: Any) -> None:
    """quantize_row_q4_0_impl and quantize_row_q5_0_impl, the weights being in s.w."""
    d, inverse, zero = qx_search(s.x, s.w, 0, BLOCK, nmax, False)
    store(held.d, g, round_half(d))
    for i in range(BLOCK):
        code = larger(smaller(nearest(inverse * load(s.x, i)), nmax - 1), -nmax) + nmax
        store(held.codes, BLOCK * g + i, select(zero, 0, code))


@kernel
def reference(weights: Any, importance: Any, chunk: Any, count: Any, s: Any, nmax: Any, held: Any, g: Any) -> None:
    """Load lane group g of a chunk of `count` blocks from block `chunk`, and leave the reference's codes and d."""
    first, lanes = chunk + g * LANES, min(LANES, count - g * LANES)
    load_group(weights, importance, first, lanes, s)
    if importance is None:
        reference_plain(s, nmax, held, g)
    else:
        row, place = divmod(first * BLOCK, importance.size)
        for lane in range(LANES):
            s.fitted[0, lane] = s.means[row]
            if lane < lanes - 1:
                place += BLOCK
                if place == importance.size:
                    row, place = row + 1, 0
        weigh_by(s, load(s.fitted, 0))
        reference_weighted(s, nmax, held, g)


@kernel
def q4_0_rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        reference(weights, importance, first, count, s, Q4_NMAX, held, g)


@kernel
def q5_0_rtn(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        reference(weights, importance, first, count, s, Q5_NMAX, held, g)


@kernel
def q4_0_opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        reference(weights, importance, first, count, s, Q4_NMAX, held, g)
        if importance is None:
            weigh_equally(s)
        fit_block(s, BLOCK, Q4_TARGETS, Q4_NMAX, held, g)


@kernel
def q5_0_opt(weights: Any, importance: Any, first: Any, count: Any, held: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        reference(weights, importance, first, count, s, Q5_NMAX, held, g)
        if importance is None:
            weigh_equally(s)
        fit_block(s, BLOCK, Q5_TARGETS, Q5_NMAX, held, g)


# block_q4_0: d float16; 16 bytes, element i in the low and i + 16 in the high nibble
@kernel
def pack_q4_0(held: Any, first: Any, count: Any, packed: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        store_half(s, 0, load(held.d, g))
        for i in range(16):
            store(s, 2 + i, load(held.codes, BLOCK * g + i) | (load(held.codes, BLOCK * g + i + 16) << 4))
        store_blocks(s, Q4_BYTES, packed, first + g * LANES, min(LANES, count - g * LANES))


# block_q5_0: d float16; 4 bytes, bit i the fifth bit of element i; 16 bytes of nibbles as q4_0
@kernel
def pack_q5_0(held: Any, first: Any, count: Any, packed: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        store_half(s, 0, load(held.d, g))
        for byte in range(4):
            high = broadcast(np.int32(0))
            for bit in range(8):
                high = high | ((load(held.codes, BLOCK * g + 8 * byte + bit) >> 4) << bit)
            store(s, 2 + byte, high)
        for i in range(16):
            low, upper = load(held.codes, BLOCK * g + i), load(held.codes, BLOCK * g + i + 16)
            store(s, 6 + i, (low & 15) | ((upper & 15) << 4))
        store_blocks(s, Q5_BYTES, packed, first + g * LANES, min(LANES, count - g * LANES))


@kernel
def unpack_q4_0(packed: Any, weights: Any, s: Any) -> None:
    values = np.empty((BLOCK, LANES), np.float32)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q4_BYTES, s)
        d = load_half(s, 0)
        for i in range(BLOCK):
            code = (load(s, 2 + i % 16) >> (i // 16 * 4)) & 15
            store(values, i, to_float(code - Q4_NMAX) * d)
        store_floats(values, BLOCK, weights, first, count)


@kernel
def unpack_q5_0(packed: Any, weights: Any, s: Any) -> None:
    values = np.empty((BLOCK, LANES), np.float32)
    for first in range(0, weights.size // BLOCK, LANES):
        count = min(LANES, weights.size // BLOCK - first)
        load_bytes(packed, first, count, Q5_BYTES, s)
        d = load_half(s, 0)
        for i in range(BLOCK):
            low = (load(s, 6 + i % 16) >> (i // 16 * 4)) & 15
            high = (load(s, 2 + i // 8) >> (i % 8)) & 1
            store(values, i, to_float((low | (high << 4)) - Q5_NMAX) * d)
        store_floats(values, BLOCK, weights, first, count)


def _scratch(weights: F32, importance: F32 | None) -> Scratch:
    if importance is None:
        return scratch(BLOCK, 1)
    return scratch(BLOCK, 1, row_mean_squares(weights.reshape(-1), weights.shape[1]))


CODECS: dict[str, Codec] = {
    "Q4_0": codec(
        Layout(BLOCK, Q4_BYTES, 0, mins=False),
        Stages({"rtn": q4_0_rtn, "opt-rtn": q4_0_opt}, pack_q4_0, unpack_q4_0, _scratch),
    ),
    "Q5_0": codec(
        Layout(BLOCK, Q5_BYTES, 0, mins=False),
        Stages({"rtn": q5_0_rtn, "opt-rtn": q5_0_opt}, pack_q5_0, unpack_q5_0, _scratch),
    ),
}
