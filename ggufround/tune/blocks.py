"""One block: sign-gradient descent on all of its latents against the full-precision block's output.

The input is what the quantised blocks before it give, the target what the full-precision chain gives after it, so each
block also makes up for what the ones before it got wrong (SignRound, arXiv 2309.05516). What is compared are the
weights as they will be stored.

Where sequences begin with different tokens, the first position is trained on many more of them than there are
sequences ("anchors"): many models make an attention sink of whatever token comes first, and few examples would not
tell how. The first position sees no other, so an anchor costs one token.

A few columns keep the codes of the search: those that meet most of what a matrix is multiplied with, such as the one
channel by which a block makes or unmakes an attention sink. There the search has put the weights where their error is
least, and to flip any code costs more than all the others can make good; but as only the sign of a gradient counts, a
step moves such a weight as far as any, whenever the little error that is left has the same sign for a while.

The step falls linearly from `rate` to 0. With the rate at 1 / iterations a latent can move half a code in all: enough
to round to the other side, not to leave its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ggufround.errors import InputError
from ggufround.recipes import Recipe
from ggufround.tune.activations import Activations, runs
from ggufround.tune.device import mixed
from ggufround.tune.latents import Latents, Rates
from ggufround.tune.metric import Metric
from ggufround.tune.segments import Segment
from ggufround_kernels import Rounded

F32 = NDArray[np.float32]
MICRO_TOKENS = 1024  # of a forward and backward pass: larger ones are no faster, and take the memory
ANCHORS = 64  # first tokens of an iteration
FIXED_SHARE = 0.03  # of a matrix's importance, in one column: more and its codes are left alone,
FIXED_TIMES = 16  # if it is also so many times the mean column's


@dataclass(frozen=True, eq=False)
class Unit:
    """A segment with its latents, whose weights are the parameter's rows, or a copy of them with their columns in the
    segment's order. `gradient` gives that of its weights after a backward pass. `fixed`: the columns that keep the
    search's codes."""

    segment: Segment
    latents: Latents
    parameter: nn.Parameter
    start: Rounded
    fixed: Tensor

    def gradient(self) -> Tensor:
        assert self.parameter.grad is not None, self.segment.parameter
        rows = self.parameter.grad.view(-1, self.parameter.shape[-1])[self.segment.first : self.segment.last]
        if self.segment.columns:
            rows = rows[:, list(self.segment.columns)]
        return rows.index_fill_(1, self.fixed, 0)

    def store(self) -> None:
        """The latents' weights into the parameter, where they are a copy."""
        if self.segment.columns:
            rows = self.parameter.data.view(-1, self.parameter.shape[-1])[self.segment.first : self.segment.last]
            rows[:, list(self.segment.columns)] = self.latents.weights


def fixed_columns(importance: F32 | None) -> Tensor:
    """int64: the columns that have more than their share of the importance, [columns]."""
    if importance is None:
        return torch.empty(0, dtype=torch.long)
    least = max(FIXED_SHARE, FIXED_TIMES / len(importance)) * float(importance.sum(dtype=np.float64))
    return torch.from_numpy(np.flatnonzero(importance > least))


@dataclass(frozen=True)
class Pair:
    """Hidden states [sequences, tokens, hidden] of the quantised chain before a block, and of the full-precision chain
    after it."""

    inputs: Activations
    targets: Activations


@dataclass(frozen=True)
class Scene:
    """What a block is tuned on: its forward pass, the two chains around it, and who takes part."""

    name: str  # for messages: "blk.3"
    forward: Callable[[Tensor], Tensor]
    sequences: Pair
    anchors: Pair | None  # sequences of one token each
    training: Sequence[int]  # sequence numbers
    held_out: Sequence[int]
    metric: Metric
    device: torch.device
    amp: bool
    seed: int


@dataclass(frozen=True)
class Losses:
    """Mean losses by the metric: of the first batch before its step, and of the last eighth of the batches; of what was
    held out. `kept` is False where the held-out loss rose and the untuned rounding stays."""

    before: float
    after: float
    held_out_before: float | None
    held_out_after: float | None
    kept: bool
    seconds: float = 0.0


