#!/usr/bin/env python3
"""Perplexity of one model's checkpoints in the readers of others, and as `ggufround eval` finds it in the same files.

    python tools/bench/readers.py MODEL --text eval.txt --work DIR [--cases auto_round:W4A16:auto-round,...]

A case is FORMAT:SCHEME:READER, a reader one of tests/formats_loader.py, whose package must be there. All positions of
the chunks are scored. mlx-lm takes minutes for a chunk on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tuning import OURS

from ggufround.checkpoint import open_checkpoint
from ggufround.evaluate.texts import read_chunks

LOADER = Path(__file__).resolve().parents[2] / "tests" / "formats_loader.py"
CASES = (
    "auto_round:W4A16:auto-round,auto_round:W2A16G64:auto-round,auto_round:MXFP4:auto-round,"
    "auto_round:FP8_BLOCK:transformers,auto_gptq:W4A16:auto-round; GPTQ,auto_gptq:W3A16:auto-round; GPTQ,"
    "llm_compressor:W4A16:compressed-tensors,llm_compressor:W3A16:compressed-tensors,"
    "llm_compressor:MXFP8:compressed-tensors,llm_compressor:NVFP4A16:compressed-tensors"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--cases", default=CASES, help="a ; in a reader's name stands for a comma")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    ids = options.work / "ids.npy"
    np.save(ids, read_chunks(options.text, open_checkpoint(str(options.model)), 512, options.chunks).astype(np.int64))
    cases = [tuple(case.split(":")) for case in options.cases.split(",")]
    folders = [options.work / f"{name}-{scheme}" for name, scheme, _ in cases]
    for (name, scheme, reader), folder in zip(cases, folders, strict=True):
        if not folder.exists():
            words = ["convert", str(options.model), str(folder), "--format", name, "--scheme", scheme]
            subprocess.run([*OURS, *words], check=True, stdout=sys.stderr)
        command = [sys.executable, str(LOADER), reader.replace(";", ","), str(ids), str(folder), "--losses"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    words = ["eval", *map(str, folders), "--reference", str(options.model), "--text", str(options.text)]
    words += ["--chunks", str(options.chunks), "--all-positions", "--json"]
    said = subprocess.run([*OURS, *words], check=True, stdout=subprocess.PIPE).stdout
    print("| format | scheme | reader | perplexity there | here |\n|---|---|---|---:|---:|")
    for (name, scheme, reader), folder, found in zip(cases, folders, json.loads(said)["files"], strict=True):
        theirs = float(np.exp(np.load(f"{folder}.npy").mean()))
        print(f"| {name} | {scheme} | {reader.replace(';', ',')} | {theirs:.3f} | {found['perplexity']:.3f} |")


if __name__ == "__main__":
    main()
