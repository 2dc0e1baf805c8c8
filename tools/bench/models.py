#!/usr/bin/env python3
"""Writes a real model to measure with, as a Hugging Face checkpoint.

    python tools/bench/models.py smollm2|smollm2-768 DIR [--seed 7]

The weights of the demo's model lie exactly on the grid of Q4_1, on which a 4-bit type looks better than it is. Here
they are moved off it by changes that leave the function alone: wherever the output of one matrix or norm reaches
another with nothing between but scaling or addition, its channels may be scaled by any factor and the reader's columns
by the inverse. That holds for a norm and the matrices behind it, for v and o, for up and down.

`smollm2-768` also widens the residual stream from 576 to 768, so that every matrix has a multiple of 256 columns and
K-quants apply. Some channels are stored twice: what m copies hold is the old value over sqrt(m), which keeps the sum
of squares, so a norm is off only by the constant sqrt(768 / 576), which its gain takes up; a reader sums over the
copies. Likewise one group of attention heads is stored twice, and o reads each at half its weight.

Every build runs both models on a few tokens, in NumPy, and stops if their log-probabilities differ.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from llama import forward, log_probabilities

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import demo_model  # noqa: E402  (tools is no package)
from demo_model import Model  # noqa: E402

WIDE = 768
SPREAD = 0.35  # standard deviation of the logarithm of a channel's factor
# The capital of France is Paris, and the capital of Italy is
TOKENS = (
    504,
    3575,
    282,
    4649,
    314,
    7042,
    28,
    284,
    260,
    3575,
    282,
    7158,
    314,
)
TOLERANCE = 1e-2  # nats


def other_basis(model: Model, seed: int, wide: bool) -> Model:
    """The same function with other weights."""
    rng = np.random.default_rng(seed)
    config, old = model.config, model.weights
    hidden, groups = config["hidden_size"], config["num_key_value_heads"]
    head = hidden // config["num_attention_heads"]
    shared = config["num_attention_heads"] // groups  # query heads of a group
    width = WIDE if wide else hidden
    channels = np.arange(hidden)
    order = np.arange(groups)
    if wide:
        channels = rng.permutation(np.r_[channels, rng.choice(hidden, width - hidden, replace=False)])
        order = np.r_[order, [groups - 1] * (WIDE // head // shared - groups)]
    part = 1 / np.sqrt(np.bincount(channels)[channels])  # what one copy holds of its channel
    gain = np.sqrt(hidden / width)
    weight = 1 / np.bincount(order)[order]  # of a group's output

    def factors(n: int) -> np.ndarray:
        return np.exp(SPREAD * rng.standard_normal(n))

    def rows_of(groups_of: np.ndarray, size: int) -> np.ndarray:
        return (groups_of[:, None] * size + np.arange(size)).ravel()

    query, value = rows_of(order, shared * head), rows_of(order, head)
    new = {"model.embed_tokens.weight": old["model.embed_tokens.weight"][:, channels] * part}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        names = ("input_layernorm", "post_attention_layernorm")
        before_attention, before_mlp = factors(width), factors(width)
        for name, factor in zip(names, (before_attention, before_mlp), strict=True):
            new[f"{layer}{name}.weight"] = old[f"{layer}{name}.weight"][channels] * gain * factor
        values, ups = factors(value.size), factors(config["intermediate_size"])

        def reader(name: str, factor: np.ndarray, layer: str = layer) -> np.ndarray:
            return old[f"{layer}{name}.weight"][:, channels] * (part / factor)

        def writer(name: str, layer: str = layer) -> np.ndarray:
            return old[f"{layer}{name}.weight"][channels] * part[:, None]

        to_o = np.repeat(values.reshape(-1, 1, head), shared, 1).ravel() / np.repeat(weight, shared * head)
        new |= {
            f"{layer}self_attn.q_proj.weight": reader("self_attn.q_proj", before_attention)[query],
            f"{layer}self_attn.k_proj.weight": reader("self_attn.k_proj", before_attention)[value],
            f"{layer}self_attn.v_proj.weight": reader("self_attn.v_proj", before_attention)[value] * values[:, None],
            f"{layer}self_attn.o_proj.weight": writer("self_attn.o_proj")[:, query] / to_o,
            f"{layer}mlp.gate_proj.weight": reader("mlp.gate_proj", before_mlp),
            f"{layer}mlp.up_proj.weight": reader("mlp.up_proj", before_mlp) * ups[:, None],
            f"{layer}mlp.down_proj.weight": writer("mlp.down_proj") / ups,
        }
    new["model.norm.weight"] = old["model.norm.weight"][channels] * gain
    sizes = {
        "hidden_size": width,
        "head_dim": head,
        "num_attention_heads": shared * order.size,
        "num_key_value_heads": order.size,
        "rms_norm_eps": config["rms_norm_eps"] * hidden / width,
    }
    weights = {name: values.astype(np.float32) for name, values in new.items()}
    return replace(model, config=config | sizes, weights=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("smollm2", "smollm2-768"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seed", type=int, default=7, help="of the factors; the same seed gives the same bytes")
    options = parser.parse_args()
    model = demo_model.download()
    moved = other_basis(model, options.seed, options.name.endswith("768"))
    after, before = (
        log_probabilities(forward(m.config, m.weights, TOKENS), m.weights["model.embed_tokens.weight"])
        for m in (moved, model)
    )
    drift = float(np.abs(after - before).max())
    if drift > TOLERANCE:
        sys.exit(f"the rebuilt model's log-probabilities are off by {drift:.3g}, more than {TOLERANCE}")
    count = demo_model.write(moved, options.folder)
    print(f"{options.folder}: {count:,} weights in BF16; log-probabilities off by {drift:.2g} before rounding to BF16")


if __name__ == "__main__":
    main()
