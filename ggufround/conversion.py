"""THE loop: read a row slab, arrange it, search, pack, write at its known offset; then check and give it its name.

Every slab is independent, so slabs are a map over a thread pool (kernels and reads release the GIL); with one
thread the same function runs inline. What a finished slab read and wrote goes into the journal as checksums: the
same command after a kill checks them against OUT.partial and does only the rest, and at the end they are what the
written file is checked against and what the provenance digests are folded from.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from ggufround import measure
from ggufround.checkpoint.reading import Reader
from ggufround.errors import OutputError, UsageError
from ggufround.formats import checkpoint as checkpoints
from ggufround.formats import gguf
from ggufround.formats.partial import remove
from ggufround.formats.spec import Layout
from ggufround.journal import Journal
from ggufround.layer_planning import CheckpointOptions, build_checkpoint
from ggufround.planning import Options, Plan, build, slabs
from ggufround.preflight import Run, check_disk, check_paths, check_threads, workers
from ggufround.projector import build_projector
from ggufround.resuming import drop_damaged, fingerprint, journal_beside, may_resume
from ggufround.slab_work import Work, absmax_slab, convert_slab, expert_of, read_weights, workspaces
from ggufround.tuning_log import TuningLog, log_beside
from ggufround_kernels.microfloat import nvfp4_global_scale

if TYPE_CHECKING:
    from ggufround.tune.calibration import CalibrationOptions
    from ggufround.tune.preparing import Tuning

T = TypeVar("T")
U = TypeVar("U")
Progress = Callable[[str, int, int], None]  # (phase, weights done, weights in all)
AHEAD = 4  # slabs handed to the pool per thread: enough to keep it busy, few enough to stop soon


@dataclass(frozen=True)
class Report:
    """What a finished run did and cost. Sizes and memory in bytes, times in seconds."""

    files: tuple[Path, ...]
    size: int
    weights: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    phases: Mapping[str, float]
    resumed: float  # share of the weights that an earlier run had done
    notes: tuple[str, ...]


def convert(
    model: str | Path,
    out: str | Path,
    *,
    type: str | None = None,  # noqa: A002 - the word that llama.cpp's users know
    recipe: str = "opt-rtn",
    options: Options | CheckpointOptions | None = None,
    run: Run | None = None,
    progress: Progress | None = None,
    calibration: CalibrationOptions | None = None,
    device: str = "auto",
    mmproj: str | Path | None = None,
    mmproj_type: str = "f16",
) -> Report:
    """Writes `model` (directory, hub id or .gguf) as the GGUF file `out`; `{type}` in `out` names several types. None:
    q4_k_m, or, where the model is quantised, the types that hold its codes.

    `options` replaces `type` and `recipe` where more is to be said; `calibration` says on what a tuned recipe tunes
    (None: a text that comes with the tool), `device` where. `mmproj` is a file for the model's vision part, written in
    `mmproj_type` (f16, bf16, f32 or q8_0) for llama.cpp to load beside it. Raises the leaves of GgufroundError; the
    files appear only when they are complete and checked. The same call after an interruption goes on.
    """
    started = time.perf_counter()
    types = None if type is None else tuple(t.strip() for t in type.split(","))
    chosen = options or Options(types=types, recipe=recipe)
    run = run or Run()
    plan, tuning = plan_all(model, chosen, calibration, device, run, Path(out).parent)
    layouts = lay_out_all(plan, Path(out), run.split_max_size)
    if mmproj is None:
        return carry_out(plan, layouts, run, progress, started, tuning)
    vision, files = projector_beside(plan, chosen, layouts, Path(mmproj), mmproj_type, run)
    report = carry_out(vision, files, run, progress, started)
    return together(carry_out(plan, layouts, run, progress, None, tuning), report, "mmproj")


def plan_all(
    model: str | Path,
    options: Options | CheckpointOptions,
    calibration: CalibrationOptions | None = None,
    device: str = "auto",
    run: Run | None = None,
    folder: Path | None = None,
) -> tuple[Plan, Tuning | None]:
    """The plan, and where the model itself must be run for it (a tuned recipe, a calibration text) what that needs.

    `folder`: where activations may lie that memory does not hold. Raises what `build` and `prepare` raise, and
    UsageError for fewer than one thread.
    """
    run = run or Run()
    check_threads(run)
    if calibration is not None and not options.calibrated:
        options = replace(options, calibrated=True)
    plan = plan_of(model, options)
    if calibration is None and not plan.recipe.iterations and not any(t.active for t in plan.targets):
        return plan, None
    from ggufround.tune.extra import require_extra

    require_extra()
    from ggufround.tune.calibration import CalibrationOptions
    from ggufround.tune.preparing import Settings, prepare

    if calibration is None:
        calibration = CalibrationOptions(samples=plan.recipe.samples, seqlen=plan.recipe.seqlen)
    return prepare(plan, calibration, Settings(device, None, run.threads, run.max_ram, folder))


def plan_of(model: str | Path, options: Options | CheckpointOptions) -> Plan:
    """The plan, from headers alone. Raises what `build` and `build_checkpoint` raise."""
    return build(model, options) if isinstance(options, Options) else build_checkpoint(model, options)


def lay_out_all(plan: Plan, out: Path, split_max_size: int | None = None) -> tuple[Layout, ...]:
    """The files of every target; in `out`, `{type}` is replaced by the mix's name, `{format}` by the format's.

    Raises UsageError where several targets would share a file, and for an `out` without a name.
    """
    if not out.name:
        raise UsageError(f"OUT {str(out)!r} is no file name; give one such as model.gguf")
    if plan.targets[0].layers is not None and out.suffix == ".gguf":
        raise UsageError(f"{plan.targets[0].format} is a folder; give it another name than {out.name}")
    paths = [out.with_name(out.name.format_map(_Names(type=t.mix.name, format=t.format))) for t in plan.targets]
    if len(set(paths)) < len(paths):
        what, end = ("formats", "-{format}") if plan.targets[0].layers else ("types", "-{type}.gguf")
        raise UsageError(f"several {what} need {end[1:].removesuffix('.gguf')} in OUT, e.g. {out.stem}{end}; got {out}")
    return tuple(
        (checkpoints if target.layers else gguf).lay_out(plan, target, path, split_max_size)
        for target, path in zip(plan.targets, paths, strict=True)
    )


def gguf_beside(plan: Plan, out: Path) -> Path:
    """The GGUF file that is to hold the codes of a checkpoint as they are: `out` with its {format} filled in.

    Raises UsageError without a {format} or for a scheme that no GGUF type holds, and whatever planning a GGUF file of
    the model raises: all that before the checkpoint is made.
    """
    assert plan.targets[0].layers is not None
    scheme = plan.targets[0].layers.scheme
    if "{format}" not in out.name:
        raise UsageError(f"several formats need {{format}} in OUT, e.g. {out.name}-{{format}}; got {out}")
    if scheme.data == "fp" or (scheme.data == "mx_fp" and scheme.bits == 8):
        raise UsageError(f"no GGUF type holds {scheme.name}; leave gguf out, or convert the model a second time")
    build(plan.checkpoint.source, Options(), plan.checkpoint)
    return out.with_name(out.name.replace("{format}", "gguf").removesuffix(".gguf") + ".gguf")


def projector_beside(
    plan: Plan,
    options: Options | CheckpointOptions,
    layouts: tuple[Layout, ...],
    out: Path,
    kind: str = "f16",
    run: Run | None = None,
) -> tuple[Plan, tuple[Layout, ...]]:
    """Plan and file of the model's projector, which is made before the text model of `plan`.

    Raises what `build_projector` raises, and for both runs together what could stop the second after the first: paths,
    disk, memory, unfinished files of other runs.
    """
    run = run or Run()
    if not isinstance(options, Options):
        raise UsageError("--mmproj is for GGUF: a checkpoint format keeps the vision part in the model")
    vision = build_projector(plan.checkpoint, kind, options.arch)
    files = lay_out_all(vision, out)
    if {f.path.resolve() for layout in layouts for f in layout.files} & {f.path.resolve() for f in files[0].files}:
        raise UsageError(f"OUT and --mmproj are both {out}; give them two names")
    for one, its in ((vision, files), (plan, layouts)):
        check_paths(one, its)
        workers(one, tuple(slabs(one)), run)
        may_resume(journal_beside(its), its, fingerprint(one, its), run.fresh)
    check_disk((*files, *layouts))
    return vision, files


def together(first: Report, second: Report, name: str = "gguf") -> Report:
    """Two runs, one after the other, as one; `name` is before the phases of the second."""
    phases = {**first.phases, **{f"{name} {phase}": seconds for phase, seconds in second.phases.items()}}
    return replace(
        first,
        files=first.files + second.files,
        size=first.size + second.size,
        seconds=first.seconds + second.seconds,
        cpu_seconds=max(first.cpu_seconds, second.cpu_seconds),
        peak_memory=max(first.peak_memory, second.peak_memory),
        phases=phases,
        notes=first.notes + second.notes,
    )


class _Names(dict[str, str]):
    """What braces in OUT stand for; others stay as they are."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


