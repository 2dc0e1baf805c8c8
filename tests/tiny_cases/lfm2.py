"""Tiny models of LFM2 and its mixtures of experts."""

from __future__ import annotations

import numpy as np

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, VOCAB, Tiny, config, norms

KERNEL, HEAD, EXPERTS = 3, EMBD // HEADS, 4
Shapes = dict[str, tuple[int, ...]]


def special(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Convolutions that do something, and norms whose names do not say so."""
    draw = np.random.default_rng(len(name) + shape[0])
    if name.endswith("layernorm.weight"):
        return draw.standard_normal(shape) / 3 + 1
    if name.endswith("conv.conv.weight"):
        return draw.standard_normal(shape)
    return None


def lfm2(kinds: str, *, width: int = FF, dense: int = 9, prefix: str = "model.") -> Shapes:
    """`kinds`: "c" for a convolution or "a" for attention, a letter a layer; `dense` layers without experts."""
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (VOCAB, EMBD), f"{prefix}embedding_norm.weight": (EMBD,)}
    for i, kind in enumerate(kinds):
        block = f"{prefix}layers.{i}."
        shapes |= dict(norms(block, "operator_norm", "ffn_norm"))
        if kind == "c":
            shapes[f"{block}conv.conv.weight"] = (EMBD, 1, KERNEL)
            shapes[f"{block}conv.in_proj.weight"] = (3 * EMBD, EMBD)
            shapes[f"{block}conv.out_proj.weight"] = (EMBD, EMBD)
        else:
            shapes[f"{block}self_attn.q_proj.weight"] = (EMBD, EMBD)
            shapes[f"{block}self_attn.k_proj.weight"] = (KV_HEADS * HEAD, EMBD)
            shapes[f"{block}self_attn.v_proj.weight"] = (KV_HEADS * HEAD, EMBD)
            shapes[f"{block}self_attn.out_proj.weight"] = (EMBD, EMBD)
            shapes[f"{block}self_attn.q_layernorm.weight"] = (HEAD,)
            shapes[f"{block}self_attn.k_layernorm.weight"] = (HEAD,)
        part = f"{block}feed_forward."
        for way in [part] if i < dense else [f"{part}experts.{e}." for e in range(EXPERTS)]:
            wide = width if i < dense else 160
            shapes |= {
                f"{way}w1.weight": (wide, EMBD),
                f"{way}w3.weight": (wide, EMBD),
                f"{way}w2.weight": (EMBD, wide),
            }
        if i >= dense:
            shapes[f"{part}gate.weight"] = (EXPERTS, EMBD)
            shapes[f"{part}expert_bias"] = (EXPERTS,)
    return shapes


CASES = (
    Tiny(
        "lfm2",
        config("Lfm2ForCausalLM", "lfm2", num_hidden_layers=3, rope_theta=1e6, intermediate_size=None, norm_eps=1e-5,
               block_ff_dim=250, block_auto_adjust_ff_dim=True, block_ffn_dim_multiplier=1.1, block_multiple_of=32,
               conv_L_cache=KERNEL, conv_bias=False, full_attn_idxs=[1], rms_norm_eps=None, tie_word_embeddings=True,
               pad_token_id=0),
        lfm2("cac"), special=special,
    ),
    Tiny(
        "lfm2moe",
        config("Lfm2MoeForCausalLM", "lfm2_moe", num_hidden_layers=3, rope_theta=1e6, norm_eps=1e-5,
               conv_L_cache=KERNEL, conv_bias=False, layer_types=["conv", "full_attention", "conv"], rms_norm_eps=None,
               tie_word_embeddings=True, num_dense_layers=1, num_experts=EXPERTS, num_experts_per_tok=2,
               moe_intermediate_size=160, use_expert_bias=True, norm_topk_prob=True, routed_scaling_factor=1.0,
               pad_token_id=0),
        lfm2("cac", dense=1), special=special,
    ),
)  # fmt: skip
