"""TQ1_0, TQ2_0, Q2_0, Q1_0: one float16 d a block, value = d * (code - 1); in Q1_0 d * (2 code - 1).

The codes are 0 to 2 in TQ1_0 (base 3, five to a byte) and TQ2_0, 0 to 3 in Q2_0, 0 to 1 in Q1_0.

`rtn` is llama.cpp: d is the largest magnitude (in Q1_0 the mean magnitude), which suits weights that are ternary
already; of a bell curve it keeps only the tails.

`opt-rtn` looks for the least error. For given codes l = code - 1 the best d is sum w x l / sum w l^2, which takes
(sum w x l)^2 / sum w l^2 off the error; for a given d the best codes are the nearest. From several starts the one that
takes off most is refined by turns, and kept where the packed error is below that of rtn's d. In Q1_0 the codes are the
signs whatever d is: d is fitted at once, and without importance rtn's is the best already.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._chunks import Kernels, Layout, codec, load_group, weigh, weight_at
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    absolute,
    broadcast,
    larger,
    load,
    round_even,
    round_half,
    select,
    smaller,
    store,
    store_floats,
    to_float,
    truncate,
)
from ggufround_kernels._vector import (
    half_bits_of,
    half_value_of,
    load_at,
    peak,
    round_half_of,
    store_at,
    total,
)
from ggufround_kernels.codec import Codec, Search

TQ_BLOCK, TQ1_BYTES, TQ2_BYTES = 256, 54, 66
Q2_BLOCK, Q1_BLOCK, Q_BYTES = 64, 128, 18
ZERO = np.float32(0)
ONE = np.float32(1)
HALF = np.float32(0.5)
HALF_MAX = np.float32(65504)
TQ_ROUNDS, Q2_ROUNDS = 4, 2  # of refinement

# opt-rtn. TQ: weights larger than this many mean magnitudes get a code; Q2_0: the codes that the peak may get
TQ_CUTS = np.array([0.2, 0.4, 0.55, 0.7, 0.85, 1.0, 1.25, 1.6, 2.1, 3, 4.5], np.float32)
Q2_TARGETS = np.array([1, -1, 1.35, -1.35, 1.75, -1.75, 2, -2, 2.45, -2.45, 3.1, -3.1], np.float32)


@kernel
def peak_of(weights: Any, start: Any, size: Any) -> Any:
    largest = absolute(load_at(weights, start))
    for i in range(LANES, size, LANES):
        largest = larger(largest, absolute(load_at(weights, start + i)))
    return peak(largest)


@kernel
def mean_square(weights: Any, start: Any, size: Any) -> Any:
    squares = broadcast(ZERO)
    for i in range(0, size, LANES):
        x = load_at(weights, start + i)
        squares = squares + x * x
    return total(squares) / np.float32(size)


@kernel
def storable(d: Any) -> Any:
    """d as it will be stored: a float16 value, never infinite."""
    return max(min(round_half_of(d), HALF_MAX), -HALF_MAX)


# --- TQ1_0 and TQ2_0 -----------------------------------------------------------------------------------------------


@kernel
def trits(x: Any, cut: Any) -> Any:
    """i32: 2 from `cut` up, 0 from -cut down, else 1."""
    one = broadcast(np.int32(1))
    return select(x >= cut, one + 1, select(x <= -cut, one - 1, one))


@kernel
def rtn_trits(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    """quantize_row_tq1_0_ref, quantize_row_tq2_0_ref: roundf(x / d) + 1."""
    for b in range(scales.size):
        d = peak_of(weights, b * TQ_BLOCK, TQ_BLOCK)
        inverse = ONE / d
        inverse = inverse if inverse < np.float32(np.inf) else ZERO
        scales[b] = round_half_of(d)
        for i in range(b * TQ_BLOCK, (b + 1) * TQ_BLOCK, LANES):
            store_at(codes, i, trits(load_at(weights, i) * inverse, HALF))


@kernel
def trits_gain(size: Any, w: Any, cut: Any) -> Any:
    """sum w |x| and sum w over the weights larger than `cut`."""
    xs, ws = broadcast(ZERO), broadcast(ZERO)
    for i in range(0, TQ_BLOCK, LANES):
        a, v = load_at(size, i), load_at(w, i)
        kept = a > cut
        xs = xs + select(kept, v * a, ZERO)
        ws = ws + select(kept, v, ZERO)
    return total(xs), total(ws)


@kernel
def trits_error(size: Any, w: Any, d: Any) -> Any:
    errors = broadcast(ZERO)
    for i in range(0, TQ_BLOCK, LANES):
        a = load_at(size, i)
        e = smaller(a, absolute(a - d))
        errors = errors + load_at(w, i) * e * e
    return total(errors)


@kernel
def opt_trits(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    size, w = np.empty(TQ_BLOCK, np.float32), np.empty(TQ_BLOCK, np.float32)
    for b in range(scales.size):
        start, column = b * TQ_BLOCK, (first + b) % per_row * TQ_BLOCK
        sigma2 = mean_square(weights, start, TQ_BLOCK)
        sizes = broadcast(ZERO)
        for i in range(0, TQ_BLOCK, LANES):
            x = load_at(weights, start + i)
            store_at(size, i, absolute(x))
            store_at(w, i, weigh(importance, column + i, x, sigma2))
            sizes = sizes + absolute(x)
        mean = total(sizes) / np.float32(TQ_BLOCK)
        best, d = ZERO, ZERO
        for cut in TQ_CUTS:
            xs, ws = trits_gain(size, w, cut * mean)
            gain = xs * xs / ws
            d = xs / ws if gain > best else d
            best = gain if gain > best else best
        for _ in range(TQ_ROUNDS):
            xs, ws = trits_gain(size, w, d * HALF)
            d = xs / ws if ws > ZERO else d
        d = storable(d)
        plain = storable(peak_of(size, 0, TQ_BLOCK))
        d = d if trits_error(size, w, d) < trits_error(size, w, plain) else plain
        scales[b] = d
        cut = d * HALF if d > ZERO else HALF_MAX
        for i in range(start, start + TQ_BLOCK, LANES):
            store_at(codes, i, trits(load_at(weights, i), cut))


# block_tq1_0: bytes 0..31 elements m + 32 k (k = 0..4), 32..47 elements 160 + m + 16 k, 48..51 elements 240 + m + 4 k
# (k = 0..3), the first most significant; a byte is ceil(256 n / 243), n of five trits; float16 d
@kernel
def trits_byte(codes: Any, start: Any, step: Any, count: Any) -> Any:
    n = 0
    for k in range(count):
        n = 3 * n + codes[start + k * step]
    for _ in range(count, 5):
        n = 3 * n
    return (n * 256 + 242) // 243


@kernel
def pack_tq1_0(codes: Any, scales: Any, packed: Any) -> None:
    for b in range(scales.size):
        start, out = b * TQ_BLOCK, b * TQ1_BYTES
        for m in range(32):
            packed[out + m] = trits_byte(codes, start + m, 32, 5)
        for m in range(16):
            packed[out + 32 + m] = trits_byte(codes, start + 160 + m, 16, 5)
        for m in range(4):
            packed[out + 48 + m] = trits_byte(codes, start + 240 + m, 4, 4)
        d16 = half_bits_of(scales[b])
        packed[out + 52] = d16 & 0xFF
        packed[out + 53] = d16 >> 8


@kernel
def unpack_trits(packed: Any, first: Any, count: Any, digits: Any, d: Any, weights: Any, start: Any) -> None:
    """`count` bytes from `first`: digit k of byte m is that of element start + k * count + m."""
    power = 1
    for k in range(digits):
        for m in range(count):
            code = ((packed[first + m] * power & 0xFF) * 3) >> 8
            weights[start + k * count + m] = np.float32(code - 1) * d
        power *= 3


@kernel
def unpack_tq1_0(packed: Any, weights: Any) -> None:
    for b in range(weights.size // TQ_BLOCK):
        first, start = b * TQ1_BYTES, b * TQ_BLOCK
        d = half_value_of(packed[first + 52] | (packed[first + 53] << 8))
        unpack_trits(packed, first, 32, 5, d, weights, start)
        unpack_trits(packed, first + 32, 16, 5, d, weights, start + 160)
        unpack_trits(packed, first + 48, 4, 4, d, weights, start + 240)


# block_tq2_0: two halves of 32 bytes, byte m of a half elements m, m + 32, m + 64, m + 96 in bit pairs; float16 d
@kernel
def pack_tq2_0(codes: Any, scales: Any, packed: Any) -> None:
    for b in range(scales.size):
        for half in range(2):
            start = b * TQ_BLOCK + 128 * half
            low = load_at(codes, start) | (load_at(codes, start + 32) << 2)
            high = load_at(codes, start + 64) | (load_at(codes, start + 96) << 2)
            store_at(packed, b * TQ2_BYTES + 32 * half, low | (high << 4))
        d16 = half_bits_of(scales[b])
        packed[b * TQ2_BYTES + 64] = d16 & 0xFF
        packed[b * TQ2_BYTES + 65] = d16 >> 8


@kernel
def unpack_tq2_0(packed: Any, weights: Any) -> None:
    for b in range(weights.size // TQ_BLOCK):
        first = b * TQ2_BYTES
        d = half_value_of(packed[first + 64] | (packed[first + 65] << 8))
        for half in range(2):
            quads = load_at(packed, first + 32 * half)
            for k in range(4):
                code = (quads >> (2 * k)) & 3
                store_at(weights, b * TQ_BLOCK + 128 * half + 32 * k, to_float(code - 1) * d)


# --- Q2_0 ----------------------------------------------------------------------------------------------------------


@kernel
def rtn_q2_0(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    """quantize_row_q2_0_ref. Below 3e-39 its 1 / d is infinite and every code becomes 0."""
    for b in range(scales.size):
        d = peak_of(weights, b * Q2_BLOCK, Q2_BLOCK)
        inverse = ONE / d if d > ZERO else ZERO
        scales[b] = round_half_of(d)
        for i in range(b * Q2_BLOCK, (b + 1) * Q2_BLOCK, LANES):
            code = trits(load_at(weights, i) * inverse, HALF)
            store_at(codes, i, code if inverse < np.float32(np.inf) else code - code)


@kernel
def quarters(x: Any, inverse: Any) -> Any:
    """Nearest of -1, 0, 1, 2."""
    return larger(smaller(round_even(x * inverse), np.float32(2)), -ONE)


@kernel
def q2_fit(x: Any, w: Any, inverse: Any) -> Any:
    """sum w x l and sum w l^2 of each lane's block for the codes l that an inverse scale gives."""
    xl, ll = broadcast(ZERO), broadcast(ZERO)
    for i in range(Q2_BLOCK):
        v, weight = load(x, i), weight_at(w, i)
        code = quarters(v, inverse)
        xl, ll = xl + weight * v * code, ll + weight * code * code
    return xl, ll


