"""What happens to weights between a checkpoint and a GGUF file: named pure functions on float32 rows.

RoPE. transformers rotates column j of a head together with column j + d/2 ("half" order); llama.cpp, for the
architectures of Llama's family, rotates columns 2j and 2j + 1 ("interleaved"). The rows of q and k are therefore
regrouped head by head, so that both compute the same dot products (`LlamaModel.permute` in conversion/llama.py). The
other architectures keep the half order, which llama.cpp knows as "neox".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ggufround.arch.config import head_dim, n_head, n_head_kv
from ggufround.arch.spec import F32, Config, Transform
from ggufround.errors import InputError


def interleave_heads(rows: F32, head: int) -> F32:
    """Rows [k * head, columns]: within each head, row j of the first half is followed by row j of the second."""
    return rows.reshape(-1, 2, head // 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def add_one(rows: F32) -> F32:
    """Gemma's norms multiply by 1 + weight; llama.cpp multiplies by what is stored."""
    return rows + np.float32(1)


def turned(rows: F32) -> F32:
    return np.ascontiguousarray(rows.T)


def on_vector(function: Callable[[F32], F32], vector: F32) -> F32:
    """Apply a function of rows to a bias, which is read as one row [1, n], as if it were a column [n, 1]."""
    return function(vector.reshape(-1, 1)).reshape(vector.shape)


def interleave_rope(config: Config) -> Transform:
    head = head_dim(config)
    if head % 2:
        raise InputError(f"config.json: heads of {head} columns cannot be rotated in pairs")
    return Transform(partial(interleave_heads, head=head), head)


def norm_plus_one(config: Config) -> Transform:
    return Transform(add_one)


def decay(logarithms: F32) -> F32:
    """Rates of decay are trained as logarithms; llama.cpp multiplies by what is stored."""
    return (-np.exp(logarithms.astype(np.float64))).astype(np.float32)


def decay_logarithm(rates: F32) -> F32:
    return np.log(-rates.astype(np.float64)).astype(np.float32)


def transpose(config: Config) -> Transform:
    """Matrices that are kept [inputs, outputs], as GPT-2's Conv1D does, or are to be so."""
    return Transform(turned, back=turned)


def query_key_value(config: Config) -> list[tuple[int, int]]:
    """Runs of a fused matrix that holds, for each key head, its queries, the key and the value: all queries first, then
    all keys, then all values."""
    head, keys = head_dim(config), n_head_kv(config)
    if n_head(config) % keys:
        raise InputError(f"config.json: {n_head(config)} heads cannot share {keys} keys evenly")
    each = n_head(config) // keys
    parts = ((0, each), (each, 1), (each + 1, 1))
    return [((group * (each + 2) + first) * head, count * head) for first, count in parts for group in range(keys)]


def take_rows(rows: F32, order: NDArray[np.int64]) -> F32:
    """Rows [k * len(order), columns], each run of len(order) in this order."""
    return rows.reshape(-1, len(order), rows.shape[-1])[:, order].reshape(rows.shape)


def take_columns(rows: F32, order: NDArray[np.int64]) -> F32:
    return np.ascontiguousarray(rows[:, order])


def in_columns(order: NDArray[np.int64]) -> Transform:
    """Columns in another order: column j was number order[j]."""
    back = partial(take_columns, order=np.argsort(order))
    return Transform(partial(take_columns, order=order), back=back, columns=tuple(order.tolist()))


def part_of_rows(rows: F32, part: slice) -> F32:
    return rows[part]


def part_of_columns(rows: F32, part: slice) -> F32:
    return rows[:, part]


def part_of_columns_as_rows(rows: F32, part: slice) -> F32:
    return rows[:, part].T


def _back_to_rows(taken: F32, part: slice, times: int) -> F32:
    out: F32 = np.zeros((len(taken) * times, taken.shape[1]), np.float32)
    out[part] = taken
    return out


def _back_to_columns(taken: F32, part: slice, times: int) -> F32:
    return _back_to_rows(taken.T, part, times).T


def _back_from_rows_to_columns(taken: F32, part: slice, times: int) -> F32:
    return _back_to_rows(taken, part, times).T


def _taking(part: slice, times: int, of: str) -> Transform:
    there, back = {
        "rows": (part_of_rows, _back_to_rows),
        "columns": (part_of_columns, _back_to_columns),
        "transposed": (part_of_columns_as_rows, _back_from_rows_to_columns),
    }[of]
    return Transform(partial(there, part=part), 1, partial(back, part=part, times=times))


def every(step: int, first: int, of: str) -> Callable[[Config], Transform]:
    """For rules with `makes`: every `step`-th of the "rows" or "columns", or of the columns, "transposed"."""
    made = _taking(slice(first, None, step), step, of)
    return lambda config: made


def share(k: int, n: int, of: str, size: Callable[[Config], int]) -> Callable[[Config], Transform]:
    """Likewise: the k-th of n runs of `size`."""
    return lambda config: _taking(slice(k * size(config), (k + 1) * size(config)), n, of)
