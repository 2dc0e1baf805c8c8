"""Rows of weights as float32, a slab at a time, through buffers that the caller reuses.

Reads are positional (preadv) into one buffer, so any number of threads share the open files and no page of a source
is ever mapped: resident memory is the caller's buffers. FP8 weights are multiplied by their scales in float32. Packed
weights are read from all their members; where these are transposed, a slab is a short piece of each of their rows.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ggufround.checkpoint.decoding import DECODERS, F32, U8, decoded
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.checkpoint.unpacking import WORD, Block, Parts, block_of, dequantise, unpack
from ggufround.errors import InputError, UnsupportedError

SHORT, CHUNK = 8192, 1 << 18  # bytes: a row that is read whole though a piece of it is wanted, and of such rows at once

__all__ = ["DECODERS", "Parts", "Reader", "check_readable", "scratch_bytes"]


def check_readable(ref: TensorRef) -> None:
    """Raises UnsupportedError for a tensor whose values are not weights: integers, booleans, packed codes."""
    if ref.packing is None and ref.dtype not in DECODERS:
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
        after them; of a packed one, what its members hold. They lie in `scratch`, or in a new buffer where `scratch` is
        shorter than `scratch_bytes`.
        Raises InputError as `raw_rows` does and UnsupportedError as `check_readable` does.
        """
        check_readable(ref)
        assert out.size == count * ref.columns, (ref, count, out.shape)
        if ref.packing is not None:
            parts, view = self.read_parts(ref, first, count, scratch)
            dequantise(ref.packing, parts, out.reshape(count, ref.columns))
            return view
        buffer = _enough(scratch, scratch_bytes(ref, count))
        view = self.raw_rows(ref, first, count, buffer)
        size = len(view)
        weights = out.reshape(count, ref.columns)
        DECODERS[ref.dtype](buffer[:size].reshape(count, -1), weights)
        if ref.scale is None:
            return view
        size += self._apply_scale(ref, ref.scale, first, weights, buffer[size:])
        return buffer.data[:size]

    def read_parts(self, ref: TensorRef, first: int, count: int, scratch: U8) -> tuple[Parts, memoryview]:
        """Rows [first, first + count) of a packed weight, not yet dequantised, and the bytes that they came from, as
        `read_rows` returns them. Raises InputError as `raw_rows` does and for a member that contradicts the others."""
        assert ref.packing is not None, ref.name
        assert 0 <= first < first + count <= ref.rows, (ref.name, first, count)
        buffer = _enough(scratch, scratch_bytes(ref, count))
        blocks, used = [], 0
        for member in ref.packing.members:
            block = block_of(ref.packing, member, first, count)
            raw = buffer[used : used + block.nbytes].reshape(block.bottom - block.top, -1)
            self._read_block(member.ref, block, raw)
            blocks.append(raw)
            used += block.nbytes
        return unpack(ref, blocks, first, count), buffer.data[:used]

    def factor(self, ref: TensorRef) -> np.float32:
        """What the codes and scales of a packed weight are multiplied by as a whole."""
        return self.read_parts(ref, 0, 1, np.empty(0, np.uint8))[0].factor

    def _read_block(self, ref: TensorRef, block: Block, raw: U8) -> None:
        width = block.row_bytes
        if raw.shape[1] == width:
            self._pread(ref, block.top * width, raw.reshape(-1).data)
        elif width > SHORT:
            for row, into in enumerate(raw, block.top):
                self._pread(ref, row * width + block.left, into.data)
        else:  # short rows share pages: a copy too many costs less than a call for each
            whole = np.empty((CHUNK // width, width), np.uint8)
            for start in range(0, len(raw), len(whole)):
                part = whole[: len(raw) - start]
                self._pread(ref, (block.top + start) * width, part.reshape(-1).data)
                raw[start : start + len(part)] = part[:, block.left : block.right]

    def _apply_scale(self, ref: TensorRef, scale: TensorRef, first: int, weights: F32, buffer: U8) -> int:
        """Multiplies rows `first` .. by their scales; returns how many bytes of scales were read to `buffer`."""
        high, wide = ref.scale_block[0] or ref.rows, ref.scale_block[1] or ref.columns
        top, bottom, across = _scale_span(ref, first, len(weights))
        each = scale.nbytes // (scale.rows * scale.columns)
        raw = buffer[: (bottom - top) * across * each]
        self._pread(scale, top * across * each, raw.data)
        values = decoded(raw.reshape(bottom - top, -1), scale.dtype, across)
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
    if ref.packing is not None:
        cuts = (0, min(WORD - 1, ref.rows - count))  # the second touches one word more
        return max(sum(block_of(ref.packing, m, cut, count).nbytes for m in ref.packing.members) for cut in cuts)
    size = count * _row_bytes(ref)
    if ref.scale is None:
        return size
    high = ref.scale_block[0] or ref.rows
    across = -(-ref.columns // (ref.scale_block[1] or ref.columns))
    each = ref.scale.nbytes // (ref.scale.rows * ref.scale.columns)
    return size + (count // high + 2) * across * each


def _enough(scratch: U8, size: int) -> U8:
    return scratch if scratch.size >= size else np.empty(size, np.uint8)


def _row_bytes(ref: TensorRef) -> int:
    return ref.nbytes // ref.rows


def _scale_span(ref: TensorRef, first: int, count: int) -> tuple[int, int, int]:
    """First and last row (exclusive) of the scales of some rows, and scales in such a row."""
    high = ref.scale_block[0] or ref.rows
    across = -(-ref.columns // (ref.scale_block[1] or ref.columns))
    return first // high, -(-(first + count) // high), across
