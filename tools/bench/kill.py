#!/usr/bin/env python3
"""Kills a tuned run of a real model at random moments, goes on, and compares the bytes with an uninterrupted run's.

    python tools/bench/kill.py MODEL --calib calib.txt [--kills 5] [--seed 1] [--type q2_k] [--flags '--iters 4']

The moments are drawn from the first part of the time that the uninterrupted run took, so that most runs are killed; one
that comes to its end is compared, and the next begins anew. Exit status 1 if a single byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLAGS = "--iters 4 --samples 4 --seqlen 256 --batch-size 2"


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", default="q2_k")
    parser.add_argument("--flags", default=FLAGS, help="default %(default)r")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where files go; default: the system's place for temporary ones")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        whole, killed = Path(work, "whole.gguf"), Path(work, "killed.gguf")

        def command(out: Path) -> list[str]:
            words = [sys.executable, "-m", "ggufround", "convert", str(options.model), str(out), "--type", options.type]
            words += ["--recipe", "light", "--calib", str(options.calib), "--threads", str(options.threads)]
            return [*words, *options.flags.split(), "--json"]

        start = time.perf_counter()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        expected = digest(whole)
        print(f"uninterrupted: {took:.0f} s, {expected[:16]}", flush=True)
        kills, different = 0, 0
        while kills < options.kills or not killed.exists():
            moment = draw.uniform(0.05, 0.6) * took if kills < options.kills else None
            killed.unlink(missing_ok=True)
            run = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL)
            try:
                if run.wait(moment):
                    sys.exit(f"a run that was not killed failed with {run.returncode}")
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                kills += 1
                log = killed.with_name(killed.name + ".tuning.jsonl")
                blocks = len(log.read_text().splitlines()) if log.exists() else 0
                print(f"killed after {moment:.0f} s: {blocks} blocks tuned, OUT there: {killed.exists()}", flush=True)
                continue
            found = digest(killed)
            different += found != expected
            print(f"gone through: {found[:16]}, the same bytes: {found == expected}", flush=True)
        return different > 0


if __name__ == "__main__":
    sys.exit(main())
