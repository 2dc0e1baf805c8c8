"""Is a GGUF file what it says it is? Structure, finite values, its own digest, and its error against the source.

The digest `ggufround.data_sha256` covers names and bytes of all tensors; `ggufround.source.weights_sha256` covers
the source's bytes in the slabs and the order in which a conversion reads them, so it can be taken again from the
source, architecture by architecture, without the file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.conversion import fold, map_threads
from ggufround.errors import InputError
from ggufround.formats.gguf import scale_name
from ggufround.gguf_file import Field
from ggufround.gguf_read import GGUFTensor, read_gguf
from ggufround.planning import SLAB, Options, build, slabs
from ggufround.projector import build_projector
from ggufround.quants.types import QUANT_TYPES
from ggufround.slab_work import Work, read_slab, workspaces
from ggufround_kernels import first_nonfinite

SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class TensorError(NamedTuple):
    """How far a stored tensor is from its source: `relative` is the root of Σ(x - x̂)² / Σx²."""

    name: str
    type: str
    weights: int
    relative: float


@dataclass(frozen=True)
class Verified:
    """`data` and `source`: "ok", "differs", or why there is nothing to compare with. `errors` needs a source."""

    files: tuple[Path, ...]
    tensors: int
    data: str
    source: str
    damaged: tuple[str, ...]  # tensors that hold NaN or infinity
    errors: tuple[TensorError, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.damaged and "differs" not in (self.data, self.source)


class _Tensor(NamedTuple):
    path: Path
    info: GGUFTensor


def verify(path: Path, source: str | None = None, threads: int = 1) -> Verified:
    """Checks `path` (all its parts, if it is split) alone or against `source`, the model it was made from.

    Raises InputError for a file whose structure is broken, or a source with other tensors.
    """
    headers = [(part, read_gguf(part)) for part in parts_of(path)]
    tensors = {n: _Tensor(part, t) for part, header in headers for n, t in header.tensors.items()}
    metadata = headers[0][1].metadata
    checked = dict(map_threads(partial(_check, tensors), list(tensors), threads))
    data = _compare(metadata, "ggufround.data_sha256", fold({n: digest for n, (digest, _) in checked.items()}))
    damaged = tuple(n for n, (_, finite) in checked.items() if not finite)
    found = "no source was given"
    errors: tuple[TensorError, ...] = ()
    if source is not None:
        kind = metadata.get("general.type")
        digest, errors = _against(source, tensors, threads, kind is not None and kind.value == "mmproj")
        found = _compare(metadata, "ggufround.source.weights_sha256", digest)
    return Verified(tuple(p for p, _ in headers), len(tensors), data, found, damaged, errors)


def parts_of(path: Path) -> list[Path]:
    """All parts of a split file, in order; `path` alone if it is whole. Raises InputError for a missing part."""
    found = SPLIT.search(path.name)
    if not found:
        return [path]
    count = int(found[2])
    stem = path.name[: found.start()]
    parts = [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    missing = [p.name for p in parts if not p.exists()]
    if missing:
        raise InputError(f"{path} is one of {count} parts; missing: {', '.join(missing[:4])}")
    return parts


def _compare(metadata: Mapping[str, Field], key: str, digest: str) -> str:
    if key not in metadata:
        return "no digest in the file"
    return "ok" if metadata[key].value == digest else "differs"


def _rows(tensor: _Tensor) -> Iterator[tuple[int, bytes]]:
    """(first row, bytes) of whole rows, about SLAB weights at a time."""
    rows, columns = prod(tensor.info.shape[:-1]), tensor.info.shape[-1]
    row_bytes = tensor.info.nbytes // rows
    step = max(1, SLAB // columns)
    with tensor.path.open("rb") as file:
        file.seek(tensor.info.offset)
        for first in range(0, rows, step):
            yield first, file.read(min(step, rows - first) * row_bytes)


def _check(tensors: Mapping[str, _Tensor], name: str) -> tuple[str, bool]:
    """SHA-256 of a tensor's bytes, and whether all its values are finite."""
    total, finite = hashlib.sha256(), True
    for _, raw in _rows(tensors[name]):
        total.update(raw)
        weights = _unpack(tensors[name], raw)
        finite = finite and (weights is None or first_nonfinite(weights) < 0)
    return total.hexdigest(), finite


