"""Tiny models of SmallThinker and Arctic.

transformers has no class for them and none that computes the same: `tiny_forward` has their computation.
"""

from __future__ import annotations

from typing import Any

import tiny_forward
from tiny_parts import EMBD, FF, KV_HEADS, LAYERS, Tiny, config, llama_like, mixture

FULL = {"sliding_window_layout": [0] * LAYERS, "rope_layout": [1] * LAYERS}
MIXED = {"sliding_window_layout": [0, 1, 1, 1, 0], "rope_layout": [0, 1, 1, 1, 0], "sliding_window_size": 4096}


def smallthinker(layers: int, softmax: bool, **further: Any) -> dict[str, Any]:
    return config("SmallThinkerForCausalLM", "smallthinker", num_hidden_layers=layers, hidden_act=None, head_dim=64,
                  intermediate_size=None, moe_ffn_hidden_size=FF, moe_num_primary_experts=4,
                  moe_num_active_primary_experts=2, moe_enable_secondary_experts=False,
                  moe_primary_router_apply_softmax=softmax, rope_theta=1.5e6, **further)  # fmt: skip


def smallthinker_like(layers: int, head: bool) -> dict[str, tuple[int, ...]]:
    shapes = {name: shape for name, shape in llama_like(64, layers, head).items() if ".mlp." not in name}
    for i in range(layers):
        block = f"model.layers.{i}.block_sparse_moe."
        shapes[f"{block}primary_router.weight"] = (4, EMBD)
        for e in range(4):
            shapes |= {f"{block}experts.{e}.{name}.weight": (FF, EMBD) for name in ("gate", "up")}
            shapes[f"{block}experts.{e}.down.weight"] = (EMBD, FF)
    return shapes


def arctic_like() -> dict[str, tuple[int, ...]]:
    shapes = mixture(llama_like(), "block_sparse_moe", "w1", "w3", "w2")
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.residual_layernorm.weight"] = (EMBD,)
        shapes |= {f"model.layers.{i}.residual_mlp.{name}.weight": (EMBD, EMBD) for name in ("w1", "w2", "w3")}
    return shapes


CASES = (
    Tiny("smallthinker", smallthinker(5, False, tie_word_embeddings=True, **MIXED), smallthinker_like(5, False),
         loads=False, forward=tiny_forward.smallthinker),
    Tiny("smallthinker-full", smallthinker(LAYERS, True, **FULL), smallthinker_like(LAYERS, True), loads=False,
         forward=tiny_forward.smallthinker),
    Tiny(
        "arctic",
        config("ArcticForCausalLM", "arctic", num_key_value_heads=KV_HEADS, num_local_experts=4, num_experts_per_tok=2,
               parallel_attn_mlp_res=True, moe_layer_frequency=1, rope_theta=1e4),
        arctic_like(), "spm", loads=False, forward=tiny_forward.arctic,
    ),
)  # fmt: skip
