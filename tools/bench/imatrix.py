#!/usr/bin/env python3
"""Collects an importance matrix from a Llama checkpoint and a text, and writes it as llama.cpp reads it.

    python tools/bench/imatrix.py MODEL TEXT OUT.dat [--chunks 20] [--context 512]

For every matrix in the layers: the mean square of each input channel over the tokens, as llama-imatrix collects it, in
its older file format. The forward pass is NumPy's, in float32 (llama.py): meant for the small models of models.py.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path

import numpy as np
from llama import forward
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from demo_model import HF_NAMES  # noqa: E402  (tools is no package)

GGUF_NAMES = {hf: gguf for gguf, hf in HF_NAMES.items()}


def read_bf16(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a checkpoint's BF16 shards, in float32."""
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = np.memmap(path, np.uint8, "r")
        length = int(data[:8].view(np.uint64)[0])
        for name, entry in json.loads(data[8 : 8 + length].tobytes()).items():
            if name != "__metadata__":
                assert entry["dtype"] == "BF16", (path, name, entry["dtype"])
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                bits = np.frombuffer(data[start:end].tobytes(), np.uint16).astype(np.uint32) << 16
                weights[name] = bits.view(np.float32).reshape(entry["shape"])
    return weights


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight as blk.3.ffn_up.weight."""
    layer, stem = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[stem]}.weight"


def write(path: Path, means: dict[str, np.ndarray], calls: int, text: str) -> None:
    """Count; for each entry name, calls, values (mean times calls); then calls and the text's name."""

    def string(value: str) -> bytes:
        return struct.pack("<i", len(value.encode())) + value.encode()

    with path.open("wb") as out:
        out.write(struct.pack("<i", len(means)))
        for name, mean in means.items():
            out.write(string(name) + struct.pack("<ii", calls, mean.size) + (mean * calls).astype("<f4").tobytes())
        out.write(struct.pack("<i", calls) + string(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--context", type=int, default=512, help="tokens of a chunk")
    options = parser.parse_args()
    config = json.loads((options.model / "config.json").read_text())
    config["rope_theta"] = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    weights = read_bf16(options.model)
    tokens = Tokenizer.from_file(str(options.model / "tokenizer.json")).encode(options.text.read_text()).ids
    chunks = [tokens[i : i + options.context] for i in range(0, len(tokens), options.context)][: options.chunks]
    chunks = [chunk for chunk in chunks if len(chunk) == options.context]
    if not chunks:
        sys.exit(f"{options.text} has {len(tokens)} tokens, fewer than --context {options.context}")
    sums: dict[str, np.ndarray] = {}

    def see(name: str, inputs: np.ndarray) -> None:
        key = gguf_name(name)
        sums[key] = sums.get(key, 0) + np.square(inputs, dtype=np.float64).sum(0)

    for number, chunk in enumerate(chunks, 1):
        forward(config, weights, chunk, see)
        print(f"\rchunk {number} of {len(chunks)}", end="", file=sys.stderr, flush=True)
    seen = len(chunks) * options.context
    write(options.out, {name: total / seen for name, total in sums.items()}, len(chunks), options.text.name)
    print(f"\n{options.out}: {len(sums)} matrices, {seen:,} tokens")


if __name__ == "__main__":
    main()
