"""Q2_K, Q4_K, Q5_K: 256 weights as d * scale * code - dmin * min, a scale and a min for each sub-block.

The searches stand in _superblocks; here are the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ggufround_kernels._affine import Grid
from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    broadcast,
    half_bits,
    half_value,
    load,
    load_bytes,
    store,
    store_blocks,
    store_floats,
    to_float,
)
from ggufround_kernels._stages import Layout, Stages, codec
from ggufround_kernels._superblocks import BLOCK, Scratch, Shape, better, new_scratch, reference
from ggufround_kernels.codec import F32, Codec


# block_q2_K: 16 bytes scale | min << 4; 64 bytes, elements l, l+32, l+64, l+96 of a half in bit pairs; d, dmin float16
@kernel
def _pack_q2_k(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        for j in range(16):
            store(s, j, load(held.scales, 16 * g + j) | (load(held.mins, 16 * g + j) << 4))
        for half in range(2):
            for i in range(32):
                row = g * BLOCK + 128 * half + i
                low = load(held.codes, row) | (load(held.codes, row + 32) << 2)
                high = (load(held.codes, row + 64) << 4) | (load(held.codes, row + 96) << 6)
                store(s, 16 + 32 * half + i, low | high)
        _pack_supers(held, g, s, 80)
        begin = first + g * LANES
        store_blocks(s, 84, out, begin, min(LANES, first + count - begin))


# block_q4_K: d, dmin float16; 12 bytes of 6-bit scales and mins; 128 bytes, elements i and i+32 of 64 in nibbles
@kernel
def _pack_q4_k(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        _pack_supers(held, g, s, 0)
        _pack_scales(held, g, s)
        for c in range(4):
            for i in range(32):
                row = g * BLOCK + 64 * c + i
                store(s, 16 + 32 * c + i, load(held.codes, row) | (load(held.codes, row + 32) << 4))
        begin = first + g * LANES
        store_blocks(s, 144, out, begin, min(LANES, first + count - begin))


# block_q5_K: as q4_K, with 32 bytes before the nibbles: bit k of byte i is the fifth bit of element 32 * k + i
@kernel
def _pack_q5_k(held: Any, first: Any, count: Any, out: Any, s: Any) -> None:
    for g in range((count + LANES - 1) // LANES):
        _pack_supers(held, g, s, 0)
        _pack_scales(held, g, s)
        for i in range(32):
            fifth = broadcast(np.int32(0))
            for c in range(4):
                row = g * BLOCK + 64 * c + i
                low = load(held.codes, row)
                high = load(held.codes, row + 32)
                fifth = fifth | ((low >> 4) << (2 * c)) | ((high >> 4) << (2 * c + 1))
                store(s, 48 + 32 * c + i, (low & 15) | ((high & 15) << 4))
            store(s, 16 + i, fifth)
        begin = first + g * LANES
        store_blocks(s, 176, out, begin, min(LANES, first + count - begin))


@kernel
def _pack_supers(held: Any, g: Any, s: Any, row: Any) -> None:
    d = half_bits(load(held.d, g))
    dmin = half_bits(load(held.dmin, g))
    store(s, row, d)
    store(s, row + 1, d >> 8)
    store(s, row + 2, dmin)
    store(s, row + 3, dmin >> 8)


@kernel
def _pack_scales(held: Any, g: Any, s: Any) -> None:
    """Sub-blocks 0-3 in the low six bits of bytes 4 + j and 8 + j; 4-7 in nibbles of bytes 12 + j and the free bits."""
    for j in range(4):
        sc = load(held.scales, 8 * g + j)
        m = load(held.mins, 8 * g + j)
        late_sc = load(held.scales, 8 * g + j + 4)
        late_m = load(held.mins, 8 * g + j + 4)
        store(s, 4 + j, sc | ((late_sc >> 4) << 6))
        store(s, 8 + j, m | ((late_m >> 4) << 6))
        store(s, 12 + j, (late_sc & 15) | ((late_m & 15) << 4))


@kernel
def _unpack_scales(s: Any, scales: Any, mins: Any) -> None:
    for j in range(4):
        sc = load(s, 4 + j)
        m = load(s, 8 + j)
        late = load(s, 12 + j)
        store(scales, j, to_float(sc & 63))
        store(mins, j, to_float(m & 63))
        store(scales, j + 4, to_float((late & 15) | ((sc >> 6) << 4)))
        store(mins, j + 4, to_float((late >> 4) | ((m >> 6) << 4)))


@kernel
def _unpack_super(s: Any, row: Any) -> Any:
    return half_value(load(s, row) | (load(s, row + 1) << 8))


@kernel
def _unpack_q2_k(packed: Any, out: Any, s: Any) -> None:
    x = np.empty((BLOCK, LANES), np.float32)
    total = out.size // BLOCK
    for first in range(0, total, LANES):
        count = min(LANES, total - first)
        load_bytes(packed, first, count, 84, s)
        d = _unpack_super(s, 80)
        dmin = _unpack_super(s, 82)
        for j in range(16):
            byte = load(s, j)
            scale = d * to_float(byte & 15)
            shift = dmin * to_float(byte >> 4)
            for i in range(16):
                element = 16 * j + i
                code = (load(s, 16 + 32 * (j // 8) + element % 32) >> (2 * (element // 32 % 4))) & 3
                store(x, element, scale * to_float(code) - shift)
        store_floats(x, BLOCK, out, first, count)


@kernel
def _unpack_q45_k(packed: Any, out: Any, s: Any) -> None:
    x = np.empty((BLOCK, LANES), np.float32)
    scales = np.empty((8, LANES), np.float32)
    mins = np.empty((8, LANES), np.float32)
    total = out.size // BLOCK
    size = packed.size // total if total else 0
    codes = size - 128
    for first in range(0, total, LANES):
        count = min(LANES, total - first)
        load_bytes(packed, first, count, size, s)
        d = _unpack_super(s, 0)
        dmin = _unpack_super(s, 2)
        _unpack_scales(s, scales, mins)
        for j in range(8):
            scale = d * load(scales, j)
            shift = dmin * load(mins, j)
            for i in range(32):
                code = (load(s, codes + 32 * (j // 2) + i) >> (4 * (j % 2))) & 15
                if codes > 16:
                    code = code | (((load(s, 16 + i) >> j) & 1) << 4)
                store(x, 32 * j + i, scale * to_float(code) - shift)
        store_floats(x, BLOCK, out, first, count)


def _codec(nbytes: int, shape: Shape, pack: Callable[..., None], unpack: Callable[..., None]) -> Codec:
    layout = Layout(BLOCK, nbytes, shape.groups)

    def scratch(weights: F32, importance: F32 | None) -> Scratch:
        return new_scratch(layout, shape)

    return codec(layout, Stages({"rtn": reference, "opt-rtn": better}, pack, unpack, scratch))


# The grids of candidates are the best measured on the matrices of a real model at about 100 M weights/s (AVX-512):
# Q5_K gains most from wide steps with fewer levels, Q2_K from shifted rounding.
_Q2_K = Shape(16, 16, 3, 15, 1, -0.5, 15, Grid(-1.2, 0.4, 7, -0.2, 0.4, 3, 1))
_Q4_K = Shape(8, 32, 15, 63, 2, -1.0, 20, Grid(-2.4, 0.4, 9, -0.2, 0.4, 3, 1))
_Q5_K = Shape(8, 32, 31, 63, 2, -0.5, 15, Grid(-3.6, 0.6, 8, -0.2, 0.3, 3, 1))

CODECS: dict[str, Codec] = {
    "Q2_K": _codec(84, _Q2_K, _pack_q2_k, _unpack_q2_k),
    "Q4_K": _codec(144, _Q4_K, _pack_q4_k, _unpack_q45_k),
    "Q5_K": _codec(176, _Q5_K, _pack_q5_k, _unpack_q45_k),
}
