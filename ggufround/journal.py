"""The journal beside OUT.partial: which slabs are done, with the checksums of what was read and written.

One line an entry: the CRC-32 of the rest, then JSON. The first line ties the journal to its run by a fingerprint of
the source's files and of everything the plan decided. A line that was cut off by a kill ends the reading; a slab
whose bytes in OUT.partial no longer match its checksum is done again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from ggufround.errors import not_written


class Done(NamedTuple):
    """One finished slab: `source` is the SHA-256 of the bytes read, `crcs` the CRC-32 of the rows for each target."""

    slab: int
    source: str
    crcs: tuple[int, ...]


class Journal:
    """Appends entries; `done` and `absmax` hold what was read back when it was opened."""

    def __init__(self, path: Path, fingerprint: str, resume: bool) -> None:
        self.path = path
        self.done: dict[int, Done] = {}
        self.absmax: dict[int, float] = {}
        kept = 0
        if resume:
            for end, entry in _entries(path):
                if "run" not in entry:
                    self._take(entry)
                kept = end
        try:
            self._file = _open(path, kept)
        except OSError as error:
            raise not_written(error, f"cannot write {path}") from error
        if not kept:
            self._append({"run": fingerprint})

    def add(self, done: Done) -> None:
        self.done[done.slab] = done
        self._append({"slab": done.slab, "source": done.source, "crcs": done.crcs})

    def add_absmax(self, slab: int, value: float) -> None:
        """The largest magnitude of a slab, for types with a global scale (two reads, the first is kept here)."""
        self.absmax[slab] = value
        self._append({"absmax": slab, "value": value})

    def close(self) -> None:
        self._file.close()

    def _take(self, entry: dict[str, Any]) -> None:
        if "absmax" in entry:
            self.absmax[entry["absmax"]] = entry["value"]
        else:
            self.done[entry["slab"]] = Done(entry["slab"], entry["source"], tuple(entry["crcs"]))

    def _append(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry)
        line = f"{zlib.crc32(text.encode()):08x} {text}\n".encode()
        try:
            while line:  # unbuffered: nothing is left to fail when the file is closed
                line = line[self._file.write(line) :]
        except OSError as error:
            raise not_written(error, f"cannot write {self.path}") from error


def fingerprint_of(path: Path) -> str | None:
    """The run that a journal belongs to; None where there is no readable journal."""
    for _, entry in _entries(path):
        return entry.get("run")
    return None


def _open(path: Path, kept: int) -> FileIO:
    file = FileIO(path, "ab")
    file.truncate(kept)
    return file


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(end offset, entry) of every sound line up to the first that is not."""
    try:
        file = path.open("rb")
    except OSError:
        return
    end = 0
    with file:
        for line in file:
            crc, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or crc != f"{zlib.crc32(text):08x}".encode():
                return
            end += len(line)
            yield end, json.loads(text)
