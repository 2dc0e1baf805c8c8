"""A tiny model of DBRX."""

from __future__ import annotations

import numpy as np

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, LAYERS, VOCAB, Tiny

EXPERTS = 4


def dbrx_like() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, EMBD),
        "transformer.norm_f.weight": (EMBD,),
        "lm_head.weight": (VOCAB, EMBD),
    }
    for i in range(LAYERS):
        block = f"transformer.blocks.{i}."
        shapes |= {
            f"{block}norm_attn_norm.norm_1.weight": (EMBD,),
            f"{block}norm_attn_norm.norm_2.weight": (EMBD,),
            f"{block}norm_attn_norm.attn.Wqkv.weight": (EMBD + 2 * KV_HEADS * (EMBD // HEADS), EMBD),
            f"{block}norm_attn_norm.attn.out_proj.weight": (EMBD, EMBD),
            f"{block}ffn.router.layer.weight": (EXPERTS, EMBD),
            **{f"{block}ffn.experts.mlp.{name}": (EXPERTS * FF, EMBD) for name in ("w1", "v1", "w2")},
        }
    return shapes


def norms_near_one(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if len(shape) > 1:
        return None
    return 1 + np.random.default_rng(len(name)).standard_normal(shape) / 3


CASES = (
    Tiny(
        "dbrx",
        {"architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "d_model": EMBD, "n_heads": HEADS,
         "n_layers": LAYERS, "max_seq_len": 512, "vocab_size": VOCAB, "tie_word_embeddings": False,
         "attn_config": {"model_type": "", "clip_qkv": 1.5, "kv_n_heads": KV_HEADS, "rope_theta": 500000},
         "ffn_config": {"model_type": "", "ffn_hidden_size": FF, "moe_num_experts": EXPERTS, "moe_top_k": 2},
         "rope_theta": 500000,  # where transformers 5 looks for it; the published config states the inner one only
         "torch_dtype": "bfloat16"},
        dbrx_like(), special=norms_near_one,
    ),
)  # fmt: skip
