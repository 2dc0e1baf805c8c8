"""What a difference at a block's output costs: an estimate of what the model's own loss minds of it.

loss = mean over tokens of weight(position) * error^T curvature error / hidden. Weights and curvature come from the
gradients of the model's loss (`curvature`): how much positions differ, and how much directions.

Discounting, besides, the part of an error along an attention sink's own state, which a norm takes out, did not pay:
some blocks take the sink away again by subtracting what it should be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 0.1  # of the mean curvature: what a direction weighs that no gradient was seen in


@dataclass(frozen=True, eq=False)
class Metric:
    """weights: float32 [tokens], about 1 on average. curvature: float32 [hidden, hidden], symmetric, or None, where all
    directions count alike."""

    weights: Tensor
    curvature: Tensor | None = None

    def loss(self, error: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and its gradient for an error [b, s, hidden], float32, of the positions from `first` on.
        The mean is over whole sequences, so that those of parts add up. Not differentiable: the product that gives the
        loss gives the gradient too."""
        error = error.detach()
        pushed = error if self.curvature is None else error @ self.curvature
        count = len(error) * error.shape[2] * len(self.weights)
        weights = self.weights[first : first + error.shape[1], None] * (2 / count)
        slope = pushed * weights
        return (error * slope).sum() / 2, slope


def lifted(curvature: Tensor) -> Tensor:
    """For a curvature sum g g^T, float32 [hidden, hidden]: scaled to a mean of 1 on the diagonal, with FLOOR added in
    all directions."""
    scaled = curvature / curvature.diagonal().mean().clamp_min(1e-30)
    return scaled + FLOOR * torch.eye(len(curvature), device=curvature.device)