def carry_out(
    plan: Plan,
    layouts: tuple[Layout, ...],
    run: Run,
    progress: Progress | None = None,
    started: float | None = None,
    tuning: Tuning | None = None,
) -> Report:
    """Checks what can fail cheaply, then tunes, converts, verifies and names the files."""
    clock = _Clock(started)
    check_paths(plan, layouts, (log_beside(layouts),) if tuning else ())
    parts = tuple(slabs(plan))
    threads = workers(plan, parts, run)
    identity = fingerprint(plan, layouts)
    journal_path = journal_beside(layouts)
    resume = may_resume(journal_path, layouts, identity, run.fresh)
    check_disk(layouts)
    notes = plan.notes
    clock.lap("plan")
    with ExitStack() as stack:
        sinks = []
        for layout in layouts:
            sinks.append(layout.open(resume))
            stack.callback(sinks[-1].abandon)
        journal = Journal(journal_path, identity, resume)  # the files are locked: no other run has it
        stack.callback(journal.close)
        reader = stack.enter_context(Reader(plan.checkpoint))
        work = Work(plan, parts, reader, tuple(sinks), workspaces(plan, parts, threads))
        if resume:
            drop_damaged(work, journal)
        resumed = sum(map(work.weights, journal.done))
        _find_scales(work, journal, threads)
        if tuning is None:
            _convert(work, range(len(parts)), journal, threads, progress)
        else:
            notes += _tune_and_convert(work, tuning, journal, threads, progress)
        if work.not_carried:
            notes += (_not_carried(work),)
        clock.lap("convert")
        with ThreadPoolExecutor(1) as disk:
            synced = [disk.submit(sink.sync) for sink in sinks]
            digests = _verify(work, journal, threads)
            for future in synced:
                future.result()
        clock.lap("verify")
        for sink, values in zip(sinks, digests, strict=True):
            sink.close(values)
        clock.lap("sync")
    remove([journal_path])
    return Report(
        files=tuple(f.path for layout in layouts for f in layout.files),
        size=sum(layout.size for layout in layouts),
        weights=plan.weights,
        seconds=clock.total(),
        cpu_seconds=measure.cpu_seconds(),
        peak_memory=measure.peak_memory(),
        phases=clock.laps,
        resumed=resumed / max(1, plan.weights),
        notes=notes,
    )


