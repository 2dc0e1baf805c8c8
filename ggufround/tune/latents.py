"""A matrix while it is tuned: codes and scales as real numbers, and the weights that they would be stored as.

The weights are computed from what the file will hold (codes rounded, scales rounded to their ladder, float16 d), so
that the loss that is measured is the loss of the file. The gradient passes through every rounding unchanged, and only
its sign is used (SignRound, arXiv 2309.05516).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ggufround.quants.grids import F32, Grid, Ladder, scale_and_shift
from ggufround_kernels import Rounded
from ggufround_kernels.tuning import EDGE, HALF, dequantise, step

HALF_MAX = 65504.0
SLAB = 1 << 18  # weights that numpy works on at once: its intermediate arrays are several times as large


@dataclass(frozen=True)
class Rates:
    """How far one step goes: codes, stored scales and mins in units of their ladder, d and dmin in parts of
    themselves."""

    codes: float
    scales: float = 0.0
    d: float = 0.0


class Latents:
    """`weights`, float32 [rows, n] and contiguous on its device, is kept at what the latents would be stored as."""

    def __init__(self, grid: Grid, weights: Tensor, start: Rounded, factor: float = 1.0) -> None:
        """From the search's result `start`: `weights` are the true ones and are overwritten. `factor` multiplies all
        (NVFP4's global scale): the search was given weights / factor."""
        assert factor == 1.0 or grid.shift == "none", grid
        self.grid, self.weights, self.factor = grid, weights, factor
        device = weights.device

        def tensor(values: F32 | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(np.array(values, np.float32)).to(device)

        self.d, self.dmin = tensor(start.d), tensor(start.dmin)
        self.scales = tensor(grid.scales.places(start.scales)) if grid.scales and start.scales is not None else None
        self.mins = tensor(grid.mins.places(start.mins)) if grid.mins and start.mins is not None else None
        self._values = torch.from_numpy(grid.codes.values).to(device)
        self._tables = {
            id(ladder): torch.from_numpy(ladder.values).to(device) for ladder in (grid.scales, grid.mins) if ladder
        }
        self._refresh_scales()
        self.codes = self._first_codes(start, weights)
        self._by_scale, self._by_shift = torch.empty_like(self.scale), torch.empty_like(self.scale)
        self.refresh()

    def _first_codes(self, start: Rounded, weights: Tensor) -> Tensor:
        """Where the true weights lie between the codes; the search's codes where a scale is zero, or where its choice
        is another than the nearest code."""
        grid = self.grid
        scale, shift = (x[:, :, None] for x in scale_and_shift(grid, start))
        true = weights.cpu().numpy()
        out = np.empty(true.shape, np.float32)
        for part in _slabs(*true.shape):
            w = (true[part] / np.float32(self.factor)).reshape(-1, scale.shape[1], grid.group)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                values = (w + shift[part]) / scale[part]
            latents = grid.codes.latents(np.where(np.isfinite(values), values, 0))
            chosen = grid.codes.places(start.codes[part]).reshape(w.shape)
            apart = np.floor(latents + HALF) != chosen
            latents = np.where(apart, np.clip(latents, chosen - EDGE, chosen + EDGE), latents)
            out[part] = np.where(scale[part] == 0, chosen, latents).reshape(out[part].shape)
        return torch.from_numpy(out).to(weights.device)

    def _looked_up(self, ladder: Ladder, places: Tensor) -> Tensor:
        return self._tables[id(ladder)][torch.clamp(places + 0.5, 0, ladder.top + 0.5).long()]

    def _refresh_scales(self) -> None:
        """scale and shift [rows, groups] as stored, without the factor; `_unit` is what a stored scale of 1 would be
        worth."""
        grid = self.grid
        per = grid.block // grid.group
        parts = self.scales if self.scales is not None else self.d
        assert parts is not None
        groups = parts.shape[1] * (1 if self.scales is not None else per)
        unit = torch.ones(parts.shape[0], groups, device=parts.device)
        if self.d is not None:
            unit = self.d.half().float().repeat_interleave(per, 1)
        self._unit = unit
        scale = unit if self.scales is None else unit * self._looked_up(_some(grid.scales), self.scales)
        shift = torch.zeros_like(scale) if self.mins is None else self._looked_up(_some(grid.mins), self.mins)
        if grid.shift == "d * min":
            shift = unit * shift
        elif grid.shift != "none":
            assert self.dmin is not None
            dmin = self.dmin.half().float().repeat_interleave(per, 1)
            shift = dmin * shift if grid.shift == "dmin * min" else -dmin
        self.scale, self.shift = scale.contiguous(), shift.contiguous()

    def refresh(self) -> None:
        """`weights` from the latents as they are now."""
        _KERNELS[self.weights.device.type == "cpu"].dequantise(self)

    def step(self, gradient: Tensor, rates: Rates) -> None:
        """A sign step of everything that has a rate, against the gradient by the weights, [rows, n] on the device."""
        _KERNELS[self.weights.device.type == "cpu"].step(self, gradient, rates.codes)
        if rates.scales or rates.d:
            self._step_scales(rates)
            self._refresh_scales()

    def _step_scales(self, rates: Rates) -> None:
        grid, per = self.grid, self.grid.block // self.grid.group
        by_scale, by_shift = self._by_scale, self._by_shift
        shares_d = grid.shift == "d * min"

        def blocks(values: Tensor) -> Tensor:
            return values.reshape(values.shape[0], -1, per).sum(-1)

        if rates.d and self.d is not None:
            slope = by_scale if self.scales is None else by_scale * self._looked_up(_some(grid.scales), self.scales)
            if shares_d:
                slope = slope + by_shift * self._looked_up(_some(grid.mins), _some(self.mins))
            self.d.mul_(1 - rates.d * torch.sign(blocks(slope) * self.d)).clamp_(-HALF_MAX, HALF_MAX)
        if rates.d and self.dmin is not None:
            slope = -by_shift if self.mins is None else by_shift * self._looked_up(_some(grid.mins), self.mins)
            self.dmin.mul_(1 - rates.d * torch.sign(blocks(slope) * self.dmin)).clamp_(-HALF_MAX, HALF_MAX)
        if rates.scales and self.scales is not None:
            _walk(self.scales, by_scale * self._unit, rates.scales, _some(grid.scales))
        if rates.scales and self.mins is not None:
            unit = self._unit if shares_d else _some(self.dmin).repeat_interleave(per, 1)
            _walk(self.mins, by_shift * unit, rates.scales, _some(grid.mins))

    def rounded(self) -> Rounded:
        """What is stored, numpy, rows in the order of `weights`."""
        grid = self.grid

        def stored(ladder: Ladder, places: Tensor) -> NDArray[np.uint8]:
            given = places.cpu().numpy()
            out = np.empty(given.shape, np.uint8)
            for part in _slabs(*given.shape):
                out[part] = ladder.codes[np.clip(given[part] + HALF, 0, ladder.top + 0.5).astype(np.intp)]
            return out

        def halves(values: Tensor | None) -> F32 | None:
            return None if values is None else values.half().float().cpu().numpy()

        return Rounded(
            codes=stored(grid.codes, self.codes),
            d=halves(self.d),
            dmin=halves(self.dmin),
            scales=None if self.scales is None else stored(_some(grid.scales), self.scales),
            mins=None if self.mins is None else stored(_some(grid.mins), self.mins),
        )


def _slabs(rows: int, columns: int) -> Iterator[slice]:
    """Rows in runs of about SLAB weights."""
    size = max(1, SLAB // columns)
    for first in range(0, rows, size):
        yield slice(first, first + size)


T = TypeVar("T")


def _some(value: T | None) -> T:
    assert value is not None
    return value


def _walk(places: Tensor, slope: Tensor, rate: float, ladder: Ladder) -> None:
    places.sub_(rate * torch.sign(slope)).clamp_(-float(EDGE), ladder.top + float(EDGE))


@dataclass(frozen=True)
class _Kernels:
    dequantise: Callable[[Latents], None]
    step: Callable[[Latents, Tensor, float], None]


def _dequantise_cpu(x: Latents) -> None:
    dequantise(
        x.codes.view(-1).numpy(), x.scale.view(-1).numpy(), x.shift.view(-1).numpy(), x.grid.group,
        x.grid.codes.values, np.float32(x.factor), x.weights.view(-1).numpy(),
    )  # fmt: skip


def _step_cpu(x: Latents, gradient: Tensor, rate: float) -> None:
    step(
        x.codes.view(-1).numpy(), gradient.contiguous().view(-1).numpy(), x.weights.view(-1).numpy(),
        x.scale.view(-1).numpy(), x.shift.view(-1).numpy(), x.grid.group, x.grid.codes.top, np.float32(rate),
        x._by_scale.view(-1).numpy(), x._by_shift.view(-1).numpy(),
    )  # fmt: skip


def _grouped(x: Latents, values: Tensor) -> Tensor:
    return values.view(values.shape[0], -1, x.grid.group)


def _dequantise_torch(x: Latents) -> None:
    values = x._values[(x.codes + 0.5).long()]
    out = _grouped(x, values) * x.scale[:, :, None] - x.shift[:, :, None]
    x.weights.copy_(out.view_as(x.weights))
    if x.factor != 1.0:
        x.weights.mul_(x.factor)


def _step_torch(x: Latents, gradient: Tensor, rate: float) -> None:
    slope = _grouped(x, gradient)
    along, sums = (slope * _grouped(x, x.weights)).sum(-1), slope.sum(-1)
    x._by_scale.copy_(torch.where(x.scale == 0, 0.0, (along + x.shift * sums) / x.scale))
    x._by_shift.copy_(-sums)
    down = rate * torch.sign(slope) * torch.sign(x.scale)[:, :, None]
    x.codes.sub_(down.view_as(x.codes)).clamp_(-float(EDGE), x.grid.codes.top + float(EDGE))


_KERNELS = {True: _Kernels(_dequantise_cpu, _step_cpu), False: _Kernels(_dequantise_torch, _step_torch)}
