#!/usr/bin/env python3
"""Compares roundings to types that GGUF has no file for (INT, MXFP8), and to MXFP4 and NVFP4, by what the model does.

    python tools/bench/formats.py MODEL --calib calib.txt --text eval.txt --work DIR [--schemes W4A16,W2A16G64,NVFP4]

The blocks' matrices are rounded, the rest stays as it is. For each scheme the divergence from the model, on the text:
* plain: each group's scale from its largest magnitude, then the nearest code. INT: AutoRound's RTN. MX: the standard's
  scale, the largest power of two not above max / 4 (FP4) or max / 256 (FP8). NVFP4: the nearest E4M3 to max / 6, under
  a global scale that puts the matrix's largest group at 448;
* opt-rtn: our search, weighted by the importance of the calibration tokens;
* light: tuned on them.
Weights are kept in memory, dequantised. DIR gets a BF16 GGUF of the model, and the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufround import Options, convert, measure
from ggufround.checkpoint.reading import Reader
from ggufround.evaluate.chains import Candidate, evaluate_weights
from ggufround.evaluate.divergence import open_model, open_reference
from ggufround.evaluate.texts import read_chunks
from ggufround.planning import Plan, build
from ggufround.quants.grids import GRIDS, dequantised, integer_grid
from ggufround.quants.spec import QuantType
from ggufround.quants.types import QUANT_TYPES
from ggufround.recipes import RECIPES, Recipe
from ggufround.tune.calibration import CalibrationOptions
from ggufround.tune.driver import Driver
from ggufround.tune.outputs import ReadOutput, output_weights
from ggufround.tune.preparing import Settings, Tuning, prepare
from ggufround_kernels import Rounded
from ggufround_kernels.integers import integer_codec
from ggufround_kernels.microfloat import nvfp4_global_scale
from ggufround_kernels.mxfp8 import MXFP8

F32 = NDArray[np.float32]
INTEGERS = {  # bits, group, symmetric
    "W2A16G64": (2, 64, True), "W3A16": (3, 128, True), "W4A16": (4, 128, True), "W4A16-asym": (4, 128, False),
    "W8A16": (8, 128, True),
}  # fmt: skip
FLOATS = ("MXFP4", "MXFP8", "NVFP4")
METHODS = ("plain", "opt-rtn", "light")


def type_of(scheme: str) -> QuantType:
    """A type as the driver wants one; that it has no bytes does not matter here."""
    if scheme in ("MXFP4", "NVFP4"):
        return QUANT_TYPES[scheme]
    if scheme == "MXFP8":
        codec = MXFP8
    else:
        bits, group, symmetric = INTEGERS[scheme]
        codec = integer_codec(bits, group, symmetric)
        GRIDS[scheme] = integer_grid(bits, group, symmetric)
    some = QUANT_TYPES["Q8_0"]
    return replace(some, name=scheme, block=codec.group, search=codec.search, pack=None)


def plain(scheme: str, kind: QuantType, weights: F32) -> F32:
    """float32 [rows, n]: the weights as plain rounding stores them."""
    grid = GRIDS[scheme]
    if scheme in INTEGERS:
        assert kind.search is not None
        return dequantised(grid, kind.search(weights, None, "rtn"))
    groups = weights.reshape(len(weights), -1, grid.group)
    most = np.abs(groups).max(-1, keepdims=True).astype(np.float64)
    if scheme == "NVFP4":
        factor = float(nvfp4_global_scale(float(most.max())))
        assert grid.scales is not None
        scale = factor * nearest(most / 6 / factor, grid.scales.values)
    else:
        scale = 2.0 ** np.floor(np.log2(np.maximum(most, 2.0**-120) / {"MXFP4": 4, "MXFP8": 256}[scheme]))
    values = nearest(groups / np.where(scale == 0, 1, scale), grid.codes.values)
    return (values * scale).astype(np.float32).reshape(weights.shape)


def nearest(x: NDArray[np.float64], values: F32) -> NDArray[np.float64]:
    """The nearest of ascending values to each x; halfway, the upper one."""
    middles = (values[1:].astype(np.float64) + values[:-1]) / 2
    return values.astype(np.float64)[np.searchsorted(middles, x, side="right")]


class Weights:
    """The model's output tensors as matrices: what was rounded, dequantised, and the file's for the rest."""

    def __init__(self, read: ReadOutput) -> None:
        self.rounded: dict[str, F32] = {}
        self.given = read

    def read(self, name: str, first: int, count: int) -> F32:
        held = self.rounded.get(name)
        return self.given(name, first, count) if held is None else held[first : first + count]


def rounded_weights(
    plan: Plan, tuning: Tuning, scheme: str, method: str, recipe: Recipe, given: ReadOutput, reader: Reader
) -> Weights:
    """All matrices of the blocks rounded by the method."""
    kind, found = type_of(scheme), Weights(given)
    inside = {o.name: o for o in plan.outputs if o.name.startswith("blk.") and len(o.shape) > 1}
    true = {name: given(name, 0, int(np.prod(o.shape[:-1]))) for name, o in inside.items()}
    scales = {}
    if scheme == "NVFP4":
        for name, weights in true.items():
            several = weights.reshape(inside[name].shape[0] if len(inside[name].shape) > 2 else 1, -1)
            scales[name] = np.array([nvfp4_global_scale(v) for v in np.abs(several).max(1)], np.float32)
    if method == "plain":
        found.rounded = {name: plain(scheme, kind, weights) for name, weights in true.items()}
        return found
    (target,) = plan.targets
    target = replace(target, types={o.name: kind if o.name in inside else target.types[o.name] for o in plan.outputs})
    driver = Driver(replace(plan, recipe=recipe), target, tuning, reader, scales)
    for stage in driver.stages(lambda names: False, found.read, lambda phase, done, total: None):
        for name in (n for n in stage.outputs if n in inside):
            factor = scales.get(name, np.ones(1, np.float32))
            rounded = stage.rounded.get(name) or searched(kind, true[name], factor, stage.importance[name])
            weights = dequantised(GRIDS[scheme], rounded)
            found.rounded[name] = (weights.reshape(len(factor), -1) * factor[:, None]).reshape(weights.shape)
        print(f"{scheme} {method} {stage.name}", file=sys.stderr)
    return found


def searched(kind: QuantType, weights: F32, factor: F32, importance: F32) -> Rounded:
    """Of one matrix; stacks are not needed here."""
    assert kind.search is not None
    assert len(factor) == len(importance) == 1
    return kind.search(weights / factor[0], importance[0], "opt-rtn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--schemes", default="W4A16,W2A16G64,MXFP8,MXFP4,NVFP4", help="default: %(default)s")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    schemes = options.schemes.split(",")
    if unknown := set(schemes) - {*INTEGERS, *FLOATS}:
        parser.error(f"unknown schemes {', '.join(unknown)}; there are: {', '.join([*INTEGERS, *FLOATS])}")
    options.work.mkdir(parents=True, exist_ok=True)
    whole, figures = options.work / "bf16.gguf", options.work / "formats.json"
    if not whole.exists():
        convert(options.model, whole, type="bf16")
    light = replace(RECIPES["light"], iterations=options.iters, batch=options.batch_size)
    recipes = {"plain": RECIPES["rtn"], "opt-rtn": RECIPES["opt-rtn"], "light": light}
    reference = open_reference(str(options.model))
    ids = read_chunks(options.text, reference.checkpoint, 512, options.chunks)
    texts = CalibrationOptions((options.calib,), options.samples, options.seqlen)
    plan = build(options.model, Options(types=("bf16",), recipe=light))
    plan, tuning = prepare(plan, texts, Settings(threads=options.threads, device="cpu"))
    kept: dict[str, dict[str, Any]] = json.loads(figures.read_text()) if figures.exists() else {}
    source, scratch = open_model(whole, reference).checkpoint, np.empty(0, np.uint8)
    with Reader(source) as file, Reader(plan.checkpoint) as reader:

        def given(name: str, first: int, count: int) -> F32:
            out = np.empty((count, source.tensors[name].columns), np.float32)
            file.read_rows(source.tensors[name], first, count, out, scratch)
            return out

        for scheme in schemes:
            for method in options.methods.split(","):
                if method in kept.get(scheme, {}):
                    continue
                start = measure.cpu_seconds()
                weights = rounded_weights(plan, tuning, scheme, method, recipes[method], given, reader)
                spent = measure.cpu_seconds() - start
                candidate = Candidate(f"{scheme} {method}", *output_weights(reference.outputs, weights.read))
                (result,) = evaluate_weights(
                    reference.checkpoint, [candidate], ids, scored="all", threads=options.threads
                )
                kept.setdefault(scheme, {})[method] = {
                    "divergence": result.divergence.mean, "error": result.divergence.error,
                    "perplexity": result.perplexity, "cpu_seconds": spent,
                }  # fmt: skip
                figures.write_text(json.dumps(kept, indent=1) + "\n")
    print("| scheme | | KL divergence, mean | of plain | CPU, s |\n|---|---|---:|---:|---:|")
    for scheme, found in kept.items():
        for method, one in found.items():
            mean, base = one["divergence"], found.get("plain", one)["divergence"]
            error = f" ± {1.96 * one['error']:.4f}" if one["error"] is not None else ""
            print(f"| {scheme} | {method} | {mean:.4f}{error} | {mean / base:.3f} | {one['cpu_seconds']:.0f} |")


if __name__ == "__main__":
    main()
