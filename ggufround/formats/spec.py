"""What the loop needs of a format, and how a checkpoint format is described: Store, Member, Format.

A layer's rows come as records (ggufround_kernels.grouped). A Store says which tensors a format makes of them: `split`
gives the part of each tensor that some rows are, and `join` gets the rows back from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ggufround.formats.partial import Buffer, OutFile
from ggufround.planning import Target
from ggufround.quants.schemes import Layers, Scheme
from ggufround.quants.spec import QuantType

U8 = NDArray[np.uint8]
Arrays = tuple[NDArray[Any], ...]
ITEM = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2}  # else 1


GLOBAL_SCALE = ".weight_global_scale"
ACTIVE = (".input_global_scale", ".input_scale")


class Place(Protocol):
    """Where an output lies."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> QuantType: ...
    @property
    def nbytes(self) -> int: ...


class Sink(Protocol):
    """The open files of a layout: rows go in at any time and in any order, from any thread."""

    @property
    def layout(self) -> Layout: ...
    @property
    def places(self) -> Mapping[str, Place]: ...
    def write(self, name: str, first_row: int, rows: Buffer) -> None: ...
    def write_scale(self, name: str, scales: NDArray[np.float32]) -> None: ...
    def write_active(self, name: str, largest: float) -> None: ...
    def read(self, name: str, first_row: int, rows: int) -> bytes: ...
    def sync(self) -> None: ...
    def close(self, digests: Mapping[str, str]) -> None: ...
    def abandon(self) -> None: ...


class Layout(Protocol):
    """The files of one target, exact to the byte."""

    @property
    def target(self) -> Target: ...
    @property
    def files(self) -> Sequence[OutFile]: ...
    @property
    def places(self) -> Mapping[str, Place]: ...
    @property
    def size(self) -> int: ...
    def identity(self) -> bytes:
        """What must not change when a run is gone on with."""
        ...

    def own_names(self) -> frozenset[str] | None:
        """All that the layout's folder may hold, where it has one of its own."""
        ...

    def open(self, resume: bool) -> Sink: ...


@dataclass(frozen=True)
class Member:
    """One stored tensor of a layer. The layer's rows lie along axis `along` of it, evenly or `tall` to a step; a member
    without rows (`along` None) is written once."""

    suffix: str  # ".qweight": in place of the layer's ".weight"
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    along: Literal[0, 1] | None = 0
    tall: int = 0
    constant: bytes = b""  # of a member without rows, where it is known before

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM.get(self.dtype, 1)


@dataclass(frozen=True)
class Store:
    """The tensors of one layer; `split` and `join` pass those members that have rows, in their order."""

    members: tuple[Member, ...]
    split: Callable[[U8], Arrays]  # records [rows, bytes] -> parts of the members
    join: Callable[[Arrays], U8]
    scale: Callable[[float], bytes] | None = None  # what the member GLOBAL_SCALE holds, of the global scale
    active: Callable[[float], bytes] | None = None  # what the member among ACTIVE holds, of the largest input


@dataclass(frozen=True)
class Format:
    """A checkpoint format. `refusal`: why a scheme cannot be written in it, None if it can."""

    name: str
    about: str
    refusal: Callable[[Scheme], str | None]
    store: Callable[[Scheme, tuple[int, int]], Store]
    config: Callable[[Layers], dict[str, Any]]  # quantization_config of config.json
    # Whether a layer may have the second scheme where most have the first.
    mixes: Callable[[Scheme, Scheme], bool] = lambda most, other: True
    keys: tuple[str, ...] = ("quantization_config",)  # of config.json
    entry: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}  # what else config.json gets
    more: Mapping[str, Callable[[Layers], dict[str, Any]]] = field(default_factory=dict)  # further JSON files
    loaded: bool = True  # layers are called as transformers calls them, not as the checkpoint does