def _unpack(tensor: _Tensor, raw: bytes) -> NDArray[np.float32] | None:
    """Float32 rows; None for a type that ggufround cannot read."""
    kind, columns = QUANT_TYPES.get(tensor.info.type), tensor.info.shape[-1]
    if kind is None:
        return None
    packed = np.frombuffer(raw, np.uint8).reshape(-1, kind.row_bytes(columns))
    weights = np.empty((len(packed), columns), np.float32)
    kind.unpack(packed, weights)
    return weights


def _against(
    source: str, tensors: Mapping[str, _Tensor], threads: int, projector: bool
) -> tuple[str, tuple[TensorError, ...]]:
    """The source's digest, and the error of every tensor that is stored in fewer bits than F32."""
    plan = build_projector(open_checkpoint(source), "f32") if projector else build(source, Options(types=("f32",)))
    absent = sorted({o.name for o in plan.outputs} - set(tensors))
    if absent:
        raise InputError(f"the file lacks {len(absent)} tensors of {source} (first: {absent[0]}): another model")
    parts = tuple(slabs(plan))
    with Reader(plan.checkpoint) as reader:
        work = Work(plan, parts, reader, (), workspaces(plan, parts, threads))
        results = [r for _, r in map_threads(partial(_slab_error, work, tensors), list(range(len(parts))), threads)]
    digest = hashlib.sha256("".join(r[0] for r in results).encode()).hexdigest()
    sums: dict[str, tuple[float, float]] = {}
    for index, (_, error, norm) in enumerate(results):
        name = work.output(index).name
        before = sums.get(name, (0.0, 0.0))
        sums[name] = (before[0] + error, before[1] + norm)
    errors = tuple(
        TensorError(n, tensors[n].info.type, prod(tensors[n].info.shape), sqrt(e / s) if s else 0.0)
        for n, (e, s) in sums.items()
        if tensors[n].info.type != "F32"
    )
    return digest, errors


def _slab_error(work: Work, tensors: Mapping[str, _Tensor], index: int) -> tuple[str, float, float]:
    """(SHA-256 of the source bytes, Σ(x - x̂)², Σx²) of one slab."""
    slab, output = work.slabs[index], work.output(index)
    tensor = tensors[output.name]
    if tensor.info.shape != output.shape:
        raise InputError(f"{output.name} is {list(tensor.info.shape)} in the file, {list(output.shape)} in the model")
    with work.space() as space:
        weights, raw, _ = read_slab(work, index, space)
        digest = hashlib.sha256(raw).hexdigest()
        if weights is None:
            return digest, 0.0, 0.0
        rows = prod(tensor.info.shape[:-1])
        row_bytes = tensor.info.nbytes // rows
        with tensor.path.open("rb") as file:
            file.seek(tensor.info.offset + slab.first * row_bytes)
            stored = _unpack(tensor, file.read(slab.rows * row_bytes))
        if stored is None:
            return digest, 0.0, 0.0
        stored *= _scale(tensors, output.name, slab.first)
        stored -= weights
        return digest, float(np.vdot(stored, stored)), float(np.vdot(weights, weights))


def _scale(tensors: Mapping[str, _Tensor], name: str, row: int) -> np.float32:
    """The global scale of the matrix that `row` of tensor `name` belongs to; 1 where there is none."""
    scales = tensors.get(scale_name(name)) if name.endswith(".weight") else None
    if scales is None:
        return np.float32(1)
    values = np.fromfile(scales.path, np.float32, prod(scales.info.shape), offset=scales.info.offset)
    shape = tensors[name].info.shape
    return np.float32(values[row // shape[1] if len(shape) == 3 else 0])


__all__ = ["TensorError", "Verified", "parts_of", "verify"]
