"""A tiny model of Kimi Linear."""

from __future__ import annotations

import numpy as np

from tiny_parts import EMBD, HEADS, Tiny, config, ends, experts, feed_forward, norms

DELTA, KERNEL, LATENT, NOPE, SHARED, VALUE, FF = 32, 4, 64, 32, 16, 48, 160
WIDTH = HEADS * DELTA
Shapes = dict[str, tuple[int, ...]]


def special(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Decays as they are trained, convolutions that do something, norms whose names do not say so."""
    draw = np.random.default_rng(len(name) + shape[0])
    if name.endswith("A_log"):
        return np.log(draw.integers(1, 16, shape)) / 2
    if name.endswith("conv1d.weight"):
        return draw.standard_normal(shape) / 2
    if name.endswith("kv_a_layernorm.weight"):
        return draw.standard_normal(shape) / 3 + 1
    return None


def delta_attention(part: str) -> Shapes:
    return {
        **{f"{part}{name}_proj.weight": (WIDTH, EMBD) for name in "qkv"},
        **{f"{part}{name}_conv1d.weight": (WIDTH, 1, KERNEL) for name in "qkv"},
        f"{part}f_a_proj.weight": (DELTA, EMBD),
        f"{part}f_b_proj.weight": (WIDTH, DELTA),
        f"{part}g_a_proj.weight": (DELTA, EMBD),
        f"{part}g_b_proj.weight": (WIDTH, DELTA),
        f"{part}b_proj.weight": (HEADS, EMBD),
        f"{part}A_log": (1, 1, HEADS, 1),
        f"{part}dt_bias": (WIDTH,),
        f"{part}o_norm.weight": (DELTA,),
        f"{part}o_proj.weight": (EMBD, WIDTH),
    }


def latent_attention(part: str) -> Shapes:
    return {
        f"{part}q_proj.weight": (HEADS * (NOPE + SHARED), EMBD),
        f"{part}kv_a_proj_with_mqa.weight": (LATENT + SHARED, EMBD),
        f"{part}kv_a_layernorm.weight": (LATENT,),
        f"{part}kv_b_proj.weight": (HEADS * (NOPE + VALUE), LATENT),
        f"{part}o_proj.weight": (EMBD, HEADS * VALUE),
    }


def kimi(kinds: str) -> Shapes:
    """`kinds`: "d" for delta or "f" for latent attention, a letter a layer; experts in all but the first."""
    shapes: Shapes = dict(ends())
    for i, kind in enumerate(kinds):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes |= (delta_attention if kind == "d" else latent_attention)(f"{block}self_attn.")
        if i == 0:
            shapes |= dict(feed_forward(block))
            continue
        moe = f"{block}block_sparse_moe."
        shapes |= dict(experts(moe, "w1", "w3", "w2"))
        shapes |= {n: tuple(FF if k == 192 else k for k in s) for n, s in shapes.items() if n.startswith(moe)}
        shapes[f"{moe}gate.e_score_correction_bias"] = (4,)
        for name in ("gate", "up", "down"):
            shapes[f"{moe}shared_experts.{name}_proj.weight"] = (EMBD, FF) if name == "down" else (FF, EMBD)
    return shapes


CASES = (
    Tiny(
        "kimi-linear",
        config("KimiLinearForCausalLM", "kimi_linear", num_hidden_layers=3, max_position_embeddings=None,
               model_max_length=512, num_key_value_heads=HEADS, head_dim=72, rope_theta=1e4, rms_norm_eps=1e-5,
               linear_attn_config={"full_attn_layers": [2], "kda_layers": [1, 3], "head_dim": DELTA,
                                   "num_heads": HEADS, "short_conv_kernel_size": KERNEL},
               kv_lora_rank=LATENT, qk_nope_head_dim=NOPE, qk_rope_head_dim=SHARED, v_head_dim=VALUE,
               mla_use_nope=True, first_k_dense_replace=1, moe_intermediate_size=FF, moe_layer_freq=1,
               moe_renormalize=True, moe_router_activation_func="sigmoid", num_expert_group=1, topk_group=1,
               num_experts=4, num_experts_per_token=2, num_shared_experts=1, routed_scaling_factor=2.446,
               num_nextn_predict_layers=0, pad_token_id=0),
        kimi("dfd"), special=special, mistakes=("gate", "norm"),  # nothing is rotated
    ),
)  # fmt: skip
