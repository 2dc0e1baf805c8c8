"""What is done to one slab: read its rows, arrange them, search and pack them for every target, write.

Pure but for the reads and writes; any thread may do any slab at any time.
"""

from __future__ import annotations

import hashlib
import queue
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround import carrying
from ggufround.arch.spec import Output
from ggufround.carrying import order_of
from ggufround.checkpoint.reading import DECODERS, Parts, Reader
from ggufround.checkpoint.unpacking import dequantise
from ggufround.errors import WeightError
from ggufround.formats.spec import Sink
from ggufround.journal import Done
from ggufround.planning import Plan, Slab, Target, is_copy
from ggufround.preflight import workspace_bytes
from ggufround.quants.spec import QuantType
from ggufround_kernels import Rounded, absmax, first_nonfinite

LARGE = 65504  # the largest float16: no smaller weights need a larger scale


class Workspace(NamedTuple):
    """The buffers of one worker, large enough for the largest slab."""

    raw: NDArray[np.uint8]
    weights: NDArray[np.float32]
    packed: NDArray[np.uint8]


@dataclass(frozen=True)
class Work:
    """What all slabs of a run share. What fills during the run does so before the tensors concerned are packed."""

    plan: Plan
    slabs: tuple[Slab, ...]
    reader: Reader
    sinks: tuple[Sink, ...]  # one a target
    spaces: queue.SimpleQueue[Workspace]
    scales: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # output name -> [experts]
    importance: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # of calibration: name -> [experts, n]
    rounded: dict[str, Rounded] = field(default_factory=dict)  # tuned already: packed as it is
    not_carried: set[str] = field(default_factory=set)  # to be carried over, but rounded again

    def output(self, index: int) -> Output:
        """The output that slab number `index` belongs to."""
        return self.plan.outputs[self.slabs[index].output]

    def weights(self, index: int) -> int:
        """Weights in slab number `index`."""
        return self.slabs[index].rows * self.output(index).shape[-1]

    @contextmanager
    def space(self) -> Iterator[Workspace]:
        """A free workspace; there are as many as workers, so none waits."""
        space = self.spaces.get()
        try:
            yield space
        finally:
            self.spaces.put(space)


