"""Codec: the functions of one quant type. Each kernel module ends in rows of this kind, keyed by the type's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels.rounded import Rounded

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Search = Literal["rtn", "opt-rtn"]  # llama.cpp's bytes, or our best search for the same type


class Codec(NamedTuple):
    """weights: C-contiguous float32 [rows, n], n a multiple of `block`, finite; importance: float32 [n] or None (shared
    by all rows); packed: C-contiguous uint8 [rows, n // block * nbytes]. Nothing is modified but `out`. Thread-safe;
    the GIL is released. `quantize` is `pack(search(...))` without the detour through memory; the bytes are the same."""

    block: int
    nbytes: int
    quantize: Callable[[F32, F32 | None, Search, U8], None]  # (weights, importance, search, out packed)
    search: Callable[[F32, F32 | None, Search], Rounded]
    pack: Callable[[Rounded, U8], None]  # (rounded, out packed)
    unpack: Callable[[U8, F32], None]  # (packed, out weights)
    uses_importance: bool = True
