"""Tuned runs over tiny models, for the tests of the driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_models
from ggufround import Options, Report, Run, convert
from ggufround.gguf_read import read_gguf
from ggufround.recipes import RECIPES, Recipe
from ggufround.tune.calibration import CalibrationOptions

RECIPE = replace(RECIPES["light"], iterations=24, batch=8, curvature=2)
SHORT = replace(RECIPE, iterations=5)  # for what does not look at losses
TEXTS = CalibrationOptions(samples=6, seqlen=64, holdout=0.2)
LAYERS = tiny_models.LAYERS
Progress = Callable[[str, int, int], None]


CASES, written = tiny_models.ALL, tiny_models.written


def tune(
    model: Path,
    out: Path,
    kind: str = "q4_0",
    recipe: str | Recipe = RECIPE,
    texts: CalibrationOptions = TEXTS,
    run: Run | None = None,
    progress: Progress | None = None,
) -> Report:
    options = Options(types=tuple(kind.split(",")), recipe=recipe)
    return convert(model, out, options=options, calibration=texts, run=run or Run(threads=1), progress=progress)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_name(out.name + ".tuning.jsonl").read_text().splitlines()]


def tensors_of(file: Path) -> dict[str, bytes]:
    raw, header = file.read_bytes(), read_gguf(file)
    return {name: raw[t.offset : t.offset + t.nbytes] for name, t in header.tensors.items()}


class Stop(Exception):
    pass


def stop_at(call: int) -> Progress:
    """Raises in the callback of that number."""
    calls = iter(range(1 << 30))

    def progress(_phase: str, _done: int, _total: int) -> None:
        if next(calls) == call:
            raise Stop

    return progress
