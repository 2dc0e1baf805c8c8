"""Grids: what the codes and scales of each type stand for, in the terms that the tuner changes.

All types are one formula, weight = scale * value - shift, with a value from an ascending table. They differ in how a
group's scale and shift come about: from a float16 `d` of the block alone, from `d` times a small stored scale, from a
stored power of two. A stored scale is again a place in an ascending table, so that the tuner treats scales as it treats
codes: a real number while it works, its nearest place when it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels import Rounded

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

Shift = Literal["none", "dmin * min", "-dmin", "d * min"]


@dataclass(frozen=True)
class Ladder:
    """Places in ascending order: what each stands for, and how it is stored."""

    values: F32
    codes: U8

    @property
    def top(self) -> int:
        """The number of the highest place."""
        return len(self.values) - 1

    def places(self, codes: U8) -> F32:
        """The places of stored codes. Codes that no place has (-0) go to the place of 0."""
        place_of = np.full(256, int(np.abs(self.values).argmin()), np.float32)
        place_of[self.codes] = np.arange(len(self.codes), dtype=np.float32)
        found: F32 = place_of[codes]
        return found

    def latents(self, values: F32) -> F32:
        """Places between places: where `values` lie on the ladder, at most 0.499 beyond its ends."""
        low, high = self.values[1] - self.values[0], self.values[-1] - self.values[-2]
        ends = [self.values[0] - low, *self.values, self.values[-1] + high]
        between = np.interp(values, ends, np.arange(-1, len(self.values) + 1))
        found: F32 = np.clip(between, -0.499, self.top + 0.499).astype(np.float32)
        return found


@dataclass(frozen=True)
class Grid:
    """weight = scale * values[code] - shift, scale and shift being those of the weight's group.

    scale  d of the block, scales[...] of the group, or their product; whichever there is
    shift  as `shift` says; `mins` is the ladder of its stored part
    """

    codes: Ladder
    group: int  # weights that share scale and shift
    block: int  # weights that share d and dmin
    d: bool = True  # whether blocks have a float16 d
    scales: Ladder | None = None
    mins: Ladder | None = None
    shift: Shift = "none"

    def __post_init__(self) -> None:
        assert self.block % self.group == 0, self
        assert self.d or self.scales is not None, self


def _whole(count: int, first: int = 0) -> Ladder:
    """`count` whole numbers from `first` on, stored from 0 on."""
    return Ladder(np.arange(first, first + count, dtype=np.float32), np.arange(count, dtype=np.uint8))


def _int8() -> Ladder:
    return Ladder(np.arange(-128, 128, dtype=np.float32), np.arange(-128, 128).astype(np.int8).view(np.uint8))


def _e2m1() -> Ladder:
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    return Ladder(np.concatenate([-sizes[:0:-1], sizes]), np.r_[15:8:-1, 0:8].astype(np.uint8))


def _e4m3(signed: bool) -> Ladder:
    """E4M3 without NaN: 448 at most."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    sizes = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10)).astype(np.float32)
    if not signed:
        return Ladder(sizes, code.astype(np.uint8))
    return Ladder(np.concatenate([-sizes[:0:-1], sizes]), np.r_[254:128:-1, 0:127].astype(np.uint8))


def _e8m0() -> Ladder:
    """Powers of two; the top is the largest whose sixfold is a float32."""
    code = np.arange(253)
    return Ladder((2.0 ** (code - 127.0)).astype(np.float32), code.astype(np.uint8))


_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_IQ4_LADDER = Ladder(_IQ4, np.arange(16, dtype=np.uint8))
_TRITS = _whole(3, -1)

GRIDS: dict[str, Grid] = {
    "Q4_0": Grid(_whole(16, -8), 32, 32),
    "Q5_0": Grid(_whole(32, -16), 32, 32),
    "Q8_0": Grid(Ladder(_int8().values[1:], _int8().codes[1:]), 32, 32),
    "Q4_1": Grid(_whole(16), 32, 32, shift="-dmin"),
    "Q5_1": Grid(_whole(32), 32, 32, shift="-dmin"),
    "Q2_K": Grid(_whole(4), 16, 256, scales=_whole(16), mins=_whole(16), shift="dmin * min"),
    "Q4_K": Grid(_whole(16), 32, 256, scales=_whole(64), mins=_whole(64), shift="dmin * min"),
    "Q5_K": Grid(_whole(32), 32, 256, scales=_whole(64), mins=_whole(64), shift="dmin * min"),
    "Q3_K": Grid(_whole(8, -4), 16, 256, scales=_whole(64, -32)),
    "Q6_K": Grid(_whole(64, -32), 16, 256, scales=_int8()),
    "IQ4_NL": Grid(_IQ4_LADDER, 32, 32),
    "IQ4_XS": Grid(_IQ4_LADDER, 32, 256, scales=_whole(64, -32)),
    "TQ1_0": Grid(_TRITS, 256, 256),
    "TQ2_0": Grid(_TRITS, 256, 256),
    "Q2_0": Grid(_whole(4, -1), 64, 64),
    "Q1_0": Grid(Ladder(np.array([-1, 1], np.float32), np.arange(2, dtype=np.uint8)), 128, 128),
    "MXFP4": Grid(_e2m1(), 32, 32, d=False, scales=_e8m0()),
    "NVFP4": Grid(_e2m1(), 16, 16, d=False, scales=_e4m3(signed=False)),
    "MXFP8": Grid(_e4m3(signed=True), 32, 32, d=False, scales=_e8m0()),
}


def integer_grid(bits: int, group: int, symmetric: bool) -> Grid:
    """The grid of INT types: signed float16 scale and 2**bits codes around 0, or scale and whole zero point."""
    if symmetric:
        return Grid(_whole(1 << bits, -(1 << (bits - 1))), group, group)
    return Grid(_whole(1 << bits), group, group, mins=_whole(1 << bits), shift="d * min")


def half(values: F32) -> F32:
    """As float16 stores it, never infinite."""
    found: F32 = np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
    return found


def scale_and_shift(grid: Grid, rounded: Rounded) -> tuple[F32, F32]:
    """float32 [rows, n // group] each: scale and shift of every group, as they are stored."""
    rows, n = rounded.codes.shape
    per, groups = grid.block // grid.group, n // grid.group
    scale = np.ones((rows, groups), np.float32)
    if grid.scales is not None:
        assert rounded.scales is not None
        scale = grid.scales.values[grid.scales.places(rounded.scales).astype(np.intp)]
    d = np.ones((rows, groups), np.float32)
    if grid.d:
        assert rounded.d is not None
        d = np.repeat(rounded.d, per, axis=1)
        scale = d * scale
    shift = np.zeros_like(scale)
    if grid.mins is not None:
        assert rounded.mins is not None
        shift = grid.mins.values[grid.mins.places(rounded.mins).astype(np.intp)]
    if grid.shift == "d * min":
        shift = d * shift
    elif grid.shift != "none":
        assert rounded.dmin is not None
        dmin = np.repeat(rounded.dmin, per, axis=1)
        shift = dmin * shift if grid.shift == "dmin * min" else -dmin
    return scale, shift


def dequantised(grid: Grid, rounded: Rounded) -> F32:
    """float32 [rows, n]: the weights that `rounded` stands for."""
    scale, shift = scale_and_shift(grid, rounded)
    rows, n = rounded.codes.shape
    values = grid.codes.values[grid.codes.places(rounded.codes).astype(np.intp)].reshape(rows, -1, grid.group)
    weights: F32 = (scale[:, :, None] * values - shift[:, :, None]).reshape(rows, n)
    return weights
