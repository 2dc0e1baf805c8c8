"""Is a checkpoint folder what it should be? Structure, finite values, and the error of each tensor against the source.

Quantised weights are read as any quantised MODEL is. The folder holds the digest of what its layers are made of, not of
its files, so it is the source that a folder is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import DECODERS, Reader
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.conversion import map_threads
from ggufround.errors import InputError
from ggufround.evaluate.file_check import TensorError, Verified
from ggufround.planning import SLAB
from ggufround_kernels import first_nonfinite

NO_DIGEST = "a folder has none of its files"


def verify_folder(folder: Path, source: str | None = None, threads: int = 1) -> Verified:
    """Checks the checkpoint in `folder` alone or against `source`, the model it was made from.

    Raises InputError for a structure that is broken, and for a source with other tensors.
    """
    made = open_checkpoint(folder)
    model = None if source is None else open_checkpoint(source)
    names = [name for name, ref in made.tensors.items() if _is_weights(ref)]
    if model is not None:
        _check_same(made, model)
    with Reader(made) as reader, Reader(model or made) as original:
        look = partial(_look, made, model, reader, original)
        found = dict(map_threads(look, names, threads))
    damaged = tuple(name for name, (finite, _) in found.items() if not finite)
    errors = tuple(error for _, error in found.values() if error is not None)
    paths = tuple(sorted({stored.path for ref in made.tensors.values() for stored in ref.stored}))
    compared = "no source was given" if model is None else "its tensors are all here"
    return Verified(paths, len(made.tensors), NO_DIGEST, compared, damaged, errors)


def _is_weights(ref: TensorRef) -> bool:
    return ref.packing is not None or ref.dtype in DECODERS


def _check_same(made: Checkpoint, model: Checkpoint) -> None:
    scales = {ref.scale.name for ref in model.tensors.values() if ref.scale is not None}
    if absent := sorted(model.tensors.keys() - made.tensors.keys() - scales):
        raise InputError(
            f"{made.source} lacks {len(absent)} tensors of {model.source} (first: {absent[0]}): another model"
        )
    for name, ref in model.tensors.items():
        if name not in scales and ref.shape != made.tensors[name].shape:
            raise InputError(
                f"{name} is {list(made.tensors[name].shape)} in {made.source}, {list(ref.shape)} in {model.source}"
            )


def _look(
    made: Checkpoint, model: Checkpoint | None, reader: Reader, original: Reader, name: str
) -> tuple[bool, TensorError | None]:
    """Whether all values are finite, and the error of a tensor that is not stored as the source has it."""
    ref, true = made.tensors[name], None if model is None else model.tensors.get(name)
    finite, error, norm = True, 0.0, 0.0
    for first, count in _slabs(ref):
        stored = _rows(reader, ref, first, count)
        finite = finite and first_nonfinite(stored) < 0
        if true is not None and _is_weights(true):
            weights = _rows(original, true, first, count)
            stored -= weights
            error += float(np.vdot(stored, stored))
            norm += float(np.vdot(weights, weights))
    if true is None or (ref.packing is None and ref.scale is None and ref.dtype == true.dtype):
        return finite, None
    kind = ref.dtype if ref.packing is None else f"{ref.packing.kind} {ref.packing.bits} bits"
    return finite, TensorError(name, kind, ref.rows * ref.columns, sqrt(error / norm) if norm else 0.0)


def _slabs(ref: TensorRef) -> Iterator[tuple[int, int]]:
    """(first row, rows), whole tiles of a block's scales at a time."""
    step = max(1, SLAB // ref.columns // 256) * 256
    for first in range(0, ref.rows, step):
        yield first, min(step, ref.rows - first)


def _rows(reader: Reader, ref: TensorRef, first: int, count: int) -> NDArray[np.float32]:
    out = np.empty((count, ref.columns), np.float32)
    reader.read_rows(ref, first, count, out, np.empty(0, np.uint8))
    return out
