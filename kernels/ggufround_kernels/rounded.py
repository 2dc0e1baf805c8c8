"""Rounded: what a search or the tuner hands to a packer, and nothing else passes between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Rounded(NamedTuple):
    """One matrix of rounded weights, exactly as it will be stored. `None` where the type has no such field.

    codes   uint8   [rows, n]              the stored code of every weight (Q4_0: q + 8; Q6_K: q + 32; IQ4: table index)
    d       float32 [rows, n // block]     block scale, already a float16 value
    dmin    float32 [rows, n // block]     Q4_1/Q5_1: the minimum m; K-quants: super-scale of the mins (fp16 values)
    scales  uint8   [rows, n // group]     each group's scale as stored (Q6_K: int8 bits; MXFP4: E8M0; NVFP4: UE4M3)
    mins    uint8   [rows, n // group]     stored code of each group's min
    """

    codes: NDArray[np.uint8]
    d: NDArray[np.float32] | None = None
    dmin: NDArray[np.float32] | None = None
    scales: NDArray[np.uint8] | None = None
    mins: NDArray[np.uint8] | None = None

    def part(self, rows: slice | NDArray[np.int64]) -> Rounded:
        """Some of the rows, in the order that `rows` gives."""
        d, dmin, scales, mins = (None if f is None else f[rows] for f in self[1:])
        return Rounded(self.codes[rows], d, dmin, scales, mins)  # type: ignore[arg-type]


def stacked(parts: Sequence[Rounded]) -> Rounded:
    """The rows of all parts, one below the other. The parts have the same fields and columns."""
    fields = [None if f[0] is None else np.concatenate(f) for f in zip(*parts, strict=True)]
    return Rounded(*fields)  # type: ignore[arg-type]
