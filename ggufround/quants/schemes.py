"""Scheme: the Mix of safetensors checkpoints. One type for all linear layers of the blocks, with AutoRound's names.

W4A16 is weights of 4 bits, activations of 16; groups are 128 weights unless the name says otherwise (G64). The others
have groups of their own, and most of them round activations too (MXFP4A16 and NVFP4A16 do not).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ggufround.errors import UsageError
from ggufround.quants.spec import QuantType
from ggufround.quants.types import FLOAT_TYPES, fp8_type, integer_type

ACTIVATIONS = {  # what the runtime does to activations
    "mx_fp": {"act_data_type": "mx_fp", "act_dynamic": True, "act_sym": True},
    "nv_fp": {"act_data_type": "nv_fp4_with_static_gs", "act_dynamic": True, "act_sym": True},
    "fp": {"act_data_type": "fp", "act_dynamic": False, "act_sym": True, "activation_scheme": "static", "fmt": "e4m3"},
}
BITS = (2, 3, 4, 5, 6, 8)
GROUP = 128  # of integers, where nothing else is said
INTEGERS = re.compile(r"W(\d)A16(?:G(\d+))?(-?ASYM)?", re.IGNORECASE)
WHOLE = -1  # a group is a row


@dataclass(frozen=True)
class Scheme:
    """The type of a layer. `group` is WHOLE where a row shares one scale; `data` is AutoRound's data_type."""

    data: Literal["int", "mx_fp", "nv_fp", "fp"]
    bits: int
    group: int
    symmetric: bool = True
    tall: int = 1  # rows that share a scale
    # How the runtime rounds activations to the same type: not at all, by what they are, or by what they were at most
    # in calibration.
    active: Literal["no", "dynamic", "static"] = "no"

    @property
    def name(self) -> str:
        if self.data != "int":
            return next(name for name, scheme in FLOATS.items() if scheme == self)
        group = "" if self.group == GROUP else f"G{self.group}" if self.group > 0 else "-channel"
        return f"W{self.bits}A16{group}{'' if self.symmetric else '-asym'}"

    def type_for(self, columns: int) -> QuantType:
        """The type of a matrix with rows of so many weights."""
        if self.data == "int":
            return integer_type(self.bits, columns if self.group == WHOLE else self.group, self.symmetric)
        if self.data == "fp":
            return FLOAT_TYPES["FP8 block"] if self.tall > 1 else fp8_type(columns)
        return FLOAT_TYPES[{"mx_fp": f"MXFP{self.bits}", "nv_fp": "NVFP4"}[self.data]]


@dataclass(frozen=True)
class Layers:
    """Which layer of a model gets which scheme, by the names of their modules, in the order of the checkpoint."""

    scheme: Scheme  # of most
    quantised: Mapping[str, Scheme]
    kept: tuple[str, ...]  # linear, but kept in 16 bits
    blocks: str  # what the names of all blocks begin with: "model.layers"
    head: str = "lm_head"
    towers: tuple[str, ...] = ()  # parts of names ("visual") of what sees or hears, all of which is kept

    def renamed(self, name: Callable[[str], str]) -> Layers:
        """With other names of modules."""
        quantised = {name(module): scheme for module, scheme in self.quantised.items()}
        block = next((name(module) for module in self.quantised if module.startswith(f"{self.blocks}.")), "")
        found = re.match(r"(.*?)\.\d+\.", block)
        blocks = found[1] if found else self.blocks
        return replace(self, quantised=quantised, kept=tuple(map(name, self.kept)), blocks=blocks, head=name(self.head))

    @property
    def others(self) -> dict[str, Scheme]:
        """The layers in another scheme than most."""
        return {name: scheme for name, scheme in self.quantised.items() if scheme != self.scheme}


FLOATS = {
    "MXFP4": Scheme("mx_fp", 4, 32, active="dynamic"),
    "MXFP4A16": Scheme("mx_fp", 4, 32),
    "MXFP8": Scheme("mx_fp", 8, 32, active="dynamic"),
    "NVFP4": Scheme("nv_fp", 4, 16, active="static"),
    "NVFP4A16": Scheme("nv_fp", 4, 16),
    "FP8_STATIC": Scheme("fp", 8, WHOLE, active="static"),
    "FP8_BLOCK": Scheme("fp", 8, 128, tall=128, active="dynamic"),
}
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


def described(scheme: Scheme) -> dict[str, Any]:
    """The scheme in auto-round's terms."""
    found: dict[str, Any] = {
        "bits": scheme.bits, "group_size": scheme.group, "sym": scheme.symmetric, "data_type": scheme.data,
    }  # fmt: skip
    if scheme.active != "no":
        group = 0 if scheme.data == "fp" else scheme.group
        found |= {"act_bits": scheme.bits, "act_group_size": group, **ACTIVATIONS[scheme.data]}
    return found
