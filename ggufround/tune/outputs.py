"""The way back from the tensors of a GGUF file to those of the checkpoint, for evaluation and for the tuner's resume.

What a converter does to rows on their way (regrouping the rows of a head, adding one to a norm) is not written down a
second time: row numbers are sent through the same functions, and where they land is read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ggufround.arch.spec import Output, Piece
from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import UnsupportedError
from ggufround.tune.weights import ReadRows, ReadTensor

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
T = TypeVar("T")
# (output name, first row, count) -> float32 [count, columns], the output seen as a matrix of its last dimension
ReadOutput = Callable[[str, int, int], F32]

SLAB = 1 << 20  # weights read at once
PROBED = 64  # columns of a probe: enough to see that a function moves whole rows


@dataclass(frozen=True)
class _Run:
    """Rows [first, first + rows) of a checkpoint tensor, all in one output.

    Row `first + g * len(place) + j` lies in the output's row `start + g * len(place) + place[j]`, increased by `shift`.
    A vector is one row, and `place` tells of its elements. Where the piece has a `back`, that makes the rows of the
    output's `made` rows instead.
    """

    output: str
    first: int
    rows: int
    start: int
    place: I64
    shift: np.float32
    made: int = 0
    back: Callable[[F32], F32] | None = None


def output_weights(outputs: Sequence[Output], read_rows: ReadOutput) -> tuple[ReadTensor, ReadRows]:
    """Readers of the checkpoint tensors that `outputs` are made of, by checkpoint name, each into a new tensor.

    Rows that no output takes (those beyond the vocabulary) are zero. Raises UnsupportedError for a
    transform that is more than a permutation of rows and a constant and has no `back`, and the readers for a name that
    no output has.
    """
    held: dict[str, tuple[TensorRef, list[_Run]]] = {}
    for output in outputs:
        start = 0
        for piece in output.pieces:
            held.setdefault(piece.source.name, (piece.source, []))[1].append(_run(output.name, start, piece))
            start += piece.rows

    def tensor(name: str) -> torch.Tensor:
        ref, runs = _find(held, name)
        return torch.from_numpy(_gathered(runs, ref, np.arange(ref.rows), read_rows)).reshape(ref.shape)

    def rows(name: str, numbers: I64) -> torch.Tensor:
        ref, runs = _find(held, name)
        return torch.from_numpy(_gathered(runs, ref, numbers, read_rows))

    return tensor, rows


def _find(held: Mapping[str, T], name: str) -> T:
    if name not in held:
        raise UnsupportedError(f"{name}, which the model needs to run, is in no tensor of the GGUF file")
    return held[name]


def _is_vector(ref: TensorRef) -> bool:
    return len(ref.shape) <= 1


def _run(output: str, start: int, piece: Piece) -> _Run:
    if piece.back is not None:
        none = np.empty(0, np.int64)
        return _Run(output, piece.first, piece.source_rows, start, none, np.float32(0), piece.rows, piece.back)
    place, shift = _inverse(piece)
    return _Run(output, piece.first, piece.rows, start, place, shift)


def _inverse(piece: Piece) -> tuple[I64, np.float32]:
    """Where `piece.via` puts each row of a granule (each element of a vector), and the constant that it adds."""
    vector = _is_vector(piece.source)
    size = piece.source.columns if vector else piece.granule
    if piece.via is None:
        return np.arange(1 if not vector else size), np.float32(0)
    if piece.read:
        raise UnsupportedError(f"{piece.source.name} goes into the GGUF file in a way that is not undone yet")
    columns = 1 if vector else min(piece.source.columns, PROBED)
    probe = np.arange(size * columns, dtype=np.float32).reshape(size, columns)
    assert probe.size < 1 << 24, "float32 does not count so far"
    found = piece.via(probe.reshape((1, size) if vector else probe.shape).copy()).reshape(probe.shape)
    shift = found.min()
    came_from = ((found[:, 0] - shift) / columns).astype(np.int64)
    place = np.argsort(came_from, kind="stable")
    if not np.array_equal(found[place], probe + shift):
        raise UnsupportedError(
            f"{piece.source.name} goes into the GGUF file through more than a permutation of rows and a constant, so "
            f"it cannot be read back from there"
        )
    return place, np.float32(shift)


def _gathered(runs: Sequence[_Run], ref: TensorRef, numbers: I64, read_rows: ReadOutput) -> F32:
    """The rows of `ref` with these sorted numbers: float32 [len(numbers), columns]."""
    out = np.zeros((len(numbers), ref.columns), np.float32)
    for run in runs:
        a, b = (int(k) for k in np.searchsorted(numbers, (run.first, run.first + run.rows)))
        part = out[a:b]
        if run.back is not None:
            if a < b:
                rows = run.back(read_rows(run.output, run.start, run.made))
                part += rows.reshape(run.rows, -1)[numbers[a:b] - run.first]
        elif _is_vector(ref):
            if a < b:
                part[:] = read_rows(run.output, run.start, 1).reshape(1, -1)[:, run.place]
        else:
            granule, row = np.divmod(numbers[a:b] - run.first, len(run.place))
            there = run.start + granule * len(run.place) + run.place[row]
            order = np.argsort(there, kind="stable")
            for span in _spans(there[order], max(1, SLAB // ref.columns)):
                here = order[span]
                part[here] = read_rows(run.output, int(there[here[0]]), len(here))
        if run.shift:
            part -= run.shift
    return out


def _spans(numbers: I64, most: int) -> Iterator[slice]:
    """Slices of at most `most` consecutive numbers each."""
    cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        for start in range(begin, end, most):
            yield slice(start, min(start + most, end))
