"""Tiny models of Seed-OSS, Arcee and Apertus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tiny_parts import LAYERS, Tiny, config, llama_like

QKV = ("q_proj", "k_proj", "v_proj")
YARN = {
    "rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 128, "mscale": 1.0, "beta_fast": 32.0,
    "beta_slow": 1.0,
}  # fmt: skip
UNGATED = {name: shape for name, shape in llama_like().items() if "gate_proj" not in name}
APERTUS_NAMES = {"input_layernorm": "attention_layernorm", "post_attention_layernorm": "feedforward_layernorm"}
SCALED = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
XIELU = {"alpha_n": 0.3, "alpha_p": 0.5, "beta": 0.5, "eps": -1e-6}


def apertus_like() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in llama_like(qk_norms=True).items():
        *start, last, end = name.split(".")
        if last != "gate_proj":
            shapes[".".join([*start, APERTUS_NAMES.get(last, last), end])] = shape
    for i in range(LAYERS):
        for name in XIELU:
            shapes[f"model.layers.{i}.mlp.act_fn.{name}"] = (1,) if "alpha" in name else ()
    return shapes


def xielu(name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """The activations' numbers, unlike from layer to layer but for those that transformers fixes."""
    if "act_fn" not in name:
        return None
    kind = name.rsplit(".", 1)[1]
    return np.full(shape, XIELU[kind] + (0.25 * int(name.split(".")[2]) if "alpha" in kind else 0), np.float32)


CASES = (
    Tiny("seed-oss", config("SeedOssForCausalLM", "seed_oss", head_dim=64, rope_theta=1e7, attention_bias=True,
                            attention_out_bias=False, mlp_bias=False, rope_scaling={"rope_type": "default"},
                            pad_token_id=0),
         llama_like(64, bias=QKV)),
    Tiny("arcee", config("ArceeForCausalLM", "arcee", hidden_act="relu2", rope_theta=1e4, rope_scaling=YARN), UNGATED,
         mistakes=("rope", "norm")),
    Tiny("apertus", config("ApertusForCausalLM", "apertus", hidden_act="xielu", rope_theta=12e6, rope_scaling=SCALED,
                           qk_norm=True, post_norm=False, pad_token_id=0),
         apertus_like(), special=xielu, mistakes=("rope", "norm")),
)  # fmt: skip
