"""The files of a run until they are whole: OUT.partial, locked, written anywhere from any thread, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from ggufround.errors import UsageError, not_written

Buffer = bytes | memoryview


class OutFile(Protocol):
    """A file to be written: its final path, its name until then, its size in bytes, and what it begins with."""

    @property
    def path(self) -> Path: ...
    @property
    def partial(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def head(self) -> bytes: ...


class PartialFiles:
    """The open .partial files, locked, each beginning with its head. With `resume` they must exist with the right size.

    Raises UsageError where another run has them, OutputError where they cannot be written.
    """

    def __init__(self, files: Sequence[OutFile], resume: bool) -> None:
        self.files = files
        self._fds: list[int] = []
        try:
            for file in files:
                self._fds.append(os.open(file.partial, os.O_RDWR | (0 if resume else os.O_CREAT), 0o666))
                _claim(self._fds[-1], file.partial)
            for fd, file in zip(self._fds, files, strict=True):
                if not resume:
                    os.ftruncate(fd, 0)
                    os.ftruncate(fd, file.size)
                _write_all(fd, file.head, 0)
        except UsageError:
            self.abandon()
            raise
        except OSError as error:
            self.abandon()
            raise not_written(error, f"cannot write {file.partial}") from error

    def write(self, number: int, data: Buffer, offset: int, what: str) -> None:
        """Puts `data`, a part of `what`, at a byte of file `number`. Raises OutputError; the partial file stays."""
        try:
            _write_all(self._fds[number], data, offset)
        except OSError as error:
            raise not_written(error, f"cannot write {what}") from error

    def read(self, number: int, size: int, offset: int) -> bytes:
        """Bytes as they are in file `number` now."""
        return os.pread(self._fds[number], size, offset)

    def sync(self) -> None:
        """Has the disk take what was written so far, while something else is done. Raises OutputError."""
        for fd, file in zip(self._fds, self.files, strict=True):
            try:
                os.fsync(fd)
            except OSError as error:
                raise not_written(error, f"cannot write {file.partial}") from error

    def close(self) -> None:
        """Syncs, and gives the files their names. Nothing bears the name before. Raises OutputError."""
        try:
            self.sync()
            for file in self.files:
                os.replace(file.partial, file.path)
            for folder in {f.path.parent for f in self.files}:
                sync_folder(folder)
        except OSError as error:
            raise not_written(error, f"cannot finish {file.path}") from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes the files as they are; a later run can go on with them."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def put(path: Path, data: bytes) -> None:
    """Writes a small file whole, under a name of its own until it is. Raises OutputError."""
    part = path.with_name(path.name + ".partial")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise not_written(error, f"cannot write {path}") from error


def remove(paths: Iterable[Path]) -> None:
    """Deletes the files that exist."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Has the disk take the names in a folder."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: Buffer, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _claim(fd: int, path: Path) -> None:
    """Locks a file until it is closed, by whatever death. Raises UsageError where another run has it.

    That run may have finished and renamed the file between our opening it and its unlocking it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = path.exists() and os.path.samestat(path.stat(), os.fstat(fd))
    except BlockingIOError:
        ours = False
    except OSError:  # a file system without locks
        return
    if not ours:
        raise UsageError(f"another run is writing {path}; wait until it has ended, or choose another name")
