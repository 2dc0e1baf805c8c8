"""What two models say of the same tokens, from their logits a slab of the vocabulary at a time.

Kullback-Leibler divergence, log-probability and most probable token of each position are kept as running sums, so that
neither the logits of the whole vocabulary nor the output matrix is ever in memory. Exponentials are taken in float32
and summed over a slab in float32; slabs are added up in float64: the divergence of equal models comes out below 1e-6.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Softmax:
    """Running log-sum-exp, largest logit and the target's logit of n positions of one model."""

    def __init__(self, targets: Tensor) -> None:
        """`targets`: int64 [n], the tokens that really come next."""
        n = len(targets)
        self.targets = targets
        self.largest = torch.full((n,), -torch.inf)
        self.total = torch.zeros(n, dtype=torch.float64)  # of exp(logit - largest)
        self.first = torch.zeros(n, dtype=torch.int64)  # the token with the largest logit
        self.chosen = torch.full((n,), torch.nan)  # the target's logit

    def add(self, at: slice, logits: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Take in the logits float32 [k, v] of tokens [start, start + v) for the positions `at`.

        Returns exp(logit - largest) [k, v] and the factor float64 [k] by which sums of earlier such terms shrink.
        """
        largest, token = (part.cpu() for part in logits.max(1))
        before = self.largest[at]
        grows = largest > before
        now = torch.where(grows | largest.isnan(), largest, before)
        weights = (logits - now.to(logits.device)[:, None]).exp_()
        shrink = (before.double() - now).exp_()
        self.total[at] = self.total[at] * shrink + weights.sum(1).cpu()
        self.first[at] = torch.where(grows, token + start, self.first[at])
        self.largest[at] = now
        local = self.targets[at] - start
        inside = (local >= 0) & (local < logits.shape[1])
        found = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None].to(logits.device))[:, 0].cpu()
        self.chosen[at] = torch.where(inside, found, self.chosen[at])
        return weights, shrink

    def log_total(self) -> Tensor:
        """log Σ exp(logit): float64 [n]."""
        return self.largest.double() + self.total.log()

    def log_probs(self) -> Tensor:
        """Of the targets: float64 [n]."""
        return self.chosen.double() - self.log_total()


class Divergence:
    """Running Σ p (log p - log q) of n positions, p being the reference's probabilities and q another model's."""

    def __init__(self, reference: Softmax, other: Softmax) -> None:
        self.reference, self.other = reference, other
        self.cross = torch.zeros(len(reference.targets), dtype=torch.float64)  # Σ exp(r - largest r) (r - o)

    def add(self, at: slice, weights: Tensor, shrink: Tensor, difference: Tensor) -> None:
        """`weights` and `shrink` as `reference.add` returns them; `difference` [k, v]: its logits less the other's."""
        self.cross[at] = self.cross[at] * shrink + (weights * difference).sum(1).cpu()

    def values(self) -> Tensor:
        """Float64 [n]; rounding may make a zero slightly negative."""
        return self.cross / self.reference.total - (self.reference.log_total() - self.other.log_total())
