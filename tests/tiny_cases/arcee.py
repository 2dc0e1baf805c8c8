"""Tiny models of Arcee and Apertus, whose feed-forward parts have no gate, and Seed-OSS."""

from __future__ import annotations

import numpy as np

from tiny_cases.first import LLAMA3_SCALING
from tiny_parts import LAYERS, Tiny, config, llama_like

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0,
        "beta_slow": 1.0}  # fmt: skip

XIELU = {"alpha_n": -0.5, "alpha_p": 1.25, "beta": 0.5, "eps": -1e-6}


def apertus_like() -> dict[str, tuple[int, ...]]:
    names = (("input_layernorm", "attention_layernorm"), ("post_attention_layernorm", "feedforward_layernorm"))
    shapes = {name: shape for name, shape in llama_like(64, qk_norms=True).items() if "gate_proj" not in name}
    for old, new in names:
        shapes = {name.replace(old, new): shape for name, shape in shapes.items()}
    for i in range(LAYERS):
        at = f"model.layers.{i}.mlp.act_fn."
        shapes |= {f"{at}alpha_n": (1,), f"{at}alpha_p": (1,), f"{at}beta": (), f"{at}eps": ()}
    return shapes


def of_activation(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Other numbers in each block for those that are learned."""
    if ".act_fn." not in name:
        return None
    number = XIELU[name.rpartition(".")[2]]
    return np.full(shape, number * (1 + int(name.split(".")[2])) if "alpha" in name else number)


CASES = (
    Tiny(
        "apertus",
        config("ApertusForCausalLM", "apertus", hidden_act="xielu", head_dim=64, rope_theta=12e6, qk_norm=True,
               post_norm=False, rope_scaling=LLAMA3_SCALING),
        apertus_like(), special=of_activation,
    ),
    Tiny(
        "arcee",
        config("ArceeForCausalLM", "arcee", hidden_act="relu2", head_dim=64, rope_theta=1e4, rope_scaling=YARN),
        {name: shape for name, shape in llama_like(64).items() if "gate_proj" not in name},
    ),
    Tiny(
        "seed-oss",
        config("SeedOssForCausalLM", "seed_oss", head_dim=64, rope_theta=1e7, attention_bias=True,
               attention_out_bias=False),
        llama_like(64, bias=("q_proj", "k_proj", "v_proj")),
    ),
)  # fmt: skip
