#!/usr/bin/env python3
"""Compares the importance that ggufround collects with llama.cpp's own on the same tokens: differences and times.

    python tools/bench/imatrix_agreement.py MODEL TEXT [--type bf16] [--samples 20] [--seqlen 512] [--threads 2]

llama.cpp runs a GGUF of that type, made here, in the environment of --peer-python, where xllamacpp must be (there is
no llama-imatrix in any wheel; tests/llama_imatrix.py does what it does). Once with a cache and attention in float32,
once with llama-imatrix's defaults. A difference is that of a channel's mean square, relative to llama.cpp's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ggufround import convert
from ggufround.checkpoint import open_checkpoint
from ggufround.quants.squares import Squares
from ggufround.tune.calibration import CalibrationOptions, load_calibration
from ggufround.tune.imatrix import Computing, collect_importance, matrices_of
from ggufround.tune.skeleton import Skeleton

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import llama_imatrix  # noqa: E402  (the tests are no package)


def differences(ours: Mapping[str, Squares], theirs: llama_imatrix.Collected) -> dict[str, np.ndarray]:
    """Relative differences of all channels by kind of tensor ("ffn_down")."""
    kinds = defaultdict(list)
    for name, seen in ours.items():
        np.testing.assert_array_equal(seen.counts, theirs.counts[name], name)
        truth = theirs.sums[name]
        kinds[name.split(".")[2]].append(np.abs(seen.sums / np.where(truth > 0, truth, 1) - 1)[truth > 0].ravel())
    return {kind: np.concatenate(parts) for kind, parts in sorted(kinds.items())}


def show(title: str, found: Mapping[str, np.ndarray]) -> None:
    print(f"\n{title}\n{'tensors':<16}{'median':>12}{'99.9 %':>12}{'largest':>12}")
    for kind, values in [*found.items(), ("all", np.concatenate(list(found.values())))]:
        print(f"{kind:<16}" + "".join(f"{v:12.2e}" for v in (*np.quantile(values, (0.5, 0.999)), values.max())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--type", default="bf16")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--amp", action="store_true", help="ours with products in bfloat16")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter that has xllamacpp")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = open_checkpoint(options.model)
    skeleton = Skeleton(checkpoint)
    wanted = CalibrationOptions((options.text,), options.samples, options.seqlen, holdout=0)
    ids = load_calibration(wanted, checkpoint, skeleton.vocab).ids
    started = time.perf_counter()
    ours = collect_importance(skeleton, matrices_of(checkpoint), ids, computing=Computing(amp=options.amp)).squares
    print(f"{options.model}: {len(ours)} tensors, {ids.shape[0]} x {ids.shape[1]} tokens of {Path(options.text).name}")
    print(f"ggufround: {time.perf_counter() - started:.1f} s", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        convert(options.model, folder / "model.gguf", type=options.type)
        for defaults in (False, True):
            started = time.perf_counter()
            theirs = llama_imatrix.run(
                folder / "model.gguf", ids, folder, False, options.threads, defaults, options.peer_python
            )
            assert ours.keys() == theirs.sums.keys(), ours.keys() ^ theirs.sums.keys()
            how = "llama-imatrix's defaults" if defaults else "cache and attention in float32"
            title = f"llama.cpp on {options.type}, {how}: {time.perf_counter() - started:.1f} s with its collection"
            show(title, differences(ours, theirs))


if __name__ == "__main__":
    main()
