"""Hidden states of all calibration sequences: in memory, or in a file where they would not fit.

A file is read and written with positioned calls, not mapped: mapped pages would count as this process's memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ggufround.errors import OutputError, not_written


class Activations:
    """float32 [sequences, tokens, hidden], handed out and taken by sequence numbers, on the CPU."""

    def __init__(self, shape: tuple[int, int, int], folder: Path | None = None) -> None:
        """With `folder` they lie in an unnamed file there. Raises OutputError where that has no room."""
        self.shape = shape
        self._size = 4 * shape[1] * shape[2]
        self._memory = torch.empty(shape) if folder is None else None
        self._file = None
        if folder is not None:
            try:
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
                os.posix_fallocate(self._file.fileno(), 0, self.nbytes)
            except OSError as error:
                self.close()
                raise self._no_room(error) from error

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self._size

    def get(self, numbers: Sequence[int]) -> Tensor:
        """float32 [len(numbers), tokens, hidden], a copy."""
        if self._memory is not None:
            return self._memory[list(numbers)]
        assert self._file is not None, "closed"
        out = np.empty((len(numbers), *self.shape[1:]), np.float32)
        for row, number in zip(out, numbers, strict=True):
            left, place = _bytes(row), number * self._size
            while left:
                done = os.preadv(self._file.fileno(), [left], place)
                assert done > 0, "allocated whole"
                left, place = left[done:], place + done
        return torch.from_numpy(out)

    def put(self, numbers: Sequence[int], values: Tensor) -> None:
        """Keeps float32 [len(numbers), tokens, hidden]. Raises OutputError where the disk is full."""
        values = values.detach().to("cpu", torch.float32)
        if self._memory is not None:
            self._memory[list(numbers)] = values
            return
        assert self._file is not None, "closed"
        try:
            for number, row in zip(numbers, values.contiguous().numpy(), strict=True):
                left, place = _bytes(row), number * self._size
                while left:
                    done = os.pwritev(self._file.fileno(), [left], place)
                    left, place = left[done:], place + done
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> OutputError:
        return not_written(error, f"cannot keep {self.nbytes / 1e9:.1f} GB of activations")

    def close(self) -> None:
        """Frees memory or file."""
        self._memory = None
        if self._file is not None:
            self._file.close()


def runs(count: int, size: int) -> Iterator[range]:
    """Sequence numbers 0 .. count in runs of at most `size`."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def _bytes(row: np.ndarray[Any, np.dtype[np.float32]]) -> memoryview:
    return row.reshape(-1).view(np.uint8).data
