"""A quantised checkpoint: a folder of safetensors shards, their index, config.json and the model's other small files.

Shapes are known before the first weight is read, so headers go first and rows go to known offsets, as in gguf.py. A
tensor that is transposed in the file (GPTQ's, AWQ's) gets a piece of every one of its rows; what is written at once is
read back at once, so that a run can be resumed and checked like one that writes GGUF. The small files come last, and
config.json last of them: a folder with one is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufround.arch.spec import Output
from ggufround.errors import UsageError
from ggufround.formats.loaded_names import loaded_name
from ggufround.formats.partial import Buffer, PartialFiles, put, remove, sync_folder
from ggufround.formats.spec import ACTIVE, GLOBAL_SCALE, ITEM, Format, Member, Store
from ggufround.formats.table import checkpoint_format
from ggufround.planning import Plan, Target
from ggufround.quants.spec import QuantType

SHARD = 5_000_000_000  # bytes, as Hugging Face's save_pretrained has it
INDEX = "model.safetensors.index.json"
QUANTISED = ("quantization_config", "quantization")  # keys of config.json that describe how a source was stored
PROVENANCE = "ggufround.json"
DTYPES: dict[int, np.dtype[Any]] = {n: np.dtype(f"<u{n}") for n in (1, 2, 4, 8)}  # only the order of bytes matters
ELEMENTS: dict[str, np.dtype[Any]] = {  # as a Store joins them; others as bytes
    "F16": np.dtype("<f2"), "I32": np.dtype("<i4"), "U32": np.dtype("<i4"), "F32": np.dtype("<f4"),
}  # fmt: skip


Read = Callable[[int, int, int], bytes]  # (number of a file, how many bytes, from which on)


@dataclass(frozen=True)
class Stored:
    """A tensor of a shard: `offset` is absolute in file number `file`, in bytes."""

    name: str
    member: Member
    file: int
    offset: int

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return ITEM.get(self.member.dtype, 1)


@dataclass(frozen=True)
class LayerPlace:
    """Where one output lies: a tensor of the checkpoint, or those that a format makes of a layer."""

    name: str
    shape: tuple[int, ...]
    type: QuantType
    store: Store
    members: tuple[Stored, ...]

    @property
    def nbytes(self) -> int:
        return sum(m.member.nbytes for m in self.members)

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])


@dataclass(frozen=True)
class Shard:
    path: Path
    head: bytes
    size: int  # bytes

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")


@dataclass(frozen=True)
class CheckpointLayout:
    """All files of one target."""

    target: Target
    format: Format
    files: tuple[Shard, ...]
    places: Mapping[str, LayerPlace]
    small: Mapping[str, bytes]  # by base name: written at the end, in this order

    @property
    def folder(self) -> Path:
        return self.files[0].path.parent

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files) + sum(map(len, self.small.values()))

    def identity(self) -> bytes:
        small = b"".join(name.encode() + data for name, data in self.small.items())
        return b"".join(file.head for file in self.files) + small

    def own_names(self) -> frozenset[str] | None:
        names = {*self.small, PROVENANCE, *(f.path.name for f in self.files)}
        first = self.files[0].path.name
        ends = {f"{n}.partial" for n in names} | {f"{first}.journal", f"{first}.tuning.jsonl"}
        return frozenset(names | ends)

    def open(self, resume: bool) -> CheckpointSink:
        """The sink that writes them."""
        self.folder.mkdir(exist_ok=True)
        return CheckpointSink(self, resume)


def lay_out(plan: Plan, target: Target, folder: Path, shard_size: int | None = None) -> CheckpointLayout:
    """Offsets and headers of all files of `target`, exact to the byte, and the small files but for the digests.

    Raises UsageError for a shard size smaller than a tensor.
    """
    given = checkpoint_format(target.format)
    types = target.types
    made = [(o.name, o.shape, types[o.name], _store(given, target, o)) for o in plan.outputs]
    groups = list(_shards(made, shard_size or SHARD))
    names = _names(len(groups))
    files: list[Shard] = []
    places: dict[str, LayerPlace] = {}
    index: dict[str, str] = {}
    for number, (name, group) in enumerate(zip(names, groups, strict=True)):
        shard, found = _shard(folder / name, number, group)
        files.append(shard)
        places |= found
        index |= {m.name: name for place in found.values() for m in place.members}
    total = sum(p.nbytes for p in places.values())
    small = _small_files(plan, target, given, index if len(names) > 1 else None, total)
    return CheckpointLayout(target, given, tuple(files), places, small)


Row = tuple[str, tuple[int, ...], QuantType, Store]


def _store(given: Format, target: Target, output: Output) -> Store:
    kind = target.types[output.name]
    if kind.codec is not None:
        assert target.layers is not None
        rows, columns = output.shape
        return given.store(target.layers.quantised[output.name.removesuffix(".weight")], (rows, columns))
    member = Member(".weight", kind.name, output.shape)
    return Store((member,), lambda packed: (packed,), lambda arrays: arrays[0])


def _shards(rows: Iterable[Row], limit: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    used = 0
    for row in rows:
        size = sum(m.nbytes for m in row[3].members)
        if size > limit:
            raise UsageError(f"a shard size of {limit} bytes is smaller than {row[0]}, which takes {size}")
        if group and used + size > limit:
            yield group
            group, used = [], 0
        group.append(row)
        used += size
    yield group


def _names(count: int) -> list[str]:
    """As Hugging Face names shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def _shard(path: Path, number: int, group: list[Row]) -> tuple[Shard, dict[str, LayerPlace]]:
    """Widest elements first, so that all of them are aligned."""
    tensors = [(member_name(name, kind, m), m) for name, _, kind, store in group for m in store.members]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, member in sorted(tensors, key=lambda t: -ITEM.get(t[1].dtype, 1)):
        header[name] = {
            "dtype": member.dtype, "shape": list(member.shape), "data_offsets": [offset, offset + member.nbytes],
        }  # fmt: skip
        offset += member.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    places = {}
    for name, shape, kind, store in group:
        stored = []
        for member in store.members:
            full = member_name(name, kind, member)
            stored.append(Stored(full, member, number, base + header[full]["data_offsets"][0]))
        places[name] = LayerPlace(name, shape, kind, store, tuple(stored))
    return Shard(path, len(text).to_bytes(8, "little") + text, base + offset), places


