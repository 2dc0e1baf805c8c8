"""Rows of weights as float32, a slab at a time, through buffers that the caller reuses.

Reads are positional (preadv) into one buffer, so any number of threads share the open files and no page of a source
is ever mapped: resident memory is the caller's buffers. FP8 weights are multiplied by their scales in float32.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError
from ggufround_kernels import CODECS, widen_bf16

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def _fp8_table(exponent_bits: int, has_infinity: bool) -> F32:
    """The float32 value of all 256 codes. E4M3 (OCP "FN") has no infinity and NaN only at 0x7F; E5M2 is IEEE-like."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if has_infinity:
        values[exponent == (1 << exponent_bits) - 1] = np.nan
        values[((1 << exponent_bits) - 1) << mantissa_bits] = np.inf
    else:
        values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _fp8_table(4, has_infinity=False)
_E5M2 = _fp8_table(5, has_infinity=True)


def _from_f64(raw: U8, out: F32) -> None:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which the caller refuses by name
        np.copyto(out, raw.view("<f8"), casting="same_kind")


def _from_e8m0(raw: U8, out: F32) -> None:
    np.ldexp(np.float32(1), raw.astype(np.int32) - 127, out=out)
    out[raw == 255] = np.nan


DECODERS: dict[str, Callable[[U8, F32], None]] = {  # (stored rows [n, bytes of a row], out [n, columns])
    "F32": lambda raw, out: np.copyto(out, raw.view("<f4")),
    "F16": lambda raw, out: np.copyto(out, raw.view("<f2")),
    "BF16": widen_bf16,
    "F64": _from_f64,
    "F8_E4M3": lambda raw, out: np.copyto(out, _E4M3[raw]),
    "F8_E5M2": lambda raw, out: np.copyto(out, _E5M2[raw]),
    "F8_E8M0": _from_e8m0,
    **{name: codec.unpack for name, codec in CODECS.items()},
}


def check_readable(ref: TensorRef) -> None:
    """Raises UnsupportedError for a tensor whose values are not weights: integers, booleans, packed codes."""
    if ref.dtype not in DECODERS:
        raise UnsupportedError(
            f"{ref.name} in {ref.path.name} is stored as {ref.dtype}, which cannot be read as weights; "
            f"can be: {', '.join(DECODERS)}"
        )


class Reader:
    """The open files of a checkpoint; thread-safe. Use it as a context manager, or `close` it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._lock = threading.Lock()
        self._fds: dict[Path, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files; a later read opens them again."""
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def raw_rows(self, ref: TensorRef, first: int, count: int, scratch: U8) -> memoryview:
        """The stored bytes of rows [first, first + count), in `scratch` (uint8, long enough for them).

        Raises InputError naming the tensor if the file cannot be read or has become shorter.
        """
        assert first >= 0, first
        assert first + count <= ref.rows, (ref, first, count)
        view = scratch.data[: count * _row_bytes(ref)]
        self._pread(ref, first * _row_bytes(ref), view)
        return view

    def read_rows(self, ref: TensorRef, first: int, count: int, out: F32, scratch: U8) -> memoryview:
        """Rows [first, first + count) of `ref` to `out` (C-contiguous float32, count * columns values).

        Returns all bytes that they came from, for hashing: the stored rows and, for a scaled tensor, the scales
        after them. They lie in `scratch`, or in a new buffer where `scratch` is shorter than `scratch_bytes`.
        Raises InputError as `raw_rows` does and UnsupportedError as `check_readable` does.
        """
        check_readable(ref)
        assert out.size == count * ref.columns, (ref, count, out.shape)
        need = scratch_bytes(ref, count)
        buffer = scratch if scratch.size >= need else np.empty(need, np.uint8)
        view = self.raw_rows(ref, first, count, buffer)
        size = len(view)
        weights = out.reshape(count, ref.columns)
        DECODERS[ref.dtype](buffer[:size].reshape(count, -1), weights)
        if ref.scale is None:
            return view
        size += self._apply_scale(ref, ref.scale, first, weights, buffer[size:])
        return buffer.data[:size]

    def _apply_scale(self, ref: TensorRef, scale: TensorRef, first: int, weights: F32, buffer: U8) -> int:
        """Multiplies rows `first` .. by their scales; returns how many bytes of scales were read to `buffer`."""
        high, wide = ref.scale_block[0] or ref.rows, ref.scale_block[1] or ref.columns
        top, bottom, across = _scale_span(ref, first, len(weights))
        each = scale.nbytes // (scale.rows * scale.columns)
        raw = buffer[: (bottom - top) * across * each]
        self._pread(scale, top * across * each, raw.data)
        values = np.empty((bottom - top, across), np.float32)
        DECODERS[scale.dtype](raw.copy().reshape(bottom - top, -1), values)  # a copy is aligned
        values = values[np.arange(first, first + len(weights)) // high - top]
        for k in range(across):
            weights[:, k * wide : (k + 1) * wide] *= values[:, k : k + 1]
        return raw.size

    def _pread(self, ref: TensorRef, start: int, view: memoryview) -> None:
        """Fill `view` from byte `start` of the tensor."""
        try:
            fd = self._open(ref.path)
            done = 0
            while done < len(view):
                got = os.preadv(fd, [view[done:]], ref.offset + start + done)
                if not got:
                    raise InputError(
                        f"{ref.path} ends within tensor {ref.name}: it was cut while it was read; restore it and run "
                        f"the same command again"
                    )
                done += got
        except OSError as error:
            raise InputError(f"cannot read tensor {ref.name} from {ref.path}: {error.strerror}") from error

    def _open(self, path: Path) -> int:
        with self._lock:
            if path not in self._fds:
                self._fds[path] = os.open(path, os.O_RDONLY)
            return self._fds[path]


def scratch_bytes(ref: TensorRef, count: int) -> int:
    """Bytes of scratch with which `read_rows` allocates nothing, for `count` rows of `ref`."""
    size = count * _row_bytes(ref)
    if ref.scale is None:
        return size
    high = ref.scale_block[0] or ref.rows
    across = -(-ref.columns // (ref.scale_block[1] or ref.columns))
    each = ref.scale.nbytes // (ref.scale.rows * ref.scale.columns)
    return size + (count // high + 2) * across * each


def _row_bytes(ref: TensorRef) -> int:
    return ref.nbytes // ref.rows


def _scale_span(ref: TensorRef, first: int, count: int) -> tuple[int, int, int]:
    """First and last row (exclusive) of the scales of some rows, and scales in such a row."""
    high = ref.scale_block[0] or ref.rows
    across = -(-ref.columns // (ref.scale_block[1] or ref.columns))
    return first // high, -(-(first + count) // high), across
