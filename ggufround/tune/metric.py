"""What a difference at a block's output costs.

Some models have a token or two, mostly the first, whose hidden state is ten times as long as the others'. Every later
block reads it through a norm, so what counts is its error beside its length; but in a plain mean of squares its error
drowns all others, and tuning would bend the block to one token. Errors of such tokens are therefore measured in units
of their own length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LONG = 2.0  # times the median length: from here on a token's error counts beside its own length
FLOOR = 0.1  # of the mean curvature: what a direction weighs that no gradient was seen in


@dataclass(frozen=True, eq=False)
class Metric:
    """loss = mean of w(token) * ((output - target) @ factor)**2, w = min(1, (LONG * typical / length)**2).

    typical: the median length of the target's hidden states. factor, float32 [hidden, hidden] or None: a square root of
    the curvature of the model's own loss by the block's output.
    """

    typical: float
    factor: Tensor | None = None

    def loss(self, error: Tensor, target: Tensor) -> Tensor:
        """A scalar for error and target [b, s, hidden], float32."""
        length = torch.linalg.vector_norm(target, dim=-1, keepdim=True)
        scale = (LONG * self.typical / length.clamp_min(1e-30)).clamp_max(1.0)
        if self.factor is not None:
            error = error @ self.factor
        found: Tensor = (error * scale).pow(2).mean()
        return found


def square_root(curvature: Tensor) -> Tensor:
    """The factor for a curvature E[g g^T], float [hidden, hidden], g being gradients of the model's loss by the output
    of a block: scaled to a mean of 1 on the diagonal, with FLOOR added in all directions."""
    size = curvature.shape[0]
    scaled = curvature.double() / curvature.diagonal().double().mean().clamp_min(1e-30)
    factor: Tensor = torch.linalg.cholesky(
        scaled + FLOOR * torch.eye(size, dtype=torch.float64, device=curvature.device)
    )
    return factor.float()