def member_name(name: str, kind: QuantType, member: Member) -> str:
    """The name of a stored tensor: that of the checkpoint where it is stored as it was."""
    return name if kind.codec is None else name.removesuffix(".weight") + member.suffix


def _small_files(
    plan: Plan, target: Target, given: Format, index: Mapping[str, str] | None, total: int
) -> dict[str, bytes]:
    """The model's own, as they are, but for config.json, which says how the weights are stored."""
    assert target.layers is not None
    layers = target.layers.renamed(partial(loaded_name, plan.checkpoint.config)) if given.loaded else target.layers
    quantization = given.config(layers)
    small = {
        name: path.read_bytes()
        for name, path in plan.checkpoint.files.items()
        if name not in ("config.json", "README.md")
    }
    small |= {name: _json(more(layers)) for name, more in given.more.items()}
    if index is not None:
        small[INDEX] = _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))})
    config = {k: v for k, v in plan.checkpoint.config.items() if k not in QUANTISED}
    small["config.json"] = _json(config | given.entry(config) | dict.fromkeys(given.keys, quantization))
    return small


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


class CheckpointSink:
    """The open .partial shards of one layout, locked. With `resume` they must exist with the right size.

    Raises UsageError where another run has them, OutputError where they cannot be written.
    """

    def __init__(self, layout: CheckpointLayout, resume: bool) -> None:
        self.layout = layout
        self.places = layout.places
        self._files = PartialFiles(layout.files, resume)
        for place in layout.places.values():
            for stored in place.members:
                if stored.member.constant:
                    self._files.write(stored.file, stored.member.constant, stored.offset, stored.name)

    def write(self, name: str, first_row: int, rows: Buffer) -> None:
        """Stores records of output `name`. Raises OutputError naming the tensor; the partial file stays."""
        place = self.places[name]
        packed = np.frombuffer(rows, np.uint8).reshape(-1, place.type.row_bytes(place.shape[-1]))
        for stored, part in zip(_with_rows(place), place.store.split(packed), strict=True):
            data = np.ascontiguousarray(part)
            data = data.view(DTYPES[stored.item]).reshape(-1, data.shape[-1] * data.itemsize // stored.item)
            for start, run in _runs(place, stored, first_row, data):
                self._files.write(stored.file, run.data.cast("B"), start, stored.name)

    def write_scale(self, name: str, scales: NDArray[np.float32]) -> None:
        """Stores the global scale of output `name`."""
        form = self.places[name].store.scale
        assert form is not None
        self.write_number(name, GLOBAL_SCALE, form(float(scales[0])))

    def write_active(self, name: str, largest: float) -> None:
        """Stores what the largest input of output `name` makes of the scale of its activations."""
        form = self.places[name].store.active
        assert form is not None
        for suffix in ACTIVE:
            self.write_number(name, suffix, form(largest))

    def write_number(self, name: str, suffix: str, data: bytes) -> None:
        """Stores the member of output `name` that has no rows and this suffix, where there is one."""
        for stored in self.places[name].members:
            if stored.member.suffix == suffix:
                self._files.write(stored.file, data, stored.offset, stored.name)

    def read(self, name: str, first_row: int, rows: int) -> bytes:
        """Records as they are in the files now (for a resume and for the final check)."""
        return records(self.places[name], self._files.read, first_row, rows)

    def sync(self) -> None:
        """Has the disk take what was written so far, while something else is done. Raises OutputError."""
        self._files.sync()

    def close(self, digests: Mapping[str, str]) -> None:
        """Gives the shards their names, then writes the small files. An earlier run's config.json goes first."""
        remove([self.layout.folder / "config.json"])
        self._files.close()
        given = {key: field.value for key, field in self.layout.target.metadata.items()}
        put(self.layout.folder / PROVENANCE, _json({**given, **digests}))
        for name, data in self.layout.small.items():
            (self.layout.folder / name).parent.mkdir(exist_ok=True)  # a module of sentence-transformers has a folder
            put(self.layout.folder / name, data)
        sync_folder(self.layout.folder)

    def abandon(self) -> None:
        """Closes the files as they are; a later run can go on with them."""
        self._files.abandon()


@contextmanager
def reading(layout: CheckpointLayout) -> Iterator[Read]:
    """Reads the finished files of a layout."""
    with ExitStack() as stack:
        files = [stack.enter_context(shard.path.open("rb")) for shard in layout.files]
        yield lambda number, size, offset: os.pread(files[number].fileno(), size, offset)


def records(place: LayerPlace, read: Read, first_row: int, rows: int) -> bytes:
    """Rows of an output as records."""
    arrays = []
    for stored in _with_rows(place):
        out = np.empty(_part_shape(place, stored, rows), DTYPES[stored.item])
        for start, run in _runs(place, stored, first_row, out):
            run[:] = np.frombuffer(read(stored.file, run.nbytes, start), run.dtype)
        arrays.append(out if place.type.codec is None else out.view(ELEMENTS.get(stored.member.dtype, np.uint8)))
    return np.ascontiguousarray(place.store.join(tuple(arrays))).tobytes()


def global_factor(place: LayerPlace, read: Read) -> np.float32:
    """What the weights of an output are to be multiplied with: 1 without a global scale."""
    for stored in place.members:
        if stored.member.suffix == GLOBAL_SCALE:
            return np.float32(1 / float(np.frombuffer(read(stored.file, 4, stored.offset), "<f4")[0]))
    return np.float32(1)


def _with_rows(place: LayerPlace) -> list[Stored]:
    return [stored for stored in place.members if stored.member.along is not None]


def _steps(place: LayerPlace, stored: Stored, rows: int) -> int:
    """How far so many rows of an output reach along a stored tensor."""
    member = stored.member
    if member.tall:
        return -(-rows // member.tall)
    if member.along == 1:
        return member.shape[1] * rows // place.rows
    return (prod(member.shape[:-1]) if len(member.shape) > 1 else place.rows) * rows // place.rows


def _part_shape(place: LayerPlace, stored: Stored, rows: int) -> tuple[int, int]:
    """Of the part of a stored tensor that so many rows are, as a matrix."""
    shape, steps = stored.member.shape, _steps(place, stored, rows)
    if stored.member.along == 1:
        return shape[0], steps
    return steps, shape[-1] if len(shape) > 1 or place.type.codec is None else 1  # a number a row


def _runs(place: LayerPlace, stored: Stored, first: int, data: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """(offset in the file, elements) of the consecutive pieces of a part, `data` [as `_part_shape` says]."""
    step = _steps(place, stored, first)
    if stored.member.along == 0:
        yield stored.offset + step * data.shape[1] * stored.item, data.reshape(-1)
        return
    width = stored.member.shape[1]
    for j, run in enumerate(data):
        yield stored.offset + (j * width + step) * stored.item, run


__all__ = ["CheckpointLayout", "CheckpointSink", "LayerPlace", "global_factor", "lay_out", "reading", "records"]
