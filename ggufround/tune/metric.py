"""What a difference at a block's output costs: an estimate of what the model's own loss minds of it.

loss = mean over tokens of weight(position) * |error @ factor|^2 / hidden. Weight and factor come from the gradients of
the model's loss (`curvature`): how much positions differ, and how much directions.

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
    """weights: float32 [tokens], 1 on average. factor: float32 [hidden, hidden], a square root of the curvature, or
    None, where all directions count alike."""

    weights: Tensor
    factor: Tensor | None = None

    def loss(self, error: Tensor, first: int = 0) -> Tensor:
        """A scalar for an error [b, s, hidden], float32, of the positions from `first` on. The mean is over whole
        sequences, so that those of parts add up."""
        if self.factor is not None:
            error = error @ self.factor
        by_token = error.square().mean((0, 2))
        found: Tensor = (by_token * self.weights[first : first + len(by_token)]).sum() / len(self.weights)
        return found


def square_root(curvature: Tensor) -> Tensor:
    """The factor for a curvature sum g g^T, float32 [hidden, hidden]: scaled to a mean of 1 on the diagonal, with FLOOR
    added in all directions."""
    scaled = curvature.double() / curvature.diagonal().double().mean().clamp_min(1e-30)
    lifted = scaled + FLOOR * torch.eye(len(curvature), dtype=torch.float64, device=curvature.device)
    found: Tensor = torch.linalg.cholesky(lifted).float()
    return found
