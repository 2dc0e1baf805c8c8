"""Tiny models of GPT-OSS, in BF16; tests/test_gpt_oss.py packs them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tiny_parts import EMBD, FF, HEADS, Tiny, attention, config, ends, norms

EXPERTS, LAYERS = 4, 3
# llama.cpp always rounds the ends of YaRN's ramp to whole columns, which is `truncate`. OpenAI's models say false:
# there the two differ a little, and no key of the file could tell.
YARN = {
    "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True,
    "original_max_position_embeddings": 128,
}  # fmt: skip


def gpt_oss_like() -> dict[str, tuple[int, ...]]:
    shapes = dict(ends())
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes |= dict(attention(block, 64, ("q_proj", "k_proj", "v_proj", "o_proj")))
        shapes[f"{block}self_attn.sinks"] = (HEADS,)
        shapes[f"{block}mlp.router.weight"] = (EXPERTS, EMBD)
        shapes[f"{block}mlp.router.bias"] = (EXPERTS,)
        experts = f"{block}mlp.experts."
        shapes[f"{experts}gate_up_proj"] = (EXPERTS, EMBD, 2 * FF)
        shapes[f"{experts}gate_up_proj_bias"] = (EXPERTS, 2 * FF)
        shapes[f"{experts}down_proj"] = (EXPERTS, FF, EMBD)
        shapes[f"{experts}down_proj_bias"] = (EXPERTS, EMBD)
    return shapes


def special(name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    if not name.endswith(("_proj", "_bias")):
        return None
    values = np.random.default_rng(len(name) + int(name.split(".")[2])).standard_normal(shape, np.float32)
    return values / 3 if name.endswith("_bias") else values / np.float32(shape[1] ** 0.5)


CASES = (
    Tiny(
        "gpt-oss",
        config("GptOssForCausalLM", "gpt_oss", num_hidden_layers=LAYERS, head_dim=64, num_local_experts=EXPERTS,
               num_experts_per_tok=2, experts_per_token=2, sliding_window=8, swiglu_limit=7.0, rope_theta=150000,
               rope_scaling=YARN, attention_bias=True, pad_token_id=0,
               layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
        gpt_oss_like(), special=special,
    ),
)  # fmt: skip
