"""What every codec checks of its arguments: kernels themselves read and write without looking at bounds."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
from numpy.typing import DTypeLike

from ggufround_kernels.codec import F32, U8, Codec, Search
from ggufround_kernels.rounded import Rounded


def checked(name: str, codec: Codec) -> Codec:
    """The codec with its arguments checked: wrong shapes, dtypes, layouts or names raise ValueError before any work."""
    block, nbytes = codec.block, codec.nbytes

    def quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
        rows, n = _matrix(name, "weights", weights, np.float32, block)
        _check_search(name, importance, search, n)
        _expect(name, "out", out, np.uint8, (rows, n // block * nbytes), writes=True)
        codec.quantize(weights, importance, search, out)

    def search(weights: F32, importance: F32 | None, search: Search) -> Rounded:
        _, n = _matrix(name, "weights", weights, np.float32, block)
        _check_search(name, importance, search, n)
        return codec.search(weights, importance, search)

    @cache
    def example() -> Rounded:
        """One block, for the fields that this type has; the tuner has always searched before it packs."""
        return codec.search(np.zeros((1, block), np.float32), None, "opt-rtn")

    def pack(rounded: Rounded, out: U8) -> None:
        rows, n = _matrix(name, "codes", rounded.codes, np.uint8, block)
        for field, given, like in zip(Rounded._fields, rounded, example(), strict=True):
            if like is not None:
                _expect(name, field, given, like.dtype, (rows, n // block * like.shape[1]))
        _expect(name, "out", out, np.uint8, (rows, n // block * nbytes), writes=True)
        codec.pack(rounded, out)

    def unpack(packed: U8, out: F32) -> None:
        rows, size = _matrix(name, "packed rows", packed, np.uint8, nbytes)
        _expect(name, "out", out, np.float32, (rows, size // nbytes * block), writes=True)
        codec.unpack(packed, out)

    return Codec(block, nbytes, quantize, search, pack, unpack, codec.uses_importance)


def _matrix(name: str, what: str, given: Any, dtype: DTypeLike, multiple: int) -> tuple[int, int]:
    shape: tuple[int, ...] = np.shape(given)
    if len(shape) != 2 or shape[1] % multiple:
        raise ValueError(f"{name}: {what} of shape {shape}; must be [rows, n] with n a multiple of {multiple}")
    _expect(name, what, given, dtype, shape)
    return shape[0], shape[1]


def _check_search(name: str, importance: F32 | None, search: str, n: int) -> None:
    if importance is not None:
        _expect(name, "importance", importance, np.float32, (n,))
    if search not in get_args(Search):
        raise ValueError(f"{name}: search {search!r}; must be one of {', '.join(get_args(Search))}")


def _expect(name: str, what: str, given: Any, dtype: DTypeLike, shape: tuple[int, ...], writes: bool = False) -> None:
    if not isinstance(given, np.ndarray) or given.dtype != dtype or given.shape != shape:
        found = f"{given.dtype} {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
        raise ValueError(f"{name}: {what} is {found}; must be {np.dtype(dtype)} {shape}")
    if not given.flags.c_contiguous:
        raise ValueError(f"{name}: {what} is not C-contiguous; pass np.ascontiguousarray(...)")
    if writes and not given.flags.writeable:
        raise ValueError(f"{name}: {what} is read-only; pass a writable array")
