#!/usr/bin/env python3
"""Compares quantised checkpoints with auto-round's: CPU and wall time, peak memory, divergence from the model.

    python tools/bench/checkpoints.py MODEL --text eval.txt --work DIR --autoround-python PYTHON [--schemes W4A16,MXFP4]
        [--calib calib.txt --schemes W4A16,W2A16G64 --iters 50 --batch-size 8]

Without --calib: plain rounding, auto-round's model-free mode against `--recipe rtn`, and our search. With it: both
tuned on the same tokens. All are auto_round checkpoints, read by `ggufround eval`. What is in DIR is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tuning import NORMAL_95, OURS, timed

PEER_RTN = ("-m", "auto_round", "--iters", "0", "--disable_opt_rtn", "--format", "auto_round")
PEER_TUNED = Path(__file__).resolve().parent / "peer_autoround.py"


def jobs(scheme: str, options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Commands by what they are called; {out} is the folder that they write into."""
    model, threads = str(options.model), ("--threads", str(options.threads))
    ours = (*OURS, "convert", model, "{out}/ours", "--format", "auto_round", "--scheme", scheme, *threads, "--recipe")
    if options.calib is None:
        peer = (options.autoround_python, *PEER_RTN, "--model", model, "--scheme", scheme, "--output_dir", "{out}")
        return {"auto-round": peer, "rtn": (*ours, "rtn"), "opt-rtn": (*ours, "opt-rtn")}
    few = ("--samples", str(options.samples), "--seqlen", str(options.seqlen), "--seed", str(options.seed))
    few = (*few, "--iters", str(options.iters), "--batch-size")
    batch, peers_batch = str(options.batch_size), str(options.peer_batch_size or options.batch_size)
    peer = (options.autoround_python, str(PEER_TUNED), model, "{out}", str(options.calib), *few, peers_batch, *threads)
    return {
        "auto-round, tuned": (*peer, "--scheme", scheme, "--format", "auto_round", "--alg-ext"),
        "light": (*ours, "light", "--calib", str(options.calib), *few, batch),
    }


def checkpoint(folder: Path) -> Path:
    """The one checkpoint in a folder."""
    (config,) = (p for p in folder.rglob("config.json"))
    return config.parent


def make(name: str, command: tuple[str, ...], options: argparse.Namespace) -> dict[str, float] | None:
    """What it cost; None where it failed."""
    folder: Path = options.work / name.replace(" ", "-").replace(",", "")
    about = folder.with_suffix(".json")
    if about.exists():
        known: dict[str, float] = json.loads(about.read_text())
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    filled = [word.replace("{out}", str(folder)) for word in command]
    print(" ".join(filled), file=sys.stderr)
    log = folder.with_suffix(".log")
    try:
        cost, _ = timed(filled, log)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{name}: failed, {log} tells more: {error}", file=sys.stderr)
        return None
    about.write_text(json.dumps(cost))
    return cost


def evaluated(folders: list[Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [*OURS, "eval", *map(str, folders), "--reference", str(options.model), "--text", str(options.text)]
    command += ["--chunks", str(options.chunks), "--all-positions", "--threads", str(options.threads), "--json"]
    _, said = timed(command, options.work / "eval.log")
    found: list[dict[str, Any]] = json.loads(said)["files"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--autoround-python", required=True)
    parser.add_argument("--schemes", default="W4A16,MXFP4")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--peer-batch-size", type=int, help="auto-round's; default: as --batch-size")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print("| scheme | | CPU, s | wall, s | peak, MB | perplexity | KL divergence, mean |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for scheme in options.schemes.split(","):
        costs = {}
        for name, command in jobs(scheme, options).items():
            if (cost := make(f"{scheme} {name}", command, options)) is not None:
                costs[name] = cost
        places = [checkpoint(options.work / f"{scheme} {name}".replace(" ", "-").replace(",", "")) for name in costs]
        for (name, cost), found in zip(costs.items(), evaluated(places, options), strict=True):
            mean, error = found["divergence"]["mean"], NORMAL_95 * found["divergence"]["error"]
            cells = (
                scheme, name, f"{cost['cpu']:.1f}", f"{cost['wall']:.1f}", f"{cost['peak'] / 1e6:.0f}",
                f"{found['perplexity']:.3f}", f"{mean:.4f} ± {error:.4f}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
