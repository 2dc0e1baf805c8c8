#!/usr/bin/env python3
"""Shows that the peak memory of a tuned run does not grow with the number of layers.

    python tools/bench/depth.py MODEL --calib calib.txt [--times 1,4] [--type q2_k] [--flags '--iters 2 --samples 4']

MODEL is a real checkpoint, such as models.py writes; deeper ones have its layers several times over. What they say is
nonsense, but they take a block's memory as any model does. Few steps of few samples are enough for a peak. What is kept
of all layers lies in memory up to a fixed size and in a file beyond it, so the deeper model may well take less. Exit
status 1 if any takes more than 10 % more than the first.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import sys
import tempfile
from pathlib import Path

from convert import Cost, run
from memory import ALLOWED

FLAGS = "--iters 2 --samples 4 --seqlen 512 --batch-size 2"


def deeper(model: Path, folder: Path, times: int) -> int:
    """A copy of the checkpoint with its layers `times` times over; returns their number."""
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.is_file() and not path.name.startswith("model"):
            shutil.copy(path, folder)
    config = json.loads((model / "config.json").read_text())
    layers = config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers * times}))
    where: dict[str, str] = {}
    for k in range(times):
        for shard in sorted(model.glob("*.safetensors")):
            where |= copy_shard(shard, folder / f"model-{k}-{shard.name}", k, layers)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return int(layers * times)


def copy_shard(shard: Path, out: Path, k: int, layers: int) -> dict[str, str]:
    """The shard with its layers renamed as those of the k-th time; what lies outside the layers is there once."""
    with shard.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__", None)
        found, end, spans = {}, 0, []
        for name, entry in header.items():
            inside = re.match(r"(model\.layers\.)(\d+)(\..*)", name)
            if not inside and k:
                continue
            first, last = entry["data_offsets"]
            spans.append((file.tell() + first, last - first))
            new = f"{inside[1]}{int(inside[2]) + k * layers}{inside[3]}" if inside else name
            found[new] = entry | {"data_offsets": [end, end + last - first]}
            end += last - first
        text = json.dumps(found).encode()
        with out.open("wb") as to:
            to.write(struct.pack("<Q", len(text)) + text)
            for place, size in spans:
                file.seek(place)
                to.write(file.read(size))
    return dict.fromkeys(found, out.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--times", default="1,4", help="default %(default)s")
    parser.add_argument("--type", default="q2_k")
    parser.add_argument("--flags", default=FLAGS, help="for the tuned runs; default %(default)r")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where files go; default: the system's place for temporary ones")
    options = parser.parse_args()
    figures: dict[int, Cost] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for times in map(int, options.times.split(",")):
            model, out = Path(work, f"x{times}"), Path(work, f"x{times}.gguf")
            layers = deeper(options.model, model, times)
            command = [sys.executable, "-m", "ggufround", "convert", str(model), str(out), "--type", options.type]
            command += ["--recipe", "light", "--calib", str(options.calib), "--threads", str(options.threads)]
            figures[layers] = run([*command, *options.flags.split()])
            shutil.rmtree(model)
            out.unlink()
    print(f"{options.type}, light, {options.flags}, {options.threads} threads\n")
    print("| layers | peak memory | CPU |\n|---:|---:|---:|")
    for layers, cost in figures.items():
        print(f"| {layers} | {cost.peak / 1e6:.0f} MB | {cost.cpu:.0f} s |")
    peaks = [cost.peak for cost in figures.values()]
    print(f"\nlargest over the first: {max(peaks) / peaks[0]:.3f} (allowed: {ALLOWED})")
    return max(peaks) > ALLOWED * peaks[0]


if __name__ == "__main__":
    sys.exit(main())
