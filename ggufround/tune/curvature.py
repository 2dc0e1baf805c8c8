"""How much the model's own loss minds an error at each block's output, from one streamed pass in reverse.

Second-order theory says that a small error e of a hidden state costs the model e^T F e / 2 of its KL divergence, where
F = E[g g^T] over gradients g of its loss by that state, the labels being drawn from the model itself (the Fisher
matrix). It is taken apart into what a position weighs and which directions count. Early tokens are read by all later
ones; the "attention sinks" that many models keep at the first position have states a hundred times as long as any
other, and in a plain mean of squares their errors drown all others, though they matter no more. And a few directions of
the hidden state carry most of what the model says next.

The pass goes forward once, keeping the states between the blocks in a file where memory does not hold them, and back
once, block by block; no more than one block is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ggufround.errors import InputError
from ggufround.tune import device as devices
from ggufround.tune.activations import Activations, runs
from ggufround.tune.metric import Metric, lifted
from ggufround.tune.skeleton import Skeleton
from ggufround.tune.weights import ReadRows, ReadTensor

SLAB = 8192  # rows of the output matrix at a time
ReadSlab = Callable[[int, int], Tensor]  # rows [first, last) of the output matrix, float32


def edges(tokens: int) -> list[int]:
    """Where positions 0 .. tokens are cut into classes: 0, 1, 2-3, 4-7, ... ."""
    found = [0, 1]
    while found[-1] < tokens:
        found.append(min(2 * found[-1], tokens))
    return found


@dataclass(frozen=True, eq=False)
class Curvature:
    """weights: float32 [blocks, tokens], what each position weighs in each block's loss, about 1 on average.
    directions: [blocks, hidden, hidden], for each block the sum of g g^T over all tokens."""

    weights: NDArray[np.float32]
    directions: Activations

    def metric(self, i: int, device: torch.device) -> Metric:
        """Of block i."""
        directions = lifted(self.directions.get([i])[0]).to(device)
        return Metric(torch.from_numpy(self.weights[i]).to(device), directions)

    def close(self) -> None:
        self.directions.close()


def measure(
    skeleton: Skeleton,
    read: ReadTensor,
    read_rows: ReadRows,
    ids: NDArray[np.int32],
    *,
    amp: bool,
    seed: int,
    folder: Path | None,
    tick: Callable[[int], None],
) -> Curvature:
    """ids: int32 [sequences, tokens]. `folder`: where goes what should not lie in memory. Deterministic for a seed."""
    count, tokens = ids.shape
    shape = (count, tokens, skeleton.hidden)
    device = skeleton.device
    states = [Activations(shape, folder) for _ in range(skeleton.blocks + 1)]  # before each block and after the last
    slopes = Activations(shape, folder)
    squares = np.zeros((skeleton.blocks, tokens))
    directions = Activations((skeleton.blocks, skeleton.hidden, skeleton.hidden), folder)
    try:
        for run in runs(count, 1):
            states[0].put(run, skeleton.embed(torch.from_numpy(ids[run.start : run.stop].astype(np.int64)), read_rows))
        for i in range(skeleton.blocks):
            module = skeleton.load(i, read)
            for run in runs(count, 1):
                with torch.inference_mode(), devices.mixed(device, amp):
                    out = skeleton.run(i, module, states[i].get(run).to(device)).float()
                check_finite(out, i, amp)
                states[i + 1].put(run, out)
            skeleton.unload(i)
            tick(i + 1)
        skeleton.load_head(read)
        generator = torch.Generator(device).manual_seed(seed)
        for run in runs(count, 1):
            slopes.put(run, _head_slope(skeleton, read_rows, states[-1].get(run).to(device), amp, generator))
        for i in reversed(range(skeleton.blocks)):
            module = skeleton.load(i, read)
            outer = torch.zeros(skeleton.hidden, skeleton.hidden)
            for run in runs(count, 1):
                slope = slopes.get(run)
                check_finite(slope, i, amp)
                squares[i] += slope.double().square().sum((0, 2)).numpy()
                outer += slope[0].T @ slope[0]
                if i == 0:
                    continue
                hidden = states[i].get(run).to(device).requires_grad_(True)
                with torch.enable_grad(), devices.mixed(device, amp):
                    out = skeleton.run(i, module, hidden).float()
                (back,) = torch.autograd.grad(out, hidden, slope.to(device))
                slopes.put(run, back)
            directions.put([i], outer[None])
            skeleton.unload(i)
            states[i + 1].close()
            tick(2 * skeleton.blocks - i)
    finally:
        for activations in (*states, slopes):
            activations.close()
    return Curvature(_by_class(squares), directions)


def check_finite(values: Tensor, i: int, amp: bool) -> None:
    """Raises InputError where block i gives NaN or infinity."""
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"block {i} of the model gives NaN or infinity on the calibration text; its weights are damaged or need "
            f"more than {'bfloat16' if amp else 'float32'}. Finished blocks are kept"
        )


def _by_class(squares: NDArray[np.float64]) -> NDArray[np.float32]:
    """Averaged over positions of the same class and scaled to a mean of 1; the first position weighs at least that.

    The theory is one of small errors, and says that those of a sink hardly count, since norms undo its length. But a
    sink that is missed by half is no small error, and all other tokens look at it.
    """
    weights = np.empty_like(squares)
    cuts = edges(squares.shape[1])
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        weights[:, first:last] = squares[:, first:last].mean(1, keepdims=True)
    mean = weights.mean(1, keepdims=True)
    weights = np.where(mean > 0, weights / np.where(mean > 0, mean, 1), 1)
    weights[:, 0] = np.maximum(weights[:, 0], 1)
    return weights.astype(np.float32)


def _head_slope(
    skeleton: Skeleton, read_rows: ReadRows, hidden: Tensor, amp: bool, generator: torch.Generator
) -> Tensor:
    """The gradient by the last block's output [1, s, hidden] of the loss of labels drawn from the model itself.

    Slab by slab of the vocabulary: first the normaliser and, by the Gumbel trick, the labels; then the gradient.
    """
    name, vocab = skeleton.head_name(), skeleton.vocab
    slabs = [(first, min(first + SLAB, vocab)) for first in range(0, vocab, SLAB)]
    total = torch.full(hidden.shape[:2], -torch.inf, device=hidden.device)
    best = torch.full_like(total, -torch.inf)
    label = torch.zeros_like(total, dtype=torch.long)
    for first, last in slabs:
        rows = read_rows(name, np.arange(first, last)).to(hidden.device)
        with torch.no_grad(), devices.mixed(hidden.device, amp):
            logits = skeleton.logits(hidden, rows, first).float()
        total = torch.logaddexp(total, logits.logsumexp(-1))
        noise = torch.empty_like(logits).exponential_(generator=generator).log_().neg_()
        found, at = (logits + noise).max(-1)
        label = torch.where(found > best, at + first, label)
        best = torch.maximum(best, found)
    hidden = hidden.detach().requires_grad_(True)
    slope = torch.zeros_like(hidden)
    for first, last in slabs:
        rows = read_rows(name, np.arange(first, last)).to(hidden.device)
        with torch.enable_grad(), devices.mixed(hidden.device, amp):
            logits = skeleton.logits(hidden, rows, first).float()
        by_logits = (logits.detach() - total[..., None]).exp_()
        inside = (label >= first) & (label < last)
        by_logits.scatter_add_(-1, (label - first).clamp(0, last - first - 1)[..., None], -inside[..., None].float())
        (part,) = torch.autograd.grad(logits, hidden, by_logits)
        slope += part
    return slope
