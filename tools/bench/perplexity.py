#!/usr/bin/env python3
"""Perplexity of several GGUF files on one text, through llama.cpp, each compared chunk by chunk with the first file.

    python tools/bench/perplexity.py REFERENCE.gguf OTHER.gguf... --text eval.txt --peer-python PYTHON [--chunks 40]

A perplexity alone has an error of several percent from the choice of text; that of the difference is far smaller, since
both files see the same chunks. The table gives the mean difference of the log-perplexity, its standard error over the
chunks, and their ratio: beyond two, it is no accident. PYTHON is an environment with llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent


def chunks_of(file: Path, options: argparse.Namespace) -> list[float]:
    command = [options.peer_python, str(HERE / "peer_perplexity.py"), str(file), str(options.text)]
    command += ["--context", str(options.context), "--chunks", str(options.chunks), "--threads", str(options.threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    print(f"{file.name}: done", file=sys.stderr)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def paired(reference: list[float], other: list[float]) -> tuple[float, float]:
    """Mean difference and its standard error."""
    differences = [b - a for a, b in zip(reference, other, strict=True)]
    return mean(differences), stdev(differences) / math.sqrt(len(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.gguf", help="the first is the reference")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peer-python", required=True, metavar="PYTHON")
    parser.add_argument("--context", type=int, default=512, help="tokens of a chunk")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the figures of every chunk")
    options = parser.parse_args()
    results = {file: chunks_of(file, options) for file in options.files}
    reference = results[options.files[0]]
    if len(reference) < 2:
        sys.exit(f"{options.text} is too short: {len(reference)} chunks of {options.context} tokens, at least 2 needed")
    print(f"{options.text.name}: {len(reference)} chunks of {options.context} tokens\n")
    print("| file | MB | perplexity | log difference | standard error | in standard errors |")
    print("|---|---:|---:|---:|---:|---:|")
    for file, values in results.items():
        row = f"| {file.name} | {file.stat().st_size / 1e6:.1f} | {math.exp(mean(values)):.4f} "
        difference, error = paired(reference, values)
        if error:
            print(f"{row}| {difference:+.5f} | {error:.5f} | {difference / error:+.1f} |")
        else:
            print(f"{row}| {difference:+.5f} | 0 | {'same' if not difference else 'always'} |")
    if options.json:
        options.json.write_text(json.dumps({str(file): values for file, values in results.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
