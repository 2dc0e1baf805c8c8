"""Whether an earlier, unfinished run is this run, and which of its work still stands."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ggufround.errors import UsageError
from ggufround.formats.spec import Layout
from ggufround.journal import Done, Journal, fingerprint_of
from ggufround.planning import Plan, describe

if TYPE_CHECKING:
    from ggufround.slab_work import Work


def journal_beside(layouts: tuple[Layout, ...]) -> Path:
    """The journal's path: beside the first file."""
    first = layouts[0].files[0].path
    return first.with_name(first.name + ".journal")


def fingerprint(plan: Plan, layouts: tuple[Layout, ...]) -> str:
    """SHA-256 over all that decides the bytes: the source's files as they stand, the plan, the headers."""
    total = hashlib.sha256(json.dumps(describe(plan), sort_keys=True).encode())
    for path in sorted({ref.path for t in plan.checkpoint.tensors.values() for ref in t.stored}):
        state = path.stat()
        total.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    for layout in layouts:
        total.update(layout.identity())
    return total.hexdigest()


def may_resume(journal: Path, layouts: tuple[Layout, ...], identity: str, fresh: bool) -> bool:
    """Whether this run's unfinished files are there and wanted: with `fresh` they will be written over.

    Raises UsageError rather than discard what another run has done.
    """
    files = [f for layout in layouts for f in layout.files]
    if fresh:
        return False
    owner = fingerprint_of(journal)
    if owner is None:
        return False
    if owner != identity:
        raise UsageError(
            f"{journal} belongs to an unfinished run with another source, type or option; repeat that command to "
            f"finish it, or add --fresh to discard it"
        )
    return all(f.partial.exists() and f.partial.stat().st_size == f.size for f in files)


def drop_damaged(work: Work, journal: Journal) -> None:
    """Forgets every journalled slab whose bytes in the partial files are not what was written."""
    for index, done in list(journal.done.items()):
        if index >= len(work.slabs) or not _stands(work, done):
            del journal.done[index]


def _stands(work: Work, done: Done) -> bool:
    slab, name = work.slabs[done.slab], work.output(done.slab).name
    return len(done.crcs) == len(work.sinks) and all(
        zlib.crc32(sink.read(name, slab.first, slab.rows)) == crc
        for sink, crc in zip(work.sinks, done.crcs, strict=True)
    )