@kernel
def q2_error(x: Any, w: Any, d: Any) -> Any:
    error, inverse = broadcast(ZERO), select(d == ZERO, ZERO, ONE / d)
    for i in range(Q2_BLOCK):
        v = load(x, i)
        rest = v - quarters(v, inverse) * d
        error = error + weight_at(w, i) * rest * rest
    return error


@kernel
def q2_scale(x: Any, w: Any) -> Any:
    """The float16 scale of each lane's block; rtn's where that has the least error."""
    largest = absolute(load(x, 0))
    for i in range(1, Q2_BLOCK):
        largest = larger(absolute(load(x, i)), largest)
    best, d = broadcast(ZERO), broadcast(ZERO)
    for target in Q2_TARGETS:
        xl, ll = q2_fit(x, w, target / largest)
        gain = xl * xl / ll
        d, best = select(gain > best, xl / ll, d), select(gain > best, gain, best)
    for _ in range(Q2_ROUNDS):
        xl, ll = q2_fit(x, w, ONE / d)
        d = select(ll > ZERO, xl / ll, d)
    d = larger(smaller(round_half(d), HALF_MAX), -HALF_MAX)
    plain = smaller(round_half(largest), HALF_MAX)
    return select(q2_error(x, w, d) < q2_error(x, w, plain), d, plain)


