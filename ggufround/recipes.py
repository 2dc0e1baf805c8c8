"""Recipe: how hard we work on the rounding. Rows of a table; which tensor gets which type is the Mix's question."""

from __future__ import annotations

from dataclasses import dataclass

from ggufround.errors import UsageError
from ggufround_kernels import Search


@dataclass(frozen=True)
class Recipe:
    """`search` gives the rounding, or what tuning starts from; without iterations there is no tuning.

    samples, seqlen: calibration sequences and their tokens. batch: sequences of an iteration. The rates are those of
    the first step, which falls linearly to 0: in codes (None: 1 / iterations), in stored scales, in parts of d.
    """

    name: str
    search: Search
    about: str
    iterations: int = 0
    samples: int = 128
    seqlen: int = 2048
    batch: int = 8
    rate: float | None = None
    scale_rate: float = 0.0
    d_rate: float = 0.0
    curvature: int = 0  # sequences on which it is measured what the model's loss minds; 0: plain squares


RECIPES = {
    r.name: r
    for r in (
        Recipe("rtn", "rtn", "llama.cpp's own search: the same bytes as llama-quantize"),
        Recipe("opt-rtn", "opt-rtn", "the best search for the same type, no calibration needed (default)"),
        Recipe("light", "opt-rtn", "tuned by gradients, 50 iterations a block", iterations=50, curvature=8),
        Recipe("base", "opt-rtn", "tuned by gradients, 200 iterations a block", iterations=200, curvature=16),
        Recipe(
            "best", "opt-rtn", "tuned by gradients, 1000 iterations a block, four times the samples",
            iterations=1000, samples=512, curvature=32,
        ),
    )
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError for an unknown one."""
    found = RECIPES.get(name.lower())
    if found is None:
        raise UsageError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return found
