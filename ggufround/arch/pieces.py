"""What a rule takes of a checkpoint tensor, as pieces, and the shape that they make together."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from ggufround.arch.config import shape_of
from ggufround.arch.spec import F32, Architecture, Config, Piece, Rule, Transform
from ggufround.arch.transforms import on_vector
from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import InputError

Shape = tuple[int, ...]


def pieces_of(arch: Architecture, rule: Rule, ref: TensorRef, config: Config) -> tuple[tuple[Piece, ...], Shape]:
    """The pieces that `rule` takes of one source (of a stack's one expert), and the shape of them together.

    Raises InputError for a tensor of another shape than config.json makes it.
    """
    expected = shape_of(config, rule.shape, arch.sizes)
    transform = rule.via(config) if rule.via else None
    if rule.pad and len(ref.shape) == len(expected) == 2 and 0 < ref.rows < expected[0] and ref.columns == expected[1]:
        return _padded(ref, expected[0] - ref.rows), expected
    longer = rule.trim and len(ref.shape) == len(expected) and ref.shape[0] > expected[0]
    if ref.shape[longer:] != expected[longer:]:
        raise InputError(
            f"{ref.path.name}: tensor {ref.name} has shape {list(ref.shape)}, config.json makes it {list(expected)} "
            f"({rule.shape})"
        )
    made = shape_of(config, rule.makes, arch.sizes) if rule.makes else None
    if len(expected) == 1:
        return _of_vector(rule, ref, config, transform, made)
    if made is not None and len(expected) == 3 and made == (expected[0], expected[2]):
        expected, made = made, None  # matrices of one row each (a convolution by columns) are the rows of one matrix
    runs = list(_runs(rule, expected, config))
    if made is not None and transform is None and made[-1] == expected[-1]:
        assert sum(rows for _, rows in runs) == prod(made[:-1]), rule
        return tuple(Piece(ref, first, rows) for first, rows in runs), made  # rows as they are, counted otherwise
    if made is not None:
        return tuple(_solid(ref, runs, made, transform)), made
    via, granule, back, columns = transform or (None, 1, None, ())
    assert all(rows % granule == 0 for _, rows in runs), rule
    matrices = expected[0] if len(expected) == 3 else 1
    if len(expected) > 3:
        return (Piece(ref, 0, ref.rows, granule, via, back=back),), expected
    shape = (*expected[:-2], sum(rows for _, rows in runs) // matrices, expected[-1])
    return tuple(Piece(ref, first, rows, granule, via, back=back, columns=columns) for first, rows in runs), shape


def _padded(ref: TensorRef, lacking: int) -> tuple[Piece, ...]:
    """All rows, the last of which brings zeros along."""
    high = 1 + lacking
    last = Piece(ref, ref.rows - 1, high, high, partial(_with_zeros, high=high), 1, _first)
    return (Piece(ref, 0, ref.rows - 1), last) if ref.rows > 1 else (last,)


def _with_zeros(row: F32, high: int) -> F32:
    out: F32 = np.zeros((high, row.shape[1]), np.float32)
    out[0] = row[0]
    return out


def _first(rows: F32) -> F32:
    return rows[:1]


def _runs(rule: Rule, expected: Shape, config: Config) -> Iterator[tuple[int, int]]:
    """(first, rows) of each run of the source's rows, matrix by matrix."""
    if len(expected) > 3:  # a convolution, which no rule takes apart
        yield 0, prod(expected[:-1])
        return
    height = expected[-2]
    k, n = rule.part
    assert height % n == 0, rule
    inside = list(rule.runs(config)) if rule.runs else [(k * (height // n), height // n)]
    for matrix in range(expected[0] if len(expected) == 3 else 1):
        for first, rows in inside:
            assert 0 <= first < first + rows <= height, (rule, first, rows)
            yield matrix * height + first, rows


def _solid(ref: TensorRef, runs: list[tuple[int, int]], made: Shape, transform: Transform | None) -> Iterator[Piece]:
    """A piece a run, whose shape `transform` changes (without one: the same elements in their order)."""
    rows, columns = prod(made[:-1]) // len(runs), made[-1]
    for first, read in runs:
        via = transform.function if transform else partial(_reshaped, shape=(rows, columns))
        back = transform.back if transform else partial(_reshaped, shape=(read, ref.columns))
        yield Piece(ref, first, rows, rows, via, read, back)


def _of_vector(
    rule: Rule, ref: TensorRef, config: Config, transform: Transform | None, made: Shape | None
) -> tuple[tuple[Piece, ...], Shape]:
    """A vector is read as one row; `runs` takes elements of it."""
    k, n = rule.part
    size = ref.columns
    runs = list(rule.runs(config)) if rule.runs else [(k * (size // n), size // n)]
    chosen = np.concatenate([np.arange(first, first + count) for first, count in runs])
    function = transform.function if transform else None
    if made is None and len(chosen) == size and (chosen == np.arange(size)).all():
        via = function and partial(on_vector, function)
        undo = transform.back if transform else None
        return (Piece(ref, 0, 1, 1, via, back=undo and partial(on_vector, undo)),), ref.shape
    shape = made or (len(chosen),)
    inverse = transform.back if transform else None
    return (
        Piece(
            ref, 0, prod(shape[:-1]), prod(shape[:-1]),
            partial(_elements, chosen=chosen, function=function, shape=(prod(shape[:-1]), shape[-1])), 1,
            None if transform and inverse is None else
            partial(_elements_back, chosen=chosen, function=inverse, size=size),
        ),
    ), shape  # fmt: skip


def _reshaped(rows: F32, shape: Shape) -> F32:
    return rows.reshape(shape)


def _elements(row: F32, chosen: NDArray[np.int64], function: object, shape: Shape) -> F32:
    values = row.reshape(-1)[chosen].reshape(-1, 1)
    return (function(values) if callable(function) else values).reshape(shape)


def _elements_back(rows: F32, chosen: NDArray[np.int64], function: object, size: int) -> F32:
    out: F32 = np.zeros((1, size), np.float32)
    values = rows.reshape(-1, 1)
    out[0, chosen] = (function(values) if callable(function) else values).reshape(-1)
    return out
