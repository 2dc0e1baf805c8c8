"""From a search and a packer over blocks in their natural order to a Codec.

A matrix is taken in chunks of whole blocks; between search and pack a chunk's codes stay in a core's cache. The same
two kernels serve `quantize`, `search` and `pack`, so that all ways to the bytes agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import LANES, broadcast, load, load_blocks, sqrt, store
from ggufround_kernels._vector import load_at
from ggufround_kernels.codec import F32, U8, Codec, Search
from ggufround_kernels.rounded import Rounded

CHUNK_WEIGHTS = 131072
ONE = np.float32(1)


class Layout(NamedTuple):
    block: int  # weights of a block
    nbytes: int  # bytes of a block
    scales: int = 0  # stored scales of a block; 0: the block has one float16 `d`


class Kernels(NamedTuple):
    """Kernels of one type, over flat arrays of whole blocks: search (weights, importance or None, blocks in a row,
    number of the first block, codes, scales), pack (codes, scales, packed), unpack (packed, weights). `scales` is what
    the layout says: float32 d or uint8 scales."""

    searches: Mapping[Search, Callable[..., None]]
    pack: Callable[..., None]
    unpack: Callable[..., None]


def codec(layout: Layout, kernels: Kernels) -> Codec:
    """The functions of one type over its kernels."""
    block, nbytes, per_block = layout.block, layout.nbytes, max(layout.scales, 1)
    kind = np.uint8 if layout.scales else np.float32

    def chunks(weights: NDArray[Any]) -> Iterator[tuple[int, int]]:
        blocks, size = weights.size // block, CHUNK_WEIGHTS // block
        return ((first, min(first + size, blocks)) for first in range(0, blocks, size))

    def heeded(importance: F32 | None, search: Search) -> F32 | None:
        return importance if search == "opt-rtn" else None  # llama.cpp ignores it for all of these types

    def quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
        flat, packed, per_row = weights.reshape(-1), out.reshape(-1), weights.shape[-1] // block
        room = min(CHUNK_WEIGHTS // block, flat.size // block)
        codes, scales = np.empty(room * block, np.uint8), np.empty(room * per_block, kind)
        for first, last in chunks(weights):
            done = slice(0, (last - first) * block), slice(0, (last - first) * per_block)
            part = flat[first * block : last * block]
            kernels.searches[search](part, heeded(importance, search), per_row, first, codes[done[0]], scales[done[1]])
            kernels.pack(codes[done[0]], scales[done[1]], packed[first * nbytes : last * nbytes])

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        rows, n = weights.shape
        codes, scales = np.empty((rows, n), np.uint8), np.empty((rows, n // block * per_block), kind)
        flat = weights.reshape(-1), heeded(importance, search), n // block, 0, codes.reshape(-1), scales.reshape(-1)
        kernels.searches[search](*flat)
        return Rounded(codes, scales=scales) if layout.scales else Rounded(codes, d=scales)

    def pack(rounded: Rounded, out: U8) -> None:
        scales = rounded.scales if layout.scales else rounded.d
        assert scales is not None
        kernels.pack(np.ascontiguousarray(rounded.codes).reshape(-1), scales.reshape(-1), out.reshape(-1))

    def unpack(packed: U8, out: F32) -> None:
        kernels.unpack(packed.reshape(-1), out.reshape(-1))

    return Codec(block, nbytes, quantize, search, pack, unpack)


@kernel
def weigh(importance: Any, column: Any, x: Any, sigma2: Any) -> Any:
    """The weights of the errors of 32 neighbours from `column` of a row: importance * sqrt(sigma2 + x * x), or 1."""
    if importance is None:
        return broadcast(ONE)
    return load_at(importance, column) * sqrt(sigma2 + x * x)


@kernel
def load_group(
    weights: Any, importance: Any, per_row: Any, number: Any, first: Any, count: Any, size: Any, x: Any, w: Any
) -> None:
    """Blocks first .. first+count of `size` to the lanes of x [size, 32], and with importance the weights of their
    errors, importance * sqrt(mean(x**2) + x**2), to w. `number` is that of weights' first block."""
    load_blocks(weights, first, count, size, x)
    if importance is None:
        return
    for lane in range(LANES):
        column = (number + first + min(lane, count - 1)) % per_row * size
        for i in range(size):
            w[i, lane] = importance[column + i]
    squares = broadcast(np.float32(0))
    for i in range(size):
        v = load(x, i)
        squares = squares + v * v
    mean = squares / np.float32(size)
    for i in range(size):
        v = load(x, i)
        store(w, i, load(w, i) * sqrt(mean + v * v))


@kernel
def weight_at(w: Any, i: Any) -> Any:
    """The weights of 32 blocks' errors at element i, 1 without importance."""
    if w is None:
        return broadcast(ONE)
    return load(w, i)
