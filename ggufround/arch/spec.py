"""Architectures as data: a Rule says where a tensor goes, a KV says where a number of the config goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint.spec import TensorRef

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one source tensor, and what is done to them on the way.

    `via` is pure and maps float32 [k * granule, columns] to the same shape (e.g. un-permuting the rows of whole
    heads, or adding one); rows are always handed over in whole granules, so that a slab can be cut anywhere between.
    """

    source: TensorRef
    first: int
    rows: int
    granule: int = 1
    via: Callable[[F32], F32] | None = None


@dataclass(frozen=True)
class Output:
    """One tensor of the GGUF file before it has a type: its pieces in order (an expert stack has one an expert), or
    `values` that the architecture computes. `shape` is row-major; the file states it reversed."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    values: F32 | None = None
    float32: bool = False  # llama.cpp's converter always stores it in F32
