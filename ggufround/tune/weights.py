"""Full-precision weights of a checkpoint as torch tensors, through our own reader (FP8 is multiplied by its scales)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import Checkpoint, TensorRef

ReadTensor = Callable[[str], torch.Tensor]  # checkpoint tensor -> float32 of its shape, the caller's to read only
ReadRows = Callable[[str, NDArray[np.int64]], torch.Tensor]  # and sorted row numbers -> float32 [rows, columns]

SLAB = 1 << 20  # weights read at once: bounds the buffer of stored bytes


def source_weights(checkpoint: Checkpoint, reader: Reader) -> tuple[ReadTensor, ReadRows]:
    """Readers of whole tensors and of single rows, each into a new tensor on the CPU; thread-safe as `reader` is.

    They raise what `Reader.read_rows` raises, and KeyError for a name that the checkpoint lacks.
    """

    def tensor(name: str) -> torch.Tensor:
        ref = checkpoint.tensors[name]
        return torch.from_numpy(_read(reader, ref, [(0, ref.rows)])).reshape(ref.shape)

    def rows(name: str, numbers: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(_read(reader, checkpoint.tensors[name], _runs(numbers)))

    return tensor, rows


def _read(reader: Reader, ref: TensorRef, runs: list[tuple[int, int]]) -> NDArray[np.float32]:
    """The rows of all runs (first, count), one below the other: float32 [rows, columns]."""
    out = np.empty((sum(count for _, count in runs), ref.columns), np.float32)
    scratch = np.empty(0, np.uint8)  # grown by the reader where it is too short
    done = 0
    for first, count in _slabs(runs, max(1, SLAB // ref.columns)):
        reader.read_rows(ref, first, count, out[done : done + count], scratch)
        done += count
    return out


def _slabs(runs: list[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    for first, count in runs:
        for start in range(first, first + count, most):
            yield start, min(most, first + count - start)


def _runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(first, count) of each run of consecutive row numbers."""
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [(int(run[0]), len(run)) for run in np.split(numbers, cuts) if len(run)]