def tune_block(scene: Scene, units: Sequence[Unit], recipe: Recipe, tick: Callable[[int], None]) -> Losses:
    """Tunes the units in place; `tick` is called with the number of iterations done.

    Raises InputError where a loss is not finite.
    """
    held = scene.held_out or scene.training[: recipe.batch]
    held_before = mean_loss(scene, held)
    parameters = list({id(unit.parameter): unit.parameter for unit in units}.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    losses: list[float] = []
    rate = recipe.rate or 1 / max(1, recipe.iterations)
    order = batches(scene.training, recipe.batch, scene.seed)
    firsts = batches(range(scene.anchors.inputs.shape[0]), ANCHORS, scene.seed + 1) if scene.anchors else None
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for iteration in range(recipe.iterations):
            losses.append(_descend(scene, next(order), next(firsts) if firsts else ()))
            left = 1 - iteration / recipe.iterations
            rates = Rates(rate * left, recipe.scale_rate * left, recipe.d_rate * left)

            def move(unit: Unit, rates: Rates = rates) -> None:
                if unit.parameter.grad is not None:  # None for an expert that no token of the batch was sent to
                    unit.latents.step(unit.gradient(), rates)
                    unit.latents.refresh()
                    unit.store()

            list(pool.map(move, units))
            for parameter in parameters:
                parameter.grad = None
            tick(iteration + 1)
    for parameter in parameters:
        parameter.requires_grad_(False)
    held_after = mean_loss(scene, held)
    share = max(1, len(losses) // 8)
    return Losses(
        before=losses[0] if losses else held_before,
        after=sum(losses[-share:]) / share if losses else held_after,
        held_out_before=held_before if scene.held_out else None,
        held_out_after=held_after if scene.held_out else None,
        kept=held_after <= held_before,
    )


def batches(numbers: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Batches without end: every sequence once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, len(numbers)):
            waiting += [numbers[k] for k in torch.randperm(len(numbers), generator=generator).tolist()]
        yield waiting[:size]
        waiting = waiting[size:]


def micro_batch(tokens: int) -> int:
    """Sequences of so many tokens that go through a block at a time."""
    return max(1, MICRO_TOKENS // tokens)


def mean_loss(scene: Scene, numbers: Sequence[int]) -> float:
    """Over the sequences, with the weights as they are."""
    total = 0.0
    with torch.no_grad():
        for run in runs(len(numbers), micro_batch(scene.sequences.inputs.shape[1])):
            part = [numbers[k] for k in run]
            total += float(scene.metric.loss(_error(scene, scene.sequences, part))[0]) * len(part)
    return total / len(numbers)


def _descend(scene: Scene, batch: Sequence[int], anchors: Sequence[int]) -> float:
    """Gradients of the mean loss over the batch, summed over its parts; returns the loss."""
    total = 0.0
    first = 1 if anchors else 0
    for run in runs(len(batch), micro_batch(scene.sequences.inputs.shape[1])):
        part = [batch[k] for k in run]
        total += _pull_back(scene, _error(scene, scene.sequences, part)[:, first:], first, len(part) / len(batch))
    if anchors and scene.anchors:
        total += _pull_back(scene, _error(scene, scene.anchors, anchors), 0, 1)
    if not total < float("inf"):
        raise InputError(
            f"{scene.name}: the loss became {total}; its weights or activations hold NaN or infinity, or a type is too "
            f"coarse for them. Finished blocks are kept; another --tensor-type for this block may help"
        )
    return total


def _pull_back(scene: Scene, error: Tensor, first: int, share: float) -> float:
    """Adds `share` of the gradient of the error's loss to the parameters'; returns as much of the loss."""
    loss, slope = scene.metric.loss(error, first)
    error.backward(slope * share)  # type: ignore[no-untyped-call]
    return float(loss) * share


def _error(scene: Scene, pair: Pair, numbers: Sequence[int]) -> Tensor:
    """What the block makes of the quantised chain less what it should be: float32 [b, s, hidden]."""
    with mixed(scene.device, scene.amp):
        out = scene.forward(pair.inputs.get(numbers).to(scene.device))
    return out.float() - pair.targets.get(numbers).to(scene.device)
