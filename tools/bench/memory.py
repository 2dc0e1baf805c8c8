#!/usr/bin/env python3
"""Shows that the peak memory of `ggufround convert` does not grow with the number of layers.

    python tools/bench/memory.py [--sizes 1,8] [--type q4_k_m] [--recipe opt-rtn] [--threads 2] [--work DIR]

The checkpoints are synthetic: Llama shapes, all weights zero, in sparse files that take no disk; they differ in the
number of layers only. The results do take disk, about 30 % of the stated sizes. Exit status 1 if the largest peak is
more than 10 % above the smallest.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from pathlib import Path

from convert import Cost, run

HIDDEN, INNER, HEADS, GROUPS, VOCABULARY = 2048, 8192, 16, 4, 256
SHARD = 2 * 10**9  # bytes
ALLOWED = 1.1


def matrices(layers: int) -> dict[str, list[int]]:
    """Shapes of all tensors of a Llama checkpoint with tied embeddings."""
    narrow = HIDDEN // HEADS * GROUPS
    layer = {
        "input_layernorm": [HIDDEN], "post_attention_layernorm": [HIDDEN],
        "self_attn.q_proj": [HIDDEN, HIDDEN], "self_attn.k_proj": [narrow, HIDDEN],
        "self_attn.v_proj": [narrow, HIDDEN], "self_attn.o_proj": [HIDDEN, HIDDEN],
        "mlp.gate_proj": [INNER, HIDDEN], "mlp.up_proj": [INNER, HIDDEN], "mlp.down_proj": [HIDDEN, INNER],
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    return shapes | {f"model.layers.{i}.{stem}.weight": shape for i in range(layers) for stem, shape in layer.items()}


def nbytes(shape: list[int]) -> int:
    return 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)


def write_sparse(folder: Path, size: float) -> int:
    """A checkpoint of about `size` bytes; returns the number of layers."""
    folder.mkdir(parents=True)
    shapes = matrices(1)
    layer = sum(nbytes(shape) for name, shape in shapes.items() if ".layers." in name)
    layers = max(1, round(size / layer))
    shards: list[dict[str, list[int]]] = [{}]
    filled = 0
    for name, shape in matrices(layers).items():
        if filled + nbytes(shape) > SHARD:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += nbytes(shape)
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        where |= dict.fromkeys(shard, file)
        header, end = {}, 0
        for name, shape in shard.items():
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + nbytes(shape)]}
            end += nbytes(shape)
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS,
        "num_hidden_layers": layers, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    files = {"config.json": config, "model.safetensors.index.json": {"weight_map": where}, **tokenizer()}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return layers


def tokenizer() -> dict[str, object]:
    """Byte-level BPE without merges: one token a byte, each written as the character that GPT-2 gave it."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
            "post_processor": None, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                "vocab": {letter: i for i, letter in enumerate(letters)}, "merges": [],
            },
        },
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False},
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,8", help="of the checkpoints in GB; default %(default)s")
    parser.add_argument("--type", default="q4_k_m")
    parser.add_argument("--recipe", default="opt-rtn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where files go; default: the system's place for temporary ones")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    figures: dict[str, tuple[int, Cost]] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for size in options.sizes.split(","):
            model, out = Path(work, f"{size}GB"), Path(work, "out.gguf")
            layers = write_sparse(model, float(size) * 1e9)
            command = [sys.executable, "-m", "ggufround", "convert", str(model), str(out)]
            command += ["--type", options.type, "--recipe", options.recipe, "--threads", str(options.threads)]
            if not figures:
                run(command)  # compiles the kernels
                out.unlink()
            figures[size] = layers, run(command)
            out.unlink()
    print(f"{options.type}, recipe {options.recipe}, {options.threads} threads\n")
    print("| checkpoint | layers | peak memory | wall |\n|---|---:|---:|---:|")
    for size, (layers, cost) in figures.items():
        print(f"| {size} GB | {layers} | {cost.peak / 1e6:.0f} MB | {cost.wall:.1f} s |")
    peaks = [cost.peak for _, cost in figures.values()]
    print(f"\nlargest over smallest peak: {max(peaks) / min(peaks):.3f} (allowed: {ALLOWED})")
    if options.json:
        report = {size: {"layers": layers} | cost._asdict() for size, (layers, cost) in figures.items()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return max(peaks) > ALLOWED * min(peaks)


if __name__ == "__main__":
    sys.exit(main())
