"""ggufround convert, ggufround plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ggufround.cli import show
from ggufround.cli.values import Flags, Json, Model, takes_flags
from ggufround.conversion import (
    Report,
    carry_out,
    convert,
    gguf_beside,
    lay_out_all,
    plan_all,
    plan_of,
    projector_beside,
    together,
)
from ggufround.errors import MissingExtraError
from ggufround.formats.spec import Layout
from ggufround.planning import Options, Plan, describe, slabs
from ggufround.preflight import Run, check_disk, check_paths, expected_seconds, memory_needed, workers

if TYPE_CHECKING:
    from ggufround.tune.preparing import Tuning


LISTED = 6  # tensors that are left out for the same reason: more are counted


@takes_flags
def convert_command(
    model: Model,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The .gguf or folder to write; {type} and {format} stand for names.",
        ),
    ],
    flags: Flags,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; same as `plan`.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard an unfinished run instead of going on.")] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint to a quantised GGUF file. The same command after an interruption goes on."""
    run = flags.run(fresh)
    if dry_run:
        _show_plans(*_planned(model, flags, run), out, flags, run, json)
        return
    options = flags.options()
    plan, tuning = plan_all(model, options, flags.calibration(), flags.device, run, out.parent)
    layouts = lay_out_all(plan, out, run.split_max_size)
    beside = gguf_beside(plan, out) if flags.beside_gguf else None
    vision = None
    if flags.mmproj is not None:
        vision = projector_beside(plan, options, layouts, flags.mmproj, flags.mmproj_type or "f16", run)
    if not json:
        for line in plan.notes:
            show.note(line)
    try:
        with show.progress(quiet=json) as update:
            first = carry_out(*vision, run, update) if vision else None
            report = carry_out(plan, layouts, run, update, tuning=tuning)
            if first is not None:
                report = together(report, first, "mmproj")
            if beside is not None:
                report = together(report, convert(layouts[0].files[0].path.parent, beside, options=Options(), run=run))
    except KeyboardInterrupt:
        show.complain("interrupted; the same command goes on from here")
        raise typer.Exit(1) from None
    if not json:
        for line in report.notes[len(plan.notes) :]:  # what was found out on the way
            show.note(line)
    _show_report(report, json)


@takes_flags
def plan_command(model: Model, flags: Flags, json: Json = False) -> None:
    """Show what convert would do, without reading a weight: types, exact sizes, memory, disk."""
    run = flags.run()
    plan, tuning = _planned(model, flags, run)
    name = "out-{format}" if plan.targets[0].layers else "{type}.gguf" if len(plan.targets) > 1 else "out.gguf"
    _show_plans(plan, tuning, Path(name), flags, run, json)


def _planned(model: str, flags: Flags, run: Run) -> tuple[Plan, Tuning | None]:
    """For looking only: without the extra that tuning needs, what can be said without it."""
    try:
        return plan_all(model, flags.options(), flags.calibration(), flags.device, run)
    except MissingExtraError as error:
        plan = plan_of(model, flags.options())
        return replace(plan, notes=(*plan.notes, f"text and blocks were not checked: {error}")), None


def _show_plans(plan: Plan, tuning: Tuning | None, out: Path, flags: Flags, run: Run, json: bool) -> None:
    layouts = lay_out_all(plan, out, run.split_max_size)
    described = _show_plan(plan, tuning, layouts, run, json)
    if flags.mmproj is not None:
        vision, files = projector_beside(
            plan, flags.options(), layouts, flags.mmproj, flags.mmproj_type or "f16", replace(run, fresh=True)
        )
        described["mmproj"] = _show_plan(vision, None, files, run, json)
    if json:
        show.dump(described)


def _show_plan(plan: Plan, tuning: Tuning | None, layouts: tuple[Layout, ...], run: Run, json: bool) -> dict[str, Any]:
    """Shows one plan; with `json` it is only returned."""
    check_paths(plan, layouts)
    check_disk(layouts)
    parts = tuple(slabs(plan))
    threads = workers(plan, parts, run)
    memory, seconds = memory_needed(plan, parts, threads), expected_seconds(plan, threads)
    if tuning is not None:
        memory = max(memory, tuning.memory)
    runs = tuning is not None or plan.recipe.iterations > 0
    described: dict[str, Any] = {}
    if json:
        described = describe(plan)
        for entry, layout in zip(described["targets"], layouts, strict=True):
            entry["files"] = [{"path": str(f.path), "bytes": f.size} for f in layout.files]
            entry["bpw"] = _bpw(layout)
            for tensor in entry["tensors"]:
                tensor["bytes"] = layout.places[tensor["name"]].nbytes
        figures = {"threads": threads, "peak_memory": memory}
        return described | figures | ({} if runs else {"seconds": round(seconds, 1)})
    for layout in layouts:
        count: Counter[str] = Counter()
        weights: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for place in layout.places.values():
            count[place.type.name] += 1
            weights[place.type.name] += prod(place.shape)
            size[place.type.name] += place.nbytes
        show.table(
            f"{_title(layout)}, recipe {plan.recipe.name}: {layout.size:,} bytes ({show.human(layout.size)}), "
            f"{_bpw(layout):.2f} bits per weight, {len(layout.files)} file(s)",
            ("type", "tensors", "weights", "bytes"),
            [(name, count[name], weights[name], size[name]) for name, _ in size.most_common()],
        )
    for reason in dict.fromkeys(reason for _, reason in plan.dropped):
        names = [name for name, why in plan.dropped if why == reason]
        if len(names) > LISTED:
            show.note(f"{len(names)} tensors are not used (first: {names[0]}): {reason}")
            continue
        for name in names:
            show.note(f"{name} is not used: {reason}")
    for line in plan.notes:
        show.note(line)
    show.say(
        f"{plan.architecture}, {plan.weights:,} weights; {threads} threads, about {show.human(memory)} of memory, "
        + (_work(plan, tuning) if runs else f"roughly {seconds:.0f} s once kernels are compiled")
    )
    return described


def _title(layout: Layout) -> str:
    target = layout.target
    return target.mix.name if target.layers is None else f"{target.format} {target.mix.name}"


def _work(plan: Plan, tuning: Tuning | None) -> str:
    """How much of the model is run; how long that takes depends on the machine."""
    if tuning is None:
        return "and the time to tune"
    shape, recipe = tuning.calibration.ids.shape, plan.recipe
    steps = f", {recipe.iterations} steps of {recipe.batch} x {shape[1]} a block" if recipe.iterations else ""
    return f"{tuning.skeleton.blocks} blocks run on {shape[0]} x {shape[1]} tokens{steps}"


def _show_report(report: Report, json: bool) -> None:
    if json:
        show.dump(
            {
                "files": [str(f) for f in report.files],
                "bytes": report.size,
                "weights": report.weights,
                "seconds": round(report.seconds, 3),
                "cpu_seconds": round(report.cpu_seconds, 3),
                "peak_memory": report.peak_memory,
                "phases": {k: round(v, 3) for k, v in report.phases.items()},
                "resumed": round(report.resumed, 4),
                "notes": list(report.notes),
            }
        )
        return
    again = f", {100 * report.resumed:.0f} % of it done before" if report.resumed else ""
    for path in report.files:
        show.say(f"{path}  {show.human(path.stat().st_size)}")
    show.say(f"{report.seconds:.1f} s, peak memory {show.human(report.peak_memory)}, checked{again}")


def _bpw(layout: Layout) -> float:
    weights = sum(prod(p.shape) for p in layout.places.values())
    return 8 * sum(p.nbytes for p in layout.places.values()) / max(1, weights)