def _tune_and_convert(
    work: Work, tuning: Tuning, journal: Journal, threads: int, progress: Progress | None
) -> tuple[str, ...]:
    """Block by block: what the driver hands over is packed and written before it goes on. Returns notes."""
    from ggufround.tune.driver import Driver

    target, sink = work.plan.targets[0], work.sinks[0]  # the others have the same types
    slabs_of: dict[str, list[int]] = {}
    for index in range(len(work.slabs)):
        slabs_of.setdefault(work.output(index).name, []).append(index)

    def finished(names: Sequence[str]) -> bool:
        return all(index in journal.done for name in names for index in slabs_of[name])

    def read_back(name: str, first: int, count: int) -> NDArray[np.float32]:
        return read_weights(work, sink, name, first, count)

    untuned: list[str] = []
    driver = Driver(work.plan, target, tuning, work.reader, work.scales)
    log = TuningLog(log_beside((sink.layout,)), append=bool(journal.done))
    for stage in driver.stages(finished, read_back, progress or (lambda phase, done, total: None)):
        work.rounded.update(stage.rounded)
        work.importance.update(stage.importance)
        for one, other in zip(work.plan.targets, work.sinks, strict=True):
            for name in one.active.intersection(stage.largest):
                other.write_active(name, stage.largest[name])
        log.add(stage.name, stage.losses)
        untuned += [stage.name] if stage.losses and not stage.losses.kept else []
        _convert(work, [i for name in stage.outputs for i in slabs_of[name]], journal, threads, None)
        work.rounded.clear()
        work.importance.clear()
    if untuned:
        return (*driver.notes, f"{len(untuned)} blocks keep the untuned rounding, since their held-out loss rose")
    return driver.notes


def _not_carried(work: Work) -> str:
    return (
        f"{len(work.not_carried)} matrices were rounded a second time after all (first: {min(work.not_carried)}): "
        f"columns out of order or zero points that config.json does not speak of"
    )


