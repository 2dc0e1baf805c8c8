"""A tiny model of MiMo, which is a Qwen 2 with blocks that are left out."""

from __future__ import annotations

import numpy as np

from tiny_parts import EMBD, HEADS, Tiny, config, llama_like, same_as

FURTHER = {"rope_theta": 64e4, "head_dim": EMBD // HEADS, "use_sliding_window": False, "sliding_window": 256}
TWIN = Tiny("mimo-twin", config("Qwen2ForCausalLM", "qwen2", **FURTHER),
            llama_like(bias=("q_proj", "k_proj", "v_proj")))  # fmt: skip


def with_further_blocks(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first = {name: tensor for name, tensor in tensors.items() if ".layers.0." in name}
    block = {name.replace(".layers.", ".mtp_layers."): tensor for name, tensor in first.items()}
    return tensors | block | {"model.mtp_layers.0.input_proj.weight": np.ones((EMBD, 2 * EMBD), np.float32)}


CASES = (
    Tiny("mimo", config("MiMoForCausalLM", "mimo", num_nextn_predict_layers=1, **FURTHER),
         **same_as(TWIN, with_further_blocks)),
)  # fmt: skip