@kernel
def opt_q2_0(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    x, w = np.empty((Q2_BLOCK, LANES), np.float32), np.empty((Q2_BLOCK, LANES), np.float32)
    row = np.empty((1, LANES), np.float32)
    for begin in range(0, scales.size, LANES):
        count = min(LANES, scales.size - begin)
        load_group(weights, importance, per_row, first, begin, count, Q2_BLOCK, x, w)
        if importance is None:
            store(row, 0, q2_scale(x, None))
        else:
            store(row, 0, q2_scale(x, w))
        store_floats(row, 1, scales, begin, count)
    for b in range(scales.size):
        inverse = ONE / scales[b] if scales[b] != ZERO else ZERO
        for i in range(b * Q2_BLOCK, (b + 1) * Q2_BLOCK, LANES):
            store_at(codes, i, truncate(quarters(load_at(weights, i), inverse)) + 1)


# block_q2_0: float16 d, element j in byte j // 4, bits 2 (j % 4)
@kernel
def pack_q2_0(codes: Any, scales: Any, packed: Any) -> None:
    for b in range(scales.size):
        d16 = half_bits_of(scales[b])
        packed[b * Q_BYTES] = d16 & 0xFF
        packed[b * Q_BYTES + 1] = d16 >> 8
        for j in range(16):
            i = b * Q2_BLOCK + 4 * j
            quad = codes[i] | (codes[i + 1] << 2) | (codes[i + 2] << 4) | (codes[i + 3] << 6)
            packed[b * Q_BYTES + 2 + j] = quad


@kernel
def unpack_q2_0(packed: Any, weights: Any) -> None:
    for b in range(weights.size // Q2_BLOCK):
        d = half_value_of(packed[b * Q_BYTES] | (packed[b * Q_BYTES + 1] << 8))
        for j in range(Q2_BLOCK):
            code = (packed[b * Q_BYTES + 2 + j // 4] >> (2 * (j % 4))) & 3
            weights[b * Q2_BLOCK + j] = np.float32(code - 1) * d


# --- Q1_0 ----------------------------------------------------------------------------------------------------------


@kernel
def sum_sizes(weights: Any, block: Any) -> Any:
    """The sum of magnitudes in a block, element by element as in the reference."""
    s = ZERO
    for i in range(block * Q1_BLOCK, (block + 1) * Q1_BLOCK):
        s += abs(weights[i])
    return s


@kernel
def mean_sizes(weights: Any, first: Any, last: Any, scales: Any) -> None:
    """d of blocks first to last, 8 at most at a time: side by side they hide the latency of the additions."""
    s0, s1, s2, s3, s4, s5, s6, s7 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for i in range(first * Q1_BLOCK, (first + 1) * Q1_BLOCK):
        s0 += abs(weights[i])
        s1 += abs(weights[i + Q1_BLOCK])
        s2 += abs(weights[i + 2 * Q1_BLOCK])
        s3 += abs(weights[i + 3 * Q1_BLOCK])
        s4 += abs(weights[i + 4 * Q1_BLOCK])
        s5 += abs(weights[i + 5 * Q1_BLOCK])
        s6 += abs(weights[i + 6 * Q1_BLOCK])
        s7 += abs(weights[i + 7 * Q1_BLOCK])
    for k, s in enumerate((s0, s1, s2, s3, s4, s5, s6, s7)):
        scales[first + k] = round_half_of(s / np.float32(Q1_BLOCK))


@kernel
def rtn_q1_0(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    """quantize_row_q1_0_ref."""
    whole = scales.size // 8 * 8
    for b in range(0, whole, 8):
        mean_sizes(weights, b, b + 8, scales)
    for b in range(whole, scales.size):
        scales[b] = round_half_of(sum_sizes(weights, b) / np.float32(Q1_BLOCK))
    for i in range(0, weights.size, LANES):
        store_at(codes, i, select(load_at(weights, i) >= ZERO, broadcast(np.int32(1)), 0))


@kernel
def opt_q1_0(weights: Any, importance: Any, per_row: Any, first: Any, codes: Any, scales: Any) -> None:
    rtn_q1_0(weights, importance, per_row, first, codes, scales)
    if importance is not None:
        for b in range(scales.size):
            start, column = b * Q1_BLOCK, (first + b) % per_row * Q1_BLOCK
            sigma2 = mean_square(weights, start, Q1_BLOCK)
            xs, ws = broadcast(ZERO), broadcast(ZERO)
            for i in range(0, Q1_BLOCK, LANES):
                x = load_at(weights, start + i)
                w = weigh(importance, column + i, x, sigma2)
                xs, ws = xs + w * absolute(x), ws + w
            d = total(xs) / total(ws)
            if d < np.float32(np.inf):
                scales[b] = storable(d)


# block_q1_0: float16 d, element j in byte j // 8, bit j % 8
@kernel
def pack_q1_0(codes: Any, scales: Any, packed: Any) -> None:
    for b in range(scales.size):
        d16 = half_bits_of(scales[b])
        packed[b * Q_BYTES] = d16 & 0xFF
        packed[b * Q_BYTES + 1] = d16 >> 8
        for j in range(16):
            byte = 0
            for k in range(8):
                byte |= codes[b * Q1_BLOCK + 8 * j + k] << k
            packed[b * Q_BYTES + 2 + j] = byte


@kernel
def unpack_q1_0(packed: Any, weights: Any) -> None:
    for b in range(weights.size // Q1_BLOCK):
        d = half_value_of(packed[b * Q_BYTES] | (packed[b * Q_BYTES + 1] << 8))
        for j in range(Q1_BLOCK):
            bit = (packed[b * Q_BYTES + 2 + j // 8] >> (j % 8)) & 1
            weights[b * Q1_BLOCK + j] = d if bit else -d


_TRITS: dict[Search, Any] = {"rtn": rtn_trits, "opt-rtn": opt_trits}

CODECS: dict[str, Codec] = {
    "TQ1_0": codec(Layout(TQ_BLOCK, TQ1_BYTES), Kernels(_TRITS, pack_tq1_0, unpack_tq1_0)),
    "TQ2_0": codec(Layout(TQ_BLOCK, TQ2_BYTES), Kernels(_TRITS, pack_tq2_0, unpack_tq2_0)),
    "Q1_0": codec(Layout(Q1_BLOCK, Q_BYTES), Kernels({"rtn": rtn_q1_0, "opt-rtn": opt_q1_0}, pack_q1_0, unpack_q1_0)),
    "Q2_0": codec(Layout(Q2_BLOCK, Q_BYTES), Kernels({"rtn": rtn_q2_0, "opt-rtn": opt_q2_0}, pack_q2_0, unpack_q2_0)),
}
