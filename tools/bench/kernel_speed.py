#!/usr/bin/env python3
"""Times every quantisation kernel on one thread against llama.cpp's C reference, and on two threads against one.

    python tools/bench/kernel_speed.py --ggml LIBGGML_BASE.so [--types Q4_K,Q6_K] [--rows 256] [--columns 4096]

`--ggml` is llama.cpp's base library: llama-cpp-python installs one in its lib directory, and every build makes one.
The three contenders, C, `rtn` and `opt-rtn`, run by turns; times are medians of the thread's CPU time, so that other
programs disturb little. Weights are heavy-tailed (Student's t, 5 degrees of freedom) in BF16's precision, as in a
checkpoint. "bytes" says whether rtn's are C's. "error" is that of opt-rtn over C's: sum of w (x - x')^2 after packing,
w being llama.cpp's own weight for that type where there is an importance, and 1 where there is none.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from ggufround.ggml_types import GGML_TYPES
from ggufround_kernels import CODECS, Codec

TURN = 0.05  # seconds
IDS = {kind.name: kind.id for kind in GGML_TYPES.values()}
# Weights whose mean square enters w, and its factor; elsewhere 256 (K-quants, IQ4_XS) and 2.
WHOLE_ROW = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
SPANS = dict.fromkeys(WHOLE_ROW, (None, 1)) | {
    "IQ4_NL": (32, 2), "Q2_K": (256, 1), "Q8_0": (32, 1), "Q1_0": (128, 1), "Q2_0": (64, 1), "MXFP4": (32, 1),
    "NVFP4": (64, 1), "TQ1_0": (256, 1), "TQ2_0": (256, 1),
}  # fmt: skip


def reference(library: Path) -> Callable[[str, np.ndarray, np.ndarray | None, np.ndarray], None]:
    """ggml_quantize_chunk of a shared library, called as our kernels are."""
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    integers = [ctypes.c_int64] * 3
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *integers, ctypes.c_void_p]

    def quantize(kind: str, weights: np.ndarray, importance: np.ndarray | None, out: np.ndarray) -> None:
        pointer = None if importance is None else importance.ctypes.data
        written = ggml.ggml_quantize_chunk(IDS[kind], weights.ctypes.data, out.ctypes.data, 0, *weights.shape, pointer)
        assert written == out.nbytes, (kind, written, out.nbytes)

    return quantize


def sample(rows: int, columns: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = (0.02 * rng.standard_t(5, (rows, columns))).astype(np.float32)
    weights.view(np.uint32)[...] &= 0xFFFF0000
    return weights, np.exp(rng.standard_normal(columns)).astype(np.float32)


def error(kind: str, codec: Codec, weights: np.ndarray, importance: np.ndarray | None, packed: np.ndarray) -> float:
    decoded = np.empty_like(weights)
    codec.unpack(packed, decoded)
    square = np.square(weights.astype(np.float64) - decoded)
    if importance is None:
        return float(square.sum())
    if kind == "Q6_K":
        return float((square * importance).sum())
    span, factor = SPANS.get(kind, (256, 2))
    blocks = weights.astype(np.float64).reshape(len(weights), -1, span or weights.shape[1])
    spread = factor * np.square(blocks).mean(-1, keepdims=True) + np.square(blocks)
    return float((square * importance * np.sqrt(spread).reshape(weights.shape)).sum())


def cpu_time(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def wall_time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    kind: str, quantize: Callable[..., None], weights: np.ndarray, importance: np.ndarray | None, runs: int
) -> dict[str, Any]:
    codec = CODECS[kind]
    packed = {
        name: np.zeros((len(weights), weights.shape[1] // codec.block * codec.nbytes), np.uint8)
        for name in ("C", "rtn", "opt-rtn")
    }
    calls: dict[str, Callable[[], object]] = {
        "C": lambda: quantize(kind, weights, importance, packed["C"]),
        "rtn": lambda: codec.quantize(weights, importance, "rtn", packed["rtn"]),
        "opt-rtn": lambda: codec.quantize(weights, importance, "opt-rtn", packed["opt-rtn"]),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # compiles
        call()
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(cpu_time(call))
    errors = {name: error(kind, codec, weights, importance, out) for name, out in packed.items()}
    return {
        "type": kind,
        "importance": importance is not None,
        "million_per_second": {name: weights.size / median(t) / 1e6 for name, t in times.items()},
        "bytes_equal": bool(np.array_equal(packed["C"], packed["rtn"])),
        "error_ratio": errors["opt-rtn"] / errors["C"],
        "two_threads": {name: two_threads(codec, name, weights, importance, runs) for name in ("rtn", "opt-rtn")},
    }


def two_threads(codec: Codec, search: Any, weights: np.ndarray, importance: np.ndarray | None, runs: int) -> float:
    """Throughput on two threads over that on one, by wall time: rows are halved, and done again for TURN seconds."""
    out = np.zeros((len(weights), weights.shape[1] // codec.block * codec.nbytes), np.uint8)
    half = len(weights) // 2
    parts = (slice(0, half), slice(half, 2 * half))

    def once(part: slice) -> None:
        codec.quantize(weights[part], importance, search, out[part])

    again = 1 + int(TURN / wall_time(lambda: once(parts[0])))

    def work(part: slice) -> None:
        for _ in range(again):
            once(part)

    one, two = [], []
    with ThreadPoolExecutor(2) as pool:
        for _ in range(runs):
            one.append(wall_time(lambda: [work(part) for part in parts]))
            two.append(wall_time(lambda: list(pool.map(work, parts))))
    return min(one) / min(two)


def line(result: dict[str, Any]) -> str:
    speed, two = result["million_per_second"], result["two_threads"]
    return " | ".join(
        (
            f"| {result['type']}", "yes" if result["importance"] else "no", f"{speed['C']:.1f}",
            f"{speed['rtn']:.1f}", f"{speed['rtn'] / speed['C']:.1f}", "same" if result["bytes_equal"] else "DIFFER",
            f"{speed['opt-rtn']:.1f}", f"{speed['opt-rtn'] / speed['C']:.1f}", f"{result['error_ratio']:.4f}",
            f"{two['rtn']:.2f}", f"{two['opt-rtn']:.2f} |",
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", type=Path, required=True, metavar="LIBRARY")
    parser.add_argument("--types", default=",".join(CODECS), help="default: all")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    kinds = options.types.upper().split(",")
    unknown = set(kinds) - CODECS.keys()
    if unknown:
        sys.exit(f"no kernel for {', '.join(sorted(unknown))}; there are {', '.join(CODECS)}")
    quantize = reference(options.ggml)
    weights, importance = sample(options.rows, options.columns)
    results = []
    print("Million weights a second on one thread; times of C; two threads over one.\n")
    print("| type | importance | C | rtn | times | bytes | opt-rtn | times | error | 2 threads rtn | opt-rtn |")
    print("|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|")
    for kind in kinds:
        for given in (None, importance) if CODECS[kind].uses_importance else (None,):
            results.append(measure(kind, quantize, weights, given, options.runs))
            print(line(results[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
