"""QuantType: how the bits of one block lie. A frozen value whose functions come from `ggufround_kernels`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufround.quants.grids import Grid
from ggufround_kernels import GroupCodec, Rounded, Search

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class QuantType:
    """One tensor type, of ggml (`id` is its number there) or of a safetensors checkpoint (`id` is -1).

    Weights go in as float32 [rows, n], n a multiple of `block`; importance is float32 [n] (the mean of squares of
    each input channel) or None; packed rows are uint8 [rows, n // block * nbytes]. Rows are independent.
    A type with a `codec` is packed as records, which each format arranges in its own way.
    """

    name: str  # llama.cpp's spelling: "Q4_K"
    id: int  # enum ggml_type
    block: int  # weights in a block
    nbytes: int  # bytes of a block
    kind: Literal["float", "quant"]
    quantize: Callable[[F32, F32 | None, Search, U8], None]  # (weights, importance, search, out): search, then pack
    unpack: Callable[[U8, F32], None]  # (packed, out)
    search: Callable[[F32, F32 | None, Search], Rounded] | None = None  # None for kind "float"
    pack: Callable[[Rounded, U8], None] | None = None
    uses_importance: bool = False
    grid: Grid | None = field(default=None, compare=False)  # what the tuner rounds to; None: it is not tuned
    codec: GroupCodec | None = field(default=None, compare=False)
    granule: int = 1  # rows that are rounded or packed together: a slab holds a multiple of them, or all that is left

    def row_bytes(self, n: int) -> int:
        """Bytes of a packed row of `n` weights; `n` must be a multiple of `block`."""
        return n // self.block * self.nbytes
