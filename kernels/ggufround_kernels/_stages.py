"""From a type's stages to its Codec: search a chunk of blocks onto lanes, then pack the chunk or hand it out.

`quantize` is search then pack, `search` is search then `release` to a Rounded, `pack` is `hold` then pack: the same
kernels in every combination, so that all ways to the bytes agree. Between two stages a chunk lies in `Held`, by lanes
and small enough for the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import LANES, aligned, load_blocks, load_bytes, store_blocks, store_floats
from ggufround_kernels.codec import F32, U8, Codec, Search
from ggufround_kernels.rounded import Rounded

CHUNK_WEIGHTS = 131072  # between two stages: their codes stay in a core's cache


class Held(NamedTuple):
    """A chunk on its way from a search to a packer: for every lane group so many rows of LANES values."""

    codes: NDArray[np.uint8]  # block rows a group
    d: NDArray[np.float32]  # 1 row
    dmin: NDArray[np.float32]  # 1 row
    scales: NDArray[np.uint8]  # one row a sub-block; none for types without sub-blocks
    mins: NDArray[np.uint8]  # likewise


class Layout(NamedTuple):
    block: int  # weights of a block
    nbytes: int  # bytes of a block
    groups: int  # sub-blocks of a block that have a stored scale and min
    mins: bool = True  # False where value = scale * code, with no minimum anywhere


class Stages(NamedTuple):
    """Kernels of one type. Search: (weights, importance, first block, count, held, scratch); pack: (held, first block,
    count, packed, scratch [nbytes, LANES] uint8); unpack: (packed, weights, the same scratch). Arrays are flat."""

    searches: Mapping[Search, Callable[..., None]]
    pack: Callable[..., None]
    unpack: Callable[..., None]
    scratch: Callable[[F32, F32 | None], Any]  # what a search needs for these weights and this importance


def codec(layout: Layout, stages: Stages) -> Codec:
    """The functions of one type over its stages."""

    def quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
        held, scratch, packed = (
            new_held(layout, lane_groups(layout)),
            stages.scratch(weights, importance),
            _bytes(layout),
        )
        for first, count in _chunks(layout, weights):
            stages.searches[search](weights.reshape(-1), importance, first, count, held, scratch)
            stages.pack(held, first, count, out.reshape(-1), packed)

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        held, scratch, rounded = (
            new_held(layout, lane_groups(layout)),
            stages.scratch(weights, importance),
            _rounded(layout, weights.shape),
        )
        for first, count in _chunks(layout, weights):
            stages.searches[search](weights.reshape(-1), importance, first, count, held, scratch)
            _release(held, first, count, *_flat(rounded))
        return rounded

    def pack(rounded: Rounded, out: U8) -> None:
        held, packed = new_held(layout, lane_groups(layout)), _bytes(layout)
        for first, count in _chunks(layout, rounded.codes):
            _hold(held, first, count, *_flat(rounded))
            stages.pack(held, first, count, out.reshape(-1), packed)

    def unpack(packed: U8, out: F32) -> None:
        stages.unpack(packed.reshape(-1), out.reshape(-1), _bytes(layout))

    return Codec(layout.block, layout.nbytes, quantize, search, pack, unpack)


def _chunks(layout: Layout, weights: NDArray[Any]) -> Iterator[tuple[int, int]]:
    blocks, size = weights.size // layout.block, CHUNK_WEIGHTS // layout.block
    return ((first, min(size, blocks - first)) for first in range(0, blocks, size))


def lane_groups(layout: Layout) -> int:
    """Lane groups of a chunk."""
    return CHUNK_WEIGHTS // layout.block // LANES


def suspect_runs(suspects: NDArray[np.uint8], count: int) -> list[tuple[int, int]]:
    """(first, number) of neighbouring lane groups that each hold a marked block, of a chunk of `count` blocks.

    A run goes through kernels in one call: calls one by one would have threads wait for each other's interpreter.
    """
    groups = np.unique(suspects.reshape(-1)[:count].nonzero()[0] // LANES)
    cuts = np.flatnonzero(np.diff(groups) > 1) + 1
    return [(int(run[0]), len(run)) for run in np.split(groups, cuts) if len(run)]


def new_held(layout: Layout, count: int) -> Held:
    """Room for `count` lane groups."""
    return Held(
        codes=aligned((count * layout.block, LANES), np.uint8),
        d=aligned((count, LANES), np.float32),
        dmin=aligned((count, LANES), np.float32),
        scales=aligned((count * layout.groups, LANES), np.uint8),
        mins=aligned((count * layout.groups, LANES), np.uint8),
    )


def _bytes(layout: Layout) -> NDArray[np.uint8]:
    return aligned((layout.nbytes, LANES), np.uint8)


def _rounded(layout: Layout, shape: tuple[int, ...]) -> Rounded:
    rows, n = shape
    blocks = n // layout.block
    grouped = layout.groups > 0
    return Rounded(
        codes=np.empty((rows, n), np.uint8),
        d=np.empty((rows, blocks), np.float32),
        dmin=np.empty((rows, blocks), np.float32) if layout.mins else None,
        scales=np.empty((rows, blocks * layout.groups), np.uint8) if grouped else None,
        mins=np.empty((rows, blocks * layout.groups), np.uint8) if grouped and layout.mins else None,
    )


def _flat(rounded: Rounded) -> list[NDArray[Any]]:
    absent = np.empty(0, np.uint8)
    return [absent if field is None else np.ascontiguousarray(field).reshape(-1) for field in rounded]


@kernel
def _release(held: Any, first: Any, count: Any, codes: Any, d: Any, dmin: Any, scales: Any, mins: Any) -> None:
    """Held lanes to the flat fields of a Rounded, from block `first`."""
    block = held.codes.shape[0] // held.d.shape[0]
    groups = held.scales.shape[0] // held.d.shape[0]
    for g in range((count + LANES - 1) // LANES):
        begin = first + g * LANES
        lanes = min(LANES, first + count - begin)
        store_blocks(held.codes[g * block : (g + 1) * block], block, codes, begin, lanes)
        store_blocks(held.scales[g * groups : (g + 1) * groups], groups, scales, begin, lanes)
        store_floats(held.d[g : g + 1], 1, d, begin, lanes)
        if mins.size:
            store_blocks(held.mins[g * groups : (g + 1) * groups], groups, mins, begin, lanes)
        if dmin.size:
            store_floats(held.dmin[g : g + 1], 1, dmin, begin, lanes)


@kernel
def _hold(held: Any, first: Any, count: Any, codes: Any, d: Any, dmin: Any, scales: Any, mins: Any) -> None:
    """The inverse of _release."""
    block = held.codes.shape[0] // held.d.shape[0]
    groups = held.scales.shape[0] // held.d.shape[0]
    for g in range((count + LANES - 1) // LANES):
        begin = first + g * LANES
        lanes = min(LANES, first + count - begin)
        load_bytes(codes, begin, lanes, block, held.codes[g * block : (g + 1) * block])
        load_bytes(scales, begin, lanes, groups, held.scales[g * groups : (g + 1) * groups])
        load_blocks(d, begin, lanes, 1, held.d[g : g + 1])
        if mins.size:
            load_bytes(mins, begin, lanes, groups, held.mins[g * groups : (g + 1) * groups])
        if dmin.size:
            load_blocks(dmin, begin, lanes, 1, held.dmin[g : g + 1])
