"""GGUF as a format: where every byte of the output lies, and the sink that puts it there.

Types and shapes are known before the first weight is read, so the header is written first and rows go to known
offsets in any order, from any thread. Until `close` has synced everything, the file is called OUT.partial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufround.errors import InputError, UsageError
from ggufround.formats.partial import Buffer, PartialFiles
from ggufround.gguf_file import MAX_NAME, Field, Header, Kind, TensorInfo, encode_header, padded
from ggufround.planning import Plan, Target
from ggufround.quants.mixes import visiting_order
from ggufround.quants.spec import QuantType
from ggufround.quants.types import QUANT_TYPES


@dataclass(frozen=True)
class Place:
    """Where one tensor lies: `offset` is absolute in file number `file`, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: QuantType
    file: int
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class GGUFFile:
    path: Path
    header: Header
    size: int  # bytes
    places: tuple[Place, ...]

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def head(self) -> bytes:
        return self.header.data


@dataclass(frozen=True)
class GGUFLayout:
    """All files of one target; more than one only under --split-max-size."""

    target: Target
    files: tuple[GGUFFile, ...]

    @property
    def places(self) -> Mapping[str, Place]:
        return {p.name: p for f in self.files for p in f.places}

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)

    def identity(self) -> bytes:
        return b"".join(file.head for file in self.files)

    def own_names(self) -> frozenset[str] | None:
        return None

    def open(self, resume: bool) -> GGUFSink:
        """The sink that writes them."""
        return GGUFSink(self, resume)


def scale_name(name: str) -> str:
    """The tensor that holds the global scale of `name`: blk.3.attn_q.weight -> blk.3.attn_q.scale."""
    return name.removesuffix(".weight") + ".scale"


def lay_out(plan: Plan, target: Target, out: Path, split_max_size: int | None = None) -> GGUFLayout:
    """Offsets and headers of all files of `target`, exact to the byte.

    Raises InputError for a tensor that the C reader would refuse, UsageError for a split smaller than a tensor.
    """
    shapes = {o.name: o.shape for o in plan.outputs}
    types = dict(target.types)
    for name in target.scaled:
        shapes[scale_name(name)] = (shapes[name][0],) if len(shapes[name]) == 3 else (1,)
        types[scale_name(name)] = QUANT_TYPES["F32"]
    for name, shape in shapes.items():
        if len(name.encode()) > MAX_NAME:
            raise InputError(f"tensor name {name!r} is longer than the {MAX_NAME} bytes that GGUF readers allow")
        if not 1 <= len(shape) <= 4:
            raise InputError(f"{name} has {len(shape)} dimensions; GGUF allows 1 to 4")
    rows = [Place(n, shapes[n], types[n], 0, 0) for n in visiting_order(list(shapes))]
    groups = _split(rows, split_max_size)
    files = []
    for number, group in enumerate(groups):
        path = out if split_max_size is None else split_path(out, number, len(groups))
        metadata = dict(target.metadata) if number == 0 else {}
        if split_max_size is not None:
            metadata["split.no"] = Field(Kind.U16, number)
            metadata["split.count"] = Field(Kind.U16, len(groups))
            metadata["split.tensors.count"] = Field(Kind.I32, len(rows))
        files.append(_file(path, number, metadata, group))
    return GGUFLayout(target, tuple(files))


def split_path(out: Path, number: int, count: int) -> Path:
    """llama.cpp's name of shard `number` (from 0): PREFIX-00001-of-00003.gguf."""
    return out.with_name(f"{out.name.removesuffix('.gguf')}-{number + 1:05d}-of-{count:05d}.gguf")


def _split(rows: list[Place], limit: int | None) -> list[list[Place]]:
    if limit is None:
        return [rows]
    groups: list[list[Place]] = [[]]
    used = 0
    for place in rows:
        if place.nbytes > limit:
            raise UsageError(
                f"--split-max-size of {limit} bytes is smaller than {place.name}, which takes {place.nbytes}"
            )
        if groups[-1] and used + padded(place.nbytes) > limit:
            groups.append([])
            used = 0
        groups[-1].append(place)
        used += padded(place.nbytes)
    return groups


def _file(path: Path, number: int, metadata: Mapping[str, Field], group: list[Place]) -> GGUFFile:
    infos, offset = [], 0
    for place in group:
        infos.append(TensorInfo(place.name, place.shape, place.type.id, offset))
        offset += padded(place.nbytes)
    header = encode_header(metadata, infos)
    base = len(header.data)
    places = tuple(
        Place(p.name, p.shape, p.type, number, base + info.offset) for p, info in zip(group, infos, strict=True)
    )
    return GGUFFile(path, header, base + offset, places)


class GGUFSink:
    """The open .partial files of one layout, locked. With `resume` they must exist with the right size.

    Raises UsageError where another run has them, OutputError where they cannot be written.
    """

    def __init__(self, layout: GGUFLayout, resume: bool) -> None:
        self.layout = layout
        self.places = layout.places
        self._files = PartialFiles(layout.files, resume)

    def write(self, name: str, first_row: int, rows: Buffer) -> None:
        """Stores packed rows of tensor `name`. Raises OutputError naming the tensor; the partial file stays."""
        place = self.places[name]
        self._files.write(place.file, rows, place.offset + first_row * place.row_bytes, f"tensor {name}")

    def write_scale(self, name: str, scales: NDArray[np.float32]) -> None:
        """Stores the global scales of tensor `name`, [matrices]."""
        self.write(scale_name(name), 0, scales.data)

    def write_active(self, name: str, largest: float) -> None:
        """Nothing: llama.cpp rounds activations by what they are."""

    def read(self, name: str, first_row: int, rows: int) -> bytes:
        """Packed rows as they are in the file now (for a resume and for the final check)."""
        place = self.places[name]
        return self._files.read(place.file, rows * place.row_bytes, place.offset + first_row * place.row_bytes)

    def sync(self) -> None:
        """Has the disk take what was written so far, while something else is done. Raises OutputError."""
        self._files.sync()

    def close(self, digests: Mapping[str, str]) -> None:
        """Fills in the digests, for which the first header has room, syncs, and gives the files their names."""
        first = self.layout.files[0]
        for key, text in digests.items():
            self._files.write(0, text.encode(), first.header.values[key], str(first.partial))
        self._files.close()

    def abandon(self) -> None:
        """Closes the files as they are; a later run can go on with them."""
        self._files.abandon()
