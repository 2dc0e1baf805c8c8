"""What the tuner does to every weight in every iteration: from latents to weights, and from gradients to latents.

A latent is a code before it is rounded: a float32 in [-0.499, top + 0.499], `top` being the highest code. The weight is
(scale * values[round(latent)] - shift) * factor, `values` being the grid in ascending order, scale and shift those of
the weight's group, factor that of the whole matrix (NVFP4's global scale, else 1). Through the rounding the gradient
passes unchanged, so a sign step on the rounding offset is a sign step on the latent (SignRound, arXiv 2309.05516), and
the two passes over the weights below are all that tuning costs beside the block's own forward and backward pass.

Arrays are flat, C-contiguous float32 and begin with a group's first weight; `group` weights share a scale. Any run of
whole groups may be given to any thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import LANES, broadcast, larger, select, smaller
from ggufround_kernels._vector import lane_of, load_at, store_at, total, totals16

HALF = np.float32(0.5)
ZERO = np.float32(0)
EDGE = np.float32(0.499)  # how far a latent may lie beyond the outer codes
LANE = np.arange(LANES).astype(np.float32)


@kernel
def dequantise(latents: Any, scale: Any, shift: Any, group: Any, values: Any, factor: Any, out: Any) -> None:
    """out = (scale * values[round(latent)] - shift) * factor."""
    for g in range(scale.size):
        s, m = scale[g], shift[g]
        for i in range(g * group, (g + 1) * group):
            out[i] = (s * values[np.int32(latents[i] + HALF)] - m) * factor


@kernel
def step(
    latents: Any,
    gradient: Any,
    weights: Any,
    scale: Any,
    shift: Any,
    group: Any,
    top: Any,
    rate: Any,
    by_scale: Any,
    by_shift: Any,
) -> None:
    """One sign step of size `rate`, in codes, against the gradient by the weights, which `dequantise` gave; latents
    change in place. by_scale and by_shift get the loss's derivatives by each group's scale and shift; with a factor
    shifts must be zero, and by_shift lacks the factor. Where a scale is zero nothing moves."""
    edge = np.float32(top) + EDGE
    if group == LANES // 2 and scale.size % 2 == 0:
        for g in range(0, scale.size, 2):
            first = load_at(LANE, 0) < np.float32(LANES // 2)
            down = select(first, broadcast(signed(rate, scale[g])), broadcast(signed(rate, scale[g + 1])))
            slope, product = move(latents, gradient, weights, g * group, down, edge)
            along, sums = totals16(product), totals16(slope)
            for k in range(2):
                derive(scale, shift, g + k, lane_of(along, k * group), lane_of(sums, k * group), by_scale, by_shift)
    elif group % LANES == 0:
        for g in range(scale.size):
            down = broadcast(signed(rate, scale[g]))
            along, sums = broadcast(ZERO), broadcast(ZERO)
            for i in range(g * group, (g + 1) * group, LANES):
                slope, product = move(latents, gradient, weights, i, down, edge)
                along, sums = along + product, sums + slope
            derive(scale, shift, g, total(along), total(sums), by_scale, by_shift)
    else:
        for g in range(scale.size):
            down, along, sums = signed(rate, scale[g]), ZERO, ZERO
            for i in range(g * group, (g + 1) * group):
                slope = gradient[i]
                along, sums = along + slope * weights[i], sums + slope
                change = down if slope > ZERO else (-down if slope < ZERO else ZERO)
                latents[i] = min(max(latents[i] - change, -EDGE), edge)
            derive(scale, shift, g, along, sums, by_scale, by_shift)


@kernel
def signed(rate: Any, scale: Any) -> Any:
    """The step that lowers a weight: down the codes for a positive scale, up for a negative one."""
    return rate if scale > ZERO else (-rate if scale < ZERO else ZERO)


@kernel
def move(latents: Any, gradient: Any, weights: Any, i: Any, down: Any, edge: Any) -> Any:
    """The step for 32 weights; returns gradient and gradient times weight."""
    slope = load_at(gradient, i)
    change = select(slope > ZERO, down, select(slope < ZERO, -down, ZERO))
    store_at(latents, i, larger(smaller(load_at(latents, i) - change, edge), -EDGE))
    return slope, slope * load_at(weights, i)


@kernel
def derive(scale: Any, shift: Any, g: Any, along: Any, sums: Any, by_scale: Any, by_shift: Any) -> None:
    """From sum slope * weight and sum slope to the derivatives: weight = scale * value - shift."""
    by_scale[g] = (along + shift[g] * sums) / scale[g] if scale[g] != ZERO else ZERO
    by_shift[g] = -sums
