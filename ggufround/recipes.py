"""Recipe: how hard we work on the rounding. Rows of a table; which tensor gets which type is the Mix's question."""

from __future__ import annotations

from dataclasses import dataclass

from ggufround.errors import UsageError
from ggufround_kernels import Search


@dataclass(frozen=True)
class Recipe:
    name: str
    search: Search
    about: str


RECIPES = {
    r.name: r
    for r in (
        Recipe("rtn", "rtn", "llama.cpp's own search: the same bytes as llama-quantize"),
        Recipe("opt-rtn", "opt-rtn", "the best search for the same type, no calibration needed (default)"),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises UsageError for an unknown one."""
    found = RECIPES.get(name.lower())
    if found is None:
        raise UsageError(f"unknown recipe {name!r}; there are: {', '.join(RECIPES)}")
    return found
