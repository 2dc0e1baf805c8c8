"""Preflight: all that a file system and a memory budget can refuse before the first weight is read."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ggufround import measure
from ggufround.checkpoint.reading import scratch_bytes
from ggufround.errors import OutputError, UsageError
from ggufround.formats.spec import Layout
from ggufround.planning import Plan, Slab, Target, rows_of
from ggufround.resuming import journal_beside

OURS = (".gguf", ".partial", ".journal", ".gguf.tuning.jsonl")  # ends of names that a run may have left
WORKSPACE_EXTRA = 2 << 20  # bytes a thread needs beside its buffers: kernel scratch, stacks
UNPACKING = 8  # bytes a weight that unpacking takes on the way
COMPILER = 90 << 20  # bytes that loading or compiling the kernels may add
START = 1.0  # seconds until the first weight is read
SLOW = 40e6  # weights a second and thread of the slowest searches
SPEED = {  # weights a second and thread with (rtn, opt-rtn), as tools/bench/kernel_speed.py measures on AVX-512
    "Q2_K": (80e6, 90e6), "Q3_K": (200e6, 95e6), "Q4_K": (87e6, 90e6), "Q5_K": (88e6, 95e6), "Q6_K": (220e6, 85e6),
    "Q4_0": (200e6, 90e6), "Q4_1": (90e6, 100e6), "Q5_0": (200e6, 85e6), "Q5_1": (90e6, 90e6),
    "Q8_0": (800e6, 250e6), "IQ4_NL": (95e6, SLOW), "IQ4_XS": (95e6, SLOW), "NVFP4": (400e6, 100e6),
}  # fmt: skip
FAST = 500e6  # the others, which hardly search


@dataclass(frozen=True)
class Run:
    """How a plan is carried out. `max_ram` and `split_max_size` in bytes."""

    threads: int | None = None
    max_ram: int | None = None
    split_max_size: int | None = None
    fresh: bool = False


def check_paths(plan: Plan, layouts: tuple[Layout, ...], more: tuple[Path, ...] = ()) -> None:
    """Raises UsageError for an output that is the source, a folder or device, or in no writable folder. `more`: what
    else will be written."""
    sources = _sources(plan)
    journal = journal_beside(layouts)
    for file in (f for layout in layouts for f in layout.files):
        folder = file.path.parent
        for path in (file.path, file.partial, journal, *more):
            if path.resolve() in sources or (path.exists() and any(os.path.samefile(path, s) for s in sources)):
                raise UsageError(f"OUT {path} is a file of the model itself or its imatrix; choose another name")
            if path.is_dir():
                raise UsageError(f"OUT {path} is a folder; give a file name such as {path / 'model.gguf'}")
            if path.exists() and not path.is_file():
                raise UsageError(f"OUT {path} is a device or pipe, which cannot become a model; give a file name")
        folder = folder if folder.is_dir() else _to_be_made(folder, layouts)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"no permission to write into {folder}")
    for layout in layouts:
        _check_own_folder(layout)


def _to_be_made(folder: Path, layouts: tuple[Layout, ...]) -> Path:
    """The folder in which a checkpoint's own will be made."""
    own = any(layout.own_names() is not None and layout.files[0].path.parent == folder for layout in layouts)
    if own and folder.parent.is_dir() and not folder.exists():
        return folder.parent
    if own and folder.exists():
        raise UsageError(f"OUT {folder} is a file; give a folder for a checkpoint")
    missing = folder.parent if own else folder
    raise UsageError(f"the folder {missing} does not exist; create it first")


def _check_own_folder(layout: Layout) -> None:
    """Raises UsageError for a folder that holds what is not of this output: it would be mixed up with it."""
    names, folder = layout.own_names(), layout.files[0].path.parent
    if names is None or not folder.is_dir():
        return
    if others := sorted(path.name for path in folder.iterdir() if path.name not in names):
        raise UsageError(f"{folder} holds something else ({others[0]}); give an empty or a new folder")


