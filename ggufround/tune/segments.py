"""Which rows of a block's parameters are which rows of the file's tensors.

The tuner works on the parameters of a transformers module, the file holds tensors in llama.cpp's arrangement. Both are
rows of the same checkpoint tensors, in another order or fused with others, and every type rounds row by row: a segment
of a parameter is tuned where it lies, and only its finished rows are put in the file's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufround.arch.spec import Output, Piece
from ggufround.tune.sources import Place

I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Segment:
    """Rows [first, first + len(rows)) of a parameter, seen as a matrix, become the rows `rows` of matrix number
    `matrix` (an expert) of the output, which has `height` rows a matrix. `columns`: the parameter's column that becomes
    each of the output's, where their order is another."""

    parameter: str
    first: int
    output: str
    matrix: int
    height: int
    rows: I64
    columns: tuple[int, ...] = ()

    @property
    def last(self) -> int:
        """One past the last row of the parameter."""
        return self.first + len(self.rows)


def segments(places: Mapping[str, tuple[Place, ...]], outputs: Sequence[Output]) -> tuple[Segment, ...]:
    """The segments of a block's parameters, in their order; rows that no output takes are left out.

    places: of one block (`Skeleton.places`); outputs: those that may be meant, matrices and stacks of matrices.
    """
    takers: dict[str, list[tuple[Output, int, Piece]]] = {}
    for output in outputs:
        if len(output.shape) > 1:
            start = 0
            for piece in output.pieces:
                if piece.moves_rows_only:
                    takers.setdefault(piece.source.name, []).append((output, start, piece))
                start += piece.rows
    return tuple(
        segment
        for several in places.values()
        for place in several
        for taker in takers.get(place.source, ())
        for segment in _shared(place, *taker)
    )


def source_rows(piece: Piece) -> I64:
    """The source's row that becomes each row of the piece: what `via` does to row numbers."""
    if piece.columns:
        return np.arange(piece.first, piece.first + piece.rows)
    numbers = np.arange(piece.rows, dtype=np.float32)[:, None]
    moved = numbers if piece.via is None else np.concatenate(
        [piece.via(np.ascontiguousarray(numbers[i : i + piece.granule])) for i in range(0, piece.rows, piece.granule)]
    )  # fmt: skip
    rows = moved[:, 0].astype(np.int64)
    if not np.array_equal(np.sort(rows), np.arange(piece.rows)):
        raise AssertionError(f"{piece.source.name}: the transform is more than another order of rows")
    return piece.first + rows


def _shared(place: Place, output: Output, start: int, piece: Piece) -> Iterator[Segment]:
    """The rows that a place and a piece have in common, in runs that are consecutive in the parameter and do not
    cross from one matrix of the output to the next."""
    to = np.full(max(int(place.index.max()), piece.first + piece.rows - 1) + 1, -1, np.int64)
    to[source_rows(piece)] = start + np.arange(piece.rows)
    rows = to[place.index]
    height = output.shape[-2]
    matrix = np.where(rows < 0, -1, rows // height)
    for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(matrix)) + 1):
        number = int(matrix[run[0]])
        if number >= 0:
            first = place.first + int(run[0])
            yield Segment(
                place.parameter, first, output.name, number, height, rows[run] - number * height, piece.columns
            )
