"""Tiny models of Qwen3-Next and Qwen 3.5: two kinds of attention, and a head that predicts a further token."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, Tiny, config, ends, experts, feed_forward, norms

HEAD, KEYS, VALUES, WIDTH, KERNEL = 64, 2, 4, 32, 4  # of full attention; of linear attention: heads, columns of each
QKV = (2 * KEYS + VALUES) * WIDTH
LINEAR = {
    "head_dim": HEAD,
    "linear_conv_kernel_dim": KERNEL,
    "linear_key_head_dim": WIDTH,
    "linear_value_head_dim": WIDTH,
    "linear_num_key_heads": KEYS,
    "linear_num_value_heads": VALUES,
    "num_hidden_layers": 3,
}
SPARSE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": FF,
    "shared_expert_intermediate_size": 160,
}
Shapes = dict[str, tuple[int, ...]]


def special(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Norms are stored less 1, but for that of linear attention; decays and steps as they are trained; convolutions
    and queries that do something."""
    draw = np.random.default_rng(len(name) + shape[0])
    if name.endswith("linear_attn.norm.weight"):
        return draw.standard_normal(shape) / 3 + 1
    if "norm" in name:
        return draw.standard_normal(shape) / 3
    if name.endswith("A_log"):
        return np.log(draw.integers(1, 16, shape)) / 2
    if name.endswith("conv1d.weight"):
        return draw.standard_normal(shape) / 2
    return None


def full_attention(prefix: str) -> Shapes:
    """Queries with a gate for each."""
    part = f"{prefix}self_attn."
    return {
        f"{part}q_proj.weight": (2 * HEADS * HEAD, EMBD),
        f"{part}k_proj.weight": (KV_HEADS * HEAD, EMBD),
        f"{part}v_proj.weight": (KV_HEADS * HEAD, EMBD),
        f"{part}o_proj.weight": (EMBD, HEADS * HEAD),
        f"{part}q_norm.weight": (HEAD,),
        f"{part}k_norm.weight": (HEAD,),
    }


def linear_attention(prefix: str, fused: bool, values: int = VALUES) -> Shapes:
    part = f"{prefix}linear_attn."
    qkv = (2 * KEYS + values) * WIDTH
    projections: Shapes = {
        "in_proj_qkv.weight": (qkv, EMBD),
        "in_proj_z.weight": (values * WIDTH, EMBD),
        "in_proj_b.weight": (values, EMBD),
        "in_proj_a.weight": (values, EMBD),
    }
    if fused:
        projections = {
            "in_proj_qkvz.weight": (qkv + values * WIDTH, EMBD),
            "in_proj_ba.weight": (2 * values, EMBD),
        }
    further = {
        "conv1d.weight": (qkv, 1, KERNEL),
        "dt_bias": (values,),
        "A_log": (values,),
        "norm.weight": (WIDTH,),
        "out_proj.weight": (EMBD, values * WIDTH),
    }
    return {f"{part}{name}": shape for name, shape in (projections | further).items()}


def sparse(prefix: str, stacked: bool) -> Shapes:
    shapes = dict(experts(f"{prefix}mlp.", "gate_proj", "up_proj", "down_proj"))
    if stacked:
        shapes = {f"{prefix}mlp.gate.weight": (4, EMBD)}
        shapes[f"{prefix}mlp.experts.gate_up_proj"] = (4, 2 * FF, EMBD)
        shapes[f"{prefix}mlp.experts.down_proj"] = (4, EMBD, FF)
    shapes[f"{prefix}mlp.shared_expert_gate.weight"] = (1, EMBD)
    for name in ("gate_proj", "up_proj", "down_proj"):
        wide = (160, EMBD) if name != "down_proj" else (EMBD, 160)
        shapes[f"{prefix}mlp.shared_expert.{name}.weight"] = wide
    return shapes


def hybrid(
    kinds: str,
    *,
    fused: bool = False,
    moe: str = "",
    head: bool = True,
    ahead: bool = True,
    prefix: str = "model.",
    values: int = VALUES,
) -> Shapes:
    """`kinds`: "f" or "l" for each layer; `moe`: "" for a dense part, "apart" or "stacked"; `ahead`: a further block
    that predicts the token after the next."""
    shapes = dict(ends(prefix, head))
    for i, kind in enumerate(kinds + "f" * ahead):
        block = f"{prefix}layers.{i}." if i < len(kinds) else "mtp.layers.0."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes |= full_attention(block) if kind == "f" else linear_attention(block, fused, values)
        shapes |= sparse(block, moe == "stacked") if moe else dict(feed_forward(block))
    if ahead:
        shapes |= dict(norms("mtp.", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"))
        shapes["mtp.fc.weight"] = (EMBD, 2 * EMBD)
    return shapes


ROPE = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
MROPE = {**ROPE, "mrope_interleaved": True, "mrope_section": [3, 3, 2]}
LLF = ["linear_attention", "linear_attention", "full_attention"]
VISION: Shapes = {"model.visual.blocks.0.norm1.weight": (48,)}


def composite(class_name: str, model_type: str, **text: Any) -> dict[str, Any]:
    inner = config("", f"{model_type}_text", architectures=None, **text)
    outer = {"tie_word_embeddings": inner["tie_word_embeddings"], "vision_config": {"model_type": model_type}}
    return {"architectures": [class_name], "model_type": model_type, "text_config": inner, **outer}


CASES = (
    Tiny(
        "qwen3next",
        config("Qwen3NextForCausalLM", "qwen3_next", rope_theta=1e7, partial_rotary_factor=0.25, decoder_sparse_step=1,
               full_attention_interval=3, mlp_only_layers=[], norm_topk_prob=True, **LINEAR, **SPARSE),
        hybrid("llf", fused=True, moe="apart"), zero_norms=True, special=special,
    ),
    Tiny(
        "qwen35",
        composite("Qwen3_5ForConditionalGeneration", "qwen3_5", rope_parameters=MROPE, layer_types=LLF,
                  mtp_num_hidden_layers=1, full_attention_interval=4, **LINEAR),
        hybrid("llf", prefix="model.language_model.") | VISION, zero_norms=True, special=special,
    ),
    Tiny(
        "qwen35-text",
        config("Qwen3_5ForCausalLM", "qwen3_5_text", rope_parameters=MROPE, tie_word_embeddings=True,
               mtp_num_hidden_layers=1, full_attention_interval=3,
               **LINEAR | {"linear_num_value_heads": KEYS}),
        hybrid("llf", head=False, values=KEYS), zero_norms=True, special=special,
    ),
    Tiny(
        "qwen35moe",
        composite("Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", rope_parameters=ROPE, layer_types=LLF,
                  intermediate_size=None, mtp_num_hidden_layers=1, full_attention_interval=4, **LINEAR, **SPARSE),
        hybrid("llf", moe="stacked", prefix="model.language_model.") | VISION, zero_norms=True, special=special,
    ),
)  # fmt: skip