def _sources(plan: Plan) -> set[Path]:
    """What must stay as it is: all that was read, and in a model's folder all but what a run may have left there."""
    checkpoint = plan.checkpoint
    found = {ref.path for t in checkpoint.tensors.values() for ref in t.stored} | set(checkpoint.files.values())
    if checkpoint.root.is_dir():
        found |= {p for p in checkpoint.root.iterdir() if not p.name.endswith(OURS)}
    if plan.importance is not None and plan.importance.path is not None:
        found.add(plan.importance.path)
    return {p.resolve() for p in found if p.exists()}


def check_disk(layouts: tuple[Layout, ...]) -> None:
    """Raises OutputError where a file system has less room than the files will take."""
    needed: dict[Path, int] = {}
    for file in (f for layout in layouts for f in layout.files):
        present = file.partial.stat().st_blocks * 512 if file.partial.exists() else 0  # gone on with or written over
        needed[file.path.parent] = needed.get(file.path.parent, 0) + max(0, file.size - present)
    for folder, size in needed.items():
        free = shutil.disk_usage(folder if folder.is_dir() else folder.parent).free
        if size > free:
            raise OutputError(
                f"{folder} has {free / 1e6:,.1f} MB free, the output takes {size / 1e6:,.1f} MB; free some space or "
                f"choose another folder or a smaller type"
            )


def workspace_bytes(plan: Plan, slabs: tuple[Slab, ...]) -> tuple[int, int, int]:
    """Bytes of a worker's three buffers: raw source rows, float32 weights, packed rows."""
    raw = weights = packed = 1
    for slab in slabs:
        output = plan.outputs[slab.output]
        columns = output.shape[-1]
        weights = max(weights, slab.rows * columns * 4)
        if slab.piece is not None:
            piece = output.pieces[slab.piece]
            raw = max(raw, scratch_bytes(piece.source, piece.read or slab.rows))
        packed = max(packed, *(slab.rows * t.types[output.name].row_bytes(columns) for t in plan.targets))
    return raw, weights, packed


def memory_needed(plan: Plan, slabs: tuple[Slab, ...], threads: int) -> int:
    """Expected peak in bytes with that many threads."""
    each = sum(workspace_bytes(plan, slabs)) + WORKSPACE_EXTRA + UNPACKING * _most_packed(plan, slabs)
    each += 8 * max((p.read * p.source.columns for o in plan.outputs for p in o.pieces), default=0)  # read, arranged
    return measure.resident_memory() + COMPILER + threads * each


def _most_packed(plan: Plan, slabs: tuple[Slab, ...]) -> int:
    """Weights of the largest slab that is read from a packed tensor."""
    return max(
        (
            slab.rows * plan.outputs[slab.output].shape[-1]
            for slab in slabs
            if slab.piece is not None and plan.outputs[slab.output].pieces[slab.piece].source.packing is not None
        ),
        default=0,
    )


def check_threads(run: Run) -> None:
    """Raises UsageError for fewer than one."""
    if run.threads is not None and run.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {run.threads}")


def workers(plan: Plan, slabs: tuple[Slab, ...], run: Run) -> int:
    """Threads to use: as asked or one a core, fewer where --max-ram says so or there is less to do.

    Raises UsageError where not even one thread fits.
    """
    check_threads(run)
    threads = min(run.threads or cores(), max(1, len(slabs)))
    if run.max_ram is None:
        return threads
    while threads > 1 and memory_needed(plan, slabs, threads) > run.max_ram:
        threads -= 1
    needed = memory_needed(plan, slabs, threads)
    if needed > run.max_ram:
        raise UsageError(
            f"--max-ram {run.max_ram / 1e6:.0f} MB is too little: one thread needs about {needed / 1e6:.0f} MB"
        )
    return threads


def expected_seconds(plan: Plan, threads: int) -> float:
    """A rough wall time with compiled kernels and a source that is read as fast as it is packed."""
    column = 0 if plan.recipe.search == "rtn" else 1

    def speed(target: Target, name: str) -> float:
        found = SPEED.get(target.types[name].name)
        return FAST if found is None or name in target.carried else found[column]

    work = sum(rows_of(o) * o.shape[-1] / speed(t, o.name) for t in plan.targets for o in plan.outputs)
    return START + work / threads


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
