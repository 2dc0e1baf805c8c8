#!/usr/bin/env python3
"""Times `ggufround convert` against llama.cpp's two steps, its Python converter and then its quantizer.

    python tools/bench/convert.py MODEL --llama-cpp CHECKOUT --peer-python PYTHON [--type q4_k_m] [--runs 5] [--json F]

The runs alternate, on a warm page cache, with the same number of threads; the table shows medians of wall time, CPU
time and peak memory (of the two steps: sum, sum, and the larger). Everything counts: start-up of Python, hashing,
verification, fsync. One run more, with an empty cache of compiled kernels, is what a fresh machine sees. PYTHON is an
environment with llama-cpp-python, and what convert_hf_to_gguf.py of CHECKOUT needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
TWO_STEPS, FIRST = "llama.cpp, two steps", "first run on a machine"


class Cost(NamedTuple):
    wall: float  # seconds
    cpu: float  # seconds, all threads
    peak: float  # bytes, resident

    def then(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.peak, other.peak))


def run(command: list[str], environment: dict[str, str] | None = None) -> Cost:
    """Runs a command to its end. This process stays small: a child's peak starts with its parent's."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | (environment or {}))
        _, status, use = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            output = log.read().decode(errors="replace")[-4000:]
            sys.exit(f"{' '.join(command)}\nfailed with {child.returncode}:\n{output}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Cost(time.perf_counter() - start, use.ru_utime + use.ru_stime, use.ru_maxrss * scale)


def two_steps(model: Path, work: Path, options: argparse.Namespace) -> tuple[Cost, Cost]:
    between, out = work / "between.gguf", work / "peer.gguf"
    for path in (between, out):
        path.unlink(missing_ok=True)
    converter = options.llama_cpp / "convert_hf_to_gguf.py"
    first = run([options.peer_python, str(converter), str(model), "--outfile", str(between), "--outtype", "bf16"])
    quantizer = [options.peer_python, str(HERE / "peer_quantize.py"), str(between), str(out)]
    second = run([*quantizer, options.type, str(options.threads)])
    between.unlink()
    return first, second


def ours(model: Path, work: Path, options: argparse.Namespace, recipe: str, cache: Path | None = None) -> Cost:
    out = work / f"{recipe}.gguf"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "ggufround", "convert", str(model), str(out)]
    command += ["--type", options.type, "--recipe", recipe, "--threads", str(options.threads)]
    return run(command, {"NUMBA_CACHE_DIR": str(cache)} if cache else None)


def medians(costs: list[Cost]) -> Cost:
    return Cost(*(median(column) for column in zip(*costs, strict=True)))


def table(results: dict[str, Cost]) -> str:
    base = results[TWO_STEPS]
    lines = [
        "| | wall | CPU | peak memory | wall, times faster | memory, part of |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, cost in results.items():
        faster, part = base.wall / cost.wall, cost.peak / base.peak
        figures = f"{cost.wall:.2f} s | {cost.cpu:.2f} s | {cost.peak / 1e6:.0f} MB | {faster:.1f} | {part:.2f}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint's directory, such as models.py writes")
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--peer-python", required=True, metavar="PYTHON")
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--recipes", default="rtn,opt-rtn")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where files go and stay; default: a directory that is removed")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        recipes = options.recipes.split(",")
        results = {TWO_STEPS: [], "its converter": [], "its quantizer": []} | {
            f"ggufround, {recipe}": [] for recipe in recipes
        }
        with tempfile.TemporaryDirectory() as cache:
            fresh = ours(options.model, work, options, recipes[-1], Path(cache))
        for recipe in recipes:  # warms the page cache and compiles the kernels
            ours(options.model, work, options, recipe)
        for number in range(options.runs):
            first, second = two_steps(options.model, work, options)
            results[TWO_STEPS].append(first.then(second))
            results["its converter"].append(first)
            results["its quantizer"].append(second)
            for recipe in recipes:
                results[f"ggufround, {recipe}"].append(ours(options.model, work, options, recipe))
            print(f"run {number + 1} of {options.runs}", file=sys.stderr)
        sizes = {path.name: path.stat().st_size for path in sorted(work.glob("*.gguf"))}
    summary = {name: medians(costs) for name, costs in results.items()}
    summary[f"ggufround, {recipes[-1]}, {FIRST}"] = fresh
    print(f"{options.model.name}, {options.type}, {options.threads} threads, medians of {options.runs} runs\n")
    print(table(summary))
    if options.json:
        report = {
            "model": options.model.name, "type": options.type, "threads": options.threads,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "bytes": sizes,
            "median": {name: cost._asdict() for name, cost in summary.items()},
            "runs": {name: [cost._asdict() for cost in costs] for name, costs in results.items()},
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