def _convert(work: Work, indices: Iterable[int], journal: Journal, threads: int, progress: Progress | None) -> None:
    """Those of the slabs that the journal does not hold."""
    finished = sum(map(work.weights, journal.done))
    left = [i for i in indices if i not in journal.done]
    for index, done in map_threads(partial(convert_slab, work), left, threads):
        journal.add(done)
        finished += work.weights(index)
        if progress is not None:
            progress("convert", finished, work.plan.weights)


def _find_scales(work: Work, journal: Journal, threads: int) -> None:
    """The first of two reads of tensors with a global scale: the largest magnitude of each matrix decides it."""
    scaled = set().union(*(t.scaled for t in work.plan.targets))
    given = set().union(*(t.scaled & t.carried for t in work.plan.targets))
    wanted = [i for i in range(len(work.slabs)) if work.output(i).name in scaled - given]
    for index, value in map_threads(
        partial(absmax_slab, work), [i for i in wanted if i not in journal.absmax], threads
    ):
        journal.add_absmax(index, value)
    largest: dict[str, NDArray[np.float32]] = {}
    for index in wanted:
        output, slab = work.output(index), work.slabs[index]
        experts = output.shape[0] if len(output.shape) == 3 else 1
        values = largest.setdefault(output.name, np.zeros(experts, np.float32))
        expert = expert_of(output, slab)
        values[expert] = max(values[expert], journal.absmax[index])
    for name, group in {n: g for t in work.plan.targets for n, g in t.together.items()}.items():
        largest[name] = np.max([largest[n] for t in work.plan.targets for n, g in t.together.items() if g == group], 0)
    for name, values in largest.items():
        work.scales[name] = np.array([nvfp4_global_scale(v) for v in values], np.float32)
    for output in (o for o in work.plan.outputs if o.name in given):
        work.scales[output.name] = np.array([work.reader.factor(p.source) for p in output.pieces], np.float32)
    for name in work.scales:
        for target, sink in zip(work.plan.targets, work.sinks, strict=True):
            if name in target.scaled:
                sink.write_scale(name, work.scales[name])


def _verify(work: Work, journal: Journal, threads: int) -> list[dict[str, str]]:
    """Reads every tensor back against the journal; returns the provenance digests of each target."""
    parts: dict[str, list[int]] = {}
    for index in range(len(work.slabs)):
        parts.setdefault(work.output(index).name, []).append(index)
    source = hashlib.sha256("".join(journal.done[i].source for i in range(len(work.slabs))).encode())
    digests = []
    for number, sink in enumerate(work.sinks):
        names = list(sink.places)

        def check(name: str, number: int = number) -> str:
            return _read_back(work, journal, number, name, parts.get(name, ()))

        found = dict(map_threads(check, names, threads))
        digests.append(
            {
                "ggufround.source.weights_sha256": source.hexdigest(),
                "ggufround.data_sha256": fold(found),
            }
        )
    return digests


def fold(tensors: Mapping[str, str]) -> str:
    """One SHA-256 over the names and SHA-256 digests of all tensors, in the order of the file."""
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in tensors.items()).encode()).hexdigest()


def _read_back(work: Work, journal: Journal, number: int, name: str, indices: Iterable[int]) -> str:
    """SHA-256 of a tensor's bytes as they are in the file; every slab must be what was written."""
    sink = work.sinks[number]
    total = hashlib.sha256()
    if not indices:  # a global scale: small, computed, written whole
        total.update(sink.read(name, 0, 1))
    for index in indices:
        slab = work.slabs[index]
        rows = sink.read(name, slab.first, slab.rows)
        if zlib.crc32(rows) != journal.done[index].crcs[number]:
            raise OutputError(f"{name} read back differs from what was written; is the disk failing?")
        total.update(rows)
    return total.hexdigest()


def map_threads(function: Callable[[T], U], items: list[T], threads: int) -> Iterator[tuple[T, U]]:
    """(item, result) in the order of `items`; the first error stops the rest and is raised once all have stopped."""
    if threads == 1:
        for item in items:
            yield item, function(item)
        return
    waiting: deque[tuple[T, Future[U]]] = deque()
    rest, room = iter(items), AHEAD * threads
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                waiting.extend((item, pool.submit(function, item)) for item in islice(rest, room - len(waiting)))
                if not waiting:
                    return
                item, future = waiting.popleft()
                yield item, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class _Clock:
    """Seconds of each phase and in all."""

    def __init__(self, started: float | None) -> None:
        self.started = self._last = time.perf_counter() if started is None else started
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    def total(self) -> float:
        return time.perf_counter() - self.started
