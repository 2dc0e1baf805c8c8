"""Scheme: the Mix of safetensors checkpoints. One type for all linear layers of the blocks, with AutoRound's names.

W4A16 is weights of 4 bits, activations of 16; groups are 128 weights unless the name says otherwise (G64). MXFP4, MXFP8
and NVFP4 have groups of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ggufround.errors import UsageError
from ggufround.quants.spec import QuantType
from ggufround.quants.types import FLOAT_TYPES, integer_type

BITS = (2, 3, 4, 5, 6, 8)
GROUP = 128  # of integers, where nothing else is said
INTEGERS = re.compile(r"W(\d)A16(?:G(\d+))?(-?ASYM)?", re.IGNORECASE)
WHOLE = -1  # a group is a row


@dataclass(frozen=True)
class Scheme:
    """The type of a layer. `group` is WHOLE where a row shares one scale; `data` is AutoRound's data_type."""

    data: Literal["int", "mx_fp", "nv_fp"]
    bits: int
    group: int
    symmetric: bool = True

    @property
    def name(self) -> str:
        if self.data != "int":
            return {"mx_fp": f"MXFP{self.bits}", "nv_fp": f"NVFP{self.bits}"}[self.data]
        group = "" if self.group == GROUP else f"G{self.group}" if self.group > 0 else "-channel"
        return f"W{self.bits}A16{group}{'' if self.symmetric else '-asym'}"

    def type_for(self, columns: int) -> QuantType:
        """The type of a matrix with rows of so many weights."""
        if self.data == "int":
            return integer_type(self.bits, columns if self.group == WHOLE else self.group, self.symmetric)
        return FLOAT_TYPES[self.name]


@dataclass(frozen=True)
class Layers:
    """Which layer of a model gets which scheme, by the names of their modules, in the order of the checkpoint."""

    scheme: Scheme  # of most
    quantised: Mapping[str, Scheme]
    kept: tuple[str, ...]  # linear, but kept in 16 bits
    blocks: str  # what the names of all blocks begin with: "model.layers"
    head: str = "lm_head"

    @property
    def others(self) -> dict[str, Scheme]:
        """The layers in another scheme than most."""
        return {name: scheme for name, scheme in self.quantised.items() if scheme != self.scheme}


FLOATS = {s.name: s for s in (Scheme("mx_fp", 4, 32), Scheme("mx_fp", 8, 32), Scheme("nv_fp", 4, 16))}
KNOWN = (*(f"W{bits}A16" for bits in BITS), "W2A16G32", "W2A16G64", *FLOATS)


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises UsageError for an unknown one."""
    if name.upper() in FLOATS:
        return FLOATS[name.upper()]
    found = INTEGERS.fullmatch(name)
    if found is None or int(found[1]) not in BITS:
        raise UsageError(
            f"unknown scheme {name!r}; there are: {', '.join(KNOWN)}; integers also with another group (W4A16G32) or "
            f"asymmetric (W4A16-asym)"
        )
    return checked(Scheme("int", int(found[1]), int(found[2] or GROUP), not found[3]))


def changed(given: Scheme, bits: int | None = None, group: int | None = None, symmetric: bool | None = None) -> Scheme:
    """`given` with what is not None in its place. Raises UsageError where it cannot be changed, or not to that."""
    if bits is group is symmetric is None:
        return given
    if given.data != "int":
        raise UsageError(f"{given.name} has bits and groups of its own; leave --bits, --group-size, --sym/--asym out")
    return checked(
        replace(
            given,
            bits=given.bits if bits is None else bits,
            group=given.group if group is None else group,
            symmetric=given.symmetric if symmetric is None else symmetric,
        )
    )


def checked(given: Scheme) -> Scheme:
    """The scheme, if there are such integers. Raises UsageError."""
    if given.bits not in BITS:
        raise UsageError(f"{given.bits} bits; can be {', '.join(map(str, BITS))}")
    if given.group != WHOLE and (given.group < 8 or given.group % 8):
        raise UsageError(f"groups of {given.group} weights; must be a multiple of 8, or {WHOLE} for whole rows")
    return given
