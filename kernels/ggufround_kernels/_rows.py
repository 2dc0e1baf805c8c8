"""From a type's stages to its Codec, for types whose rounding is cheap: find scales, then encode, then pack, row-major.

A search here finds scales alone: one per group of weights, as it will be stored, and with it the factor that turns
weights into codes. Codes then follow element by element in plain loops, which LLVM vectorises; no transpose stands
between the weights and the memory's speed. Searches that sum take blocks on lanes (`_lanes.py`).

`quantize` is search then pack over chunks that stay in a core's cache, so that all ways to the bytes agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import LANES, broadcast, load, load_blocks, sqrt, store
from ggufround_kernels.codec import F32, U8, Codec, Search
from ggufround_kernels.rounded import Rounded

CHUNK_WEIGHTS = 65536  # float32 weights and their codes: 320 kB


class Layout(NamedTuple):
    block: int  # weights of a block
    nbytes: int  # bytes of a block
    group: int  # weights that share a scale
    scale_at: int  # offset of the scales in a block
    half: bool  # scales are float16 (Rounded.d); else bytes (Rounded.scales)


class Stages(NamedTuple):
    """Kernels of one type. Arrays are flat but for packed, [blocks, nbytes].

    searches: (weights, importance or None, first group's index in its row, scales out, factors out)
    encode: (weights, factors, codes out); pack: (codes, packed out), all but the scales
    unpack: (packed, scales, weights out), float16 scales widened to float32
    """

    searches: Mapping[Search, Callable[..., None]]
    encode: Callable[..., None]
    pack: Callable[..., None]
    unpack: Callable[..., None]


def codec(layout: Layout, stages: Stages) -> Codec:
    """The functions of one type over its stages."""
    block, group = layout.block, layout.group
    end = layout.scale_at + (2 if layout.half else 1) * block // group

    def chunks(size: int) -> Iterator[tuple[slice, slice, slice]]:
        """Slices of blocks, weights and groups."""
        step = max(CHUNK_WEIGHTS // block, 1)
        for first in range(0, size // block, step):
            last = min(first + step, size // block)
            weights = slice(first * block, last * block)
            yield slice(first, last), weights, slice(weights.start // group, weights.stop // group)

    def find(x: F32, importance: F32 | None, search: Search, first: int, codes: U8, scales: NDArray[Any]) -> None:
        start = first % (importance.size // group) if importance is not None else 0
        factors = np.empty(scales.size, np.float32)
        stages.searches[search](x, importance, start, scales, factors)
        stages.encode(x, factors, codes)

    def put(codes: U8, scales: NDArray[Any], packed: U8) -> None:
        with np.errstate(over="ignore"):  # llama.cpp stores an infinity where a scale exceeds float16
            stored = scales.astype(np.float16) if layout.half else scales
        packed[:, layout.scale_at : end] = stored.view(np.uint8).reshape(len(packed), -1)
        stages.pack(codes, packed)

    def quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
        x, packed = weights.reshape(-1), out.reshape(-1, layout.nbytes)
        codes = np.empty(min(x.size, max(CHUNK_WEIGHTS, block)), np.uint8)
        scales = np.empty(codes.size // group, np.float32 if layout.half else np.uint8)
        for b, w, g in chunks(x.size):
            size, groups = w.stop - w.start, g.stop - g.start
            find(x[w], importance, search, g.start, codes[:size], scales[:groups])
            put(codes[:size], scales[:groups], packed[b])

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        rows, n = weights.shape
        x, codes = weights.reshape(-1), np.empty((rows, n), np.uint8)
        scales = np.empty((rows, n // group), np.float32 if layout.half else np.uint8)
        for _, w, g in chunks(x.size):
            find(x[w], importance, search, g.start, codes.reshape(-1)[w], scales.reshape(-1)[g])
        if not layout.half:
            return Rounded(codes, scales=scales)
        with np.errstate(over="ignore"):
            return Rounded(codes, scales.astype(np.float16).astype(np.float32))

    def pack(rounded: Rounded, out: U8) -> None:
        scales = rounded.d if layout.half else rounded.scales
        assert scales is not None
        codes, scales, packed = rounded.codes.reshape(-1), scales.reshape(-1), out.reshape(-1, layout.nbytes)
        for b, w, g in chunks(codes.size):
            put(codes[w], scales[g], packed[b])

    def unpack(packed: U8, out: F32) -> None:
        blocks, x = packed.reshape(-1, layout.nbytes), out.reshape(-1)
        for b, w, _ in chunks(x.size):
            scales = np.ascontiguousarray(blocks[b, layout.scale_at : end]).reshape(-1)
            stages.unpack(blocks[b], scales.view(np.float16).astype(np.float32) if layout.half else scales, x[w])

    return Codec(block, layout.nbytes, quantize, search, pack, unpack)


# --- what searches share ---------------------------------------------------------------------------------------------


@kernel
def peak(bits: Any, first: Any, size: Any) -> Any:
    """The largest magnitude of `size` weights, as bits: for finite values their order is that of the floats."""
    largest = np.int32(0)
    for i in range(first, first + size):
        largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))
    return largest


@kernel
def load_weighted(weights: Any, importance: Any, start: Any, first: Any, count: Any, size: Any, x: Any, w: Any) -> None:
    """Groups first .. first+count onto lanes; with importance the weights importance * sqrt(mean(x**2) + x**2) to w."""
    load_blocks(weights, first, count, size, x)
    if importance is None:
        return
    per_row = importance.size // size
    for lane in range(LANES):
        begin = (start + first + min(lane, count - 1)) % per_row * size
        for i in range(size):
            w[i, lane] = importance[begin + i]
    total = broadcast(np.float32(0.0))
    for i in range(size):
        v = load(x, i)
        total = total + v * v
    mean = total / np.float32(size)
    for i in range(size):
        v = load(x, i)
        store(w, i, load(w, i) * sqrt(mean + v * v))