def workspaces(plan: Plan, slabs: tuple[Slab, ...], count: int) -> queue.SimpleQueue[Workspace]:
    """`count` workspaces; the memory is touched, and so counted, only as far as slabs use it."""
    raw, weights, packed = workspace_bytes(plan, slabs)
    spaces: queue.SimpleQueue[Workspace] = queue.SimpleQueue()
    for _ in range(count):
        spaces.put(Workspace(np.empty(raw, np.uint8), np.empty(weights // 4, np.float32), np.empty(packed, np.uint8)))
    return spaces


def convert_slab(work: Work, index: int) -> Done:
    """Reads slab `index`, packs it for every target and writes it; returns the checksums for the journal.

    Raises WeightError for NaN or infinity, InputError for a source that cannot be read, OutputError for a sink
    that cannot be written.
    """
    slab, output = work.slabs[index], work.output(index)
    with work.space() as space:
        weights, raw, parts = read_slab(work, index, space)
        source = hashlib.sha256(raw).hexdigest()
        crcs: list[int] = []
        packed: QuantType | None = None
        rows = raw
        for target, sink in zip(work.plan.targets, work.sinks, strict=True):
            kind = target.types[output.name]
            if weights is not None and kind is not packed:
                rows, packed = _packed(work, slab, output, target, weights, parts, space.packed).data, kind
            sink.write(output.name, slab.first, rows)
            crcs.append(zlib.crc32(rows))
    return Done(index, source, tuple(crcs))


def absmax_slab(work: Work, index: int) -> float:
    """The largest magnitude in slab `index`."""
    with work.space() as space:
        weights = read_slab(work, index, space).weights
        assert weights is not None
        return float(absmax(weights))


def expert_of(output: Output, slab: Slab) -> int:
    """Which matrix of a stack the slab belongs to; 0 for a plain matrix."""
    return slab.first // output.shape[1] if len(output.shape) == 3 else 0


class Read(NamedTuple):
    """A slab's weights, float32 [rows, columns], the bytes they came from, and of a packed source its parts."""

    weights: NDArray[np.float32] | None
    raw: memoryview
    parts: Parts | None = None


def read_slab(work: Work, index: int, space: Workspace) -> Read:
    """Reads a slab and arranges its rows.

    No weights for a slab that every target stores exactly as the source does (quantised or integer): those bytes
    are copied, not rounded a second time, once their values have been looked at.
    """
    slab, output = work.slabs[index], work.output(index)
    columns = output.shape[-1]
    weights = space.weights[: slab.rows * columns].reshape(slab.rows, columns)
    if slab.piece is None:
        assert output.values is not None
        weights[:] = output.values.reshape(-1, columns)[slab.first : slab.first + slab.rows]
        return Read(weights, weights.data.cast("B"))
    piece = output.pieces[slab.piece]
    row = piece.first + slab.first - sum(p.rows for p in output.pieces[: slab.piece])
    copied = is_copy(work.plan, output)
    if copied and piece.source.dtype not in DECODERS:
        return Read(None, work.reader.raw_rows(piece.source, row, slab.rows, space.raw))
    parts = None
    count, found = slab.rows, weights
    if piece.read:
        row, count = piece.first, piece.read
        found = np.empty((count, piece.source.columns), np.float32)
    if piece.source.packing is None:
        raw = work.reader.read_rows(piece.source, row, count, found, space.raw)
    else:
        parts, raw = work.reader.read_parts(piece.source, row, count, space.raw)
        dequantise(piece.source.packing, parts, found)
    bad = first_nonfinite(found)
    if bad >= 0:
        r, column = divmod(bad, found.shape[1])
        raise WeightError(
            f"{piece.source.name} holds {found[r, column]} in row {row + r}, column {column}: the checkpoint is "
            f"damaged; download it again. OUT.partial is kept"
        )
    if piece.via is not None:
        weights = np.ascontiguousarray(piece.via(found), np.float32)
        assert weights.shape == (slab.rows, columns), (output.name, weights.shape)
        if parts is not None and not piece.columns and (order := order_of(piece.via, count)) is not None:
            parts = parts.rows(order)
    return Read(None if copied else weights, raw, parts)


def _packed(
    work: Work,
    slab: Slab,
    output: Output,
    target: Target,
    weights: NDArray[np.float32],
    parts: Parts | None,
    buffer: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    kind = target.types[output.name]
    rows = buffer[: slab.rows * kind.row_bytes(output.shape[-1])].reshape(slab.rows, -1)
    expert = expert_of(output, slab)
    if output.name in target.scaled:
        weights = weights / work.scales[output.name][expert]
    found = None
    if output.name in target.carried:
        found = _carried(work, slab, output, kind, parts)
    elif output.name in work.rounded:
        found = work.rounded[output.name].part(slice(slab.first, slab.first + slab.rows))
    if found is not None:
        assert kind.pack is not None
        kind.pack(found, rows)
    else:
        kind.quantize(weights, _importance(work, output, expert), work.plan.recipe.search, rows)
    largest = absmax(weights)
    if largest > LARGE:
        _check_held(output, kind, rows, largest)
    return rows.reshape(-1)


def _carried(work: Work, slab: Slab, output: Output, kind: QuantType, parts: Parts | None) -> Rounded | None:
    """The codes that the source has; None, and remembered, where these are not what its config says of them."""
    assert parts is not None
    assert slab.piece is not None
    packing = output.pieces[slab.piece].source.packing
    assert packing is not None
    found = carrying.rounded(kind, packing, parts)
    if found is None:
        work.not_carried.add(output.name)
    return found


def read_weights(work: Work, sink: Sink, name: str, first: int, count: int) -> NDArray[np.float32]:
    """Rows of an output as the file holds them now, float32 [count, columns], global scales included."""
    place = sink.places[name]
    out = np.empty((count, place.shape[-1]), np.float32)
    place.type.unpack(np.frombuffer(sink.read(name, first, count), np.uint8).reshape(count, -1), out)
    if name in work.scales:
        height = place.shape[-2]
        out *= work.scales[name][np.arange(first, first + count) // height][:, None]
    return out


def _check_held(output: Output, kind: QuantType, rows: NDArray[np.uint8], largest: float) -> None:
    """Weights that are finite themselves can overflow a float16 scale: to infinity, which llama.cpp refuses in a
    file, or, where a search stops at the largest scale, to far less than they are."""
    stored = np.empty((len(rows), output.shape[-1]), np.float32)
    kind.unpack(rows, stored)
    if not largest / 4 < absmax(stored) < np.inf:
        raise WeightError(
            f"{output.name} has weights too large for {kind.name}, whose scales are float16; give it another type, "
            f"e.g. --tensor-type '{output.name}=bf16'"
        )


def _importance(work: Work, output: Output, expert: int) -> NDArray[np.float32] | None:
    given: Mapping[str, NDArray[np.float32]] = work.plan.importance.entries if work.plan.importance else {}
    entry = work.importance.get(output.name, given.get(output.name))
    return None if entry is None else entry[expert]
