"""Tiny models of Gemma 4: one with an embedding a layer and borrowed keys, one with experts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, VOCAB, Tiny, config, ends, feed_forward, norms

WINDOW, FULL = "sliding_attention", "full_attention"
KINDS = [WINDOW, FULL, WINDOW, FULL, WINDOW, FULL]
HEAD, WIDE_HEAD, PER_LAYER, EXPERTS, EXPERT_FF = 64, 128, 32, 4, 64
ROPE = {
    WINDOW: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}


def gemma4_like(prefix: str, kinds: list[str], own: int, moe: bool) -> dict[str, tuple[int, ...]]:
    """`own`: layers with keys and values; with experts, full attention takes its values from its keys."""
    shapes = dict(ends(prefix, head=False))
    if not moe:
        shapes[f"{prefix}embed_tokens_per_layer.weight"] = (VOCAB, len(kinds) * PER_LAYER)
        shapes[f"{prefix}per_layer_model_projection.weight"] = (len(kinds) * PER_LAYER, EMBD)
        shapes[f"{prefix}per_layer_projection_norm.weight"] = (PER_LAYER,)
    for i, kind in enumerate(kinds):
        block = f"{prefix}layers.{i}."
        head = WIDE_HEAD if kind == FULL else HEAD
        keys = head * (1 if moe and kind == FULL else KV_HEADS)
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                             "post_feedforward_layernorm"))  # fmt: skip
        shapes[f"{block}self_attn.q_proj.weight"] = (HEADS * head, EMBD)
        shapes[f"{block}self_attn.o_proj.weight"] = (EMBD, HEADS * head)
        shapes[f"{block}self_attn.q_norm.weight"] = (head,)
        if i < own:
            shapes[f"{block}self_attn.k_proj.weight"] = (keys, EMBD)
            shapes[f"{block}self_attn.k_norm.weight"] = (head,)
            if not (moe and kind == FULL):
                shapes[f"{block}self_attn.v_proj.weight"] = (keys, EMBD)
        shapes |= dict(feed_forward(block, width=FF if i < own else 2 * FF))
        shapes[f"{block}layer_scalar"] = (1,)
        shapes |= _experts(block) if moe else _per_layer(block)
    return shapes


def _per_layer(block: str) -> dict[str, tuple[int, ...]]:
    return dict(norms(block, "post_per_layer_input_norm")) | {
        f"{block}per_layer_input_gate.weight": (PER_LAYER, EMBD),
        f"{block}per_layer_projection.weight": (EMBD, PER_LAYER),
    }


def _experts(block: str) -> dict[str, tuple[int, ...]]:
    names = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")
    return dict(norms(block, *names)) | {
        f"{block}router.proj.weight": (EXPERTS, EMBD),
        f"{block}router.scale": (EMBD,),
        f"{block}router.per_expert_scale": (EXPERTS,),
        f"{block}experts.gate_up_proj": (EXPERTS, 2 * EXPERT_FF, EMBD),
        f"{block}experts.down_proj": (EXPERTS, EMBD, EXPERT_FF),
    }


def special(name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Scores are not divided by the root of the heads' size: that is in the norms of queries and keys."""
    draw = np.random.default_rng(len(name))
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return draw.uniform(0.3, 0.7, shape).astype(np.float32)
    if name.endswith(("scale", "scalar")) or "layernorm_" in name:
        return draw.uniform(0.7, 1.3, shape).astype(np.float32)
    if name.endswith("router.proj.weight"):
        return draw.standard_normal(shape, np.float32)  # of what is divided by the root of the embedding's size
    return None


def gemma4_config(class_name: str | None, kinds: list[str], **further: Any) -> dict[str, Any]:
    return config(
        class_name or "", "gemma4_text", hidden_act=None, hidden_activation="gelu_pytorch_tanh", head_dim=HEAD,
        global_head_dim=WIDE_HEAD, num_hidden_layers=len(kinds), layer_types=kinds, sliding_window=8,
        rope_parameters=ROPE, final_logit_softcapping=30.0, tie_word_embeddings=True, pad_token_id=0,
        vocab_size_per_layer_input=VOCAB, use_bidirectional_attention=None, **further,
    )  # fmt: skip


CASES = (
    Tiny(
        "gemma4",
        {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
         "text_config": gemma4_config(None, KINDS, architectures=None, hidden_size_per_layer_input=PER_LAYER,
                                      num_kv_shared_layers=2, use_double_wide_mlp=True, attention_k_eq_v=False,
                                      enable_moe_block=False) | {"moe_intermediate_size": None}},
        gemma4_like("model.language_model.", KINDS, 4, False)
        | {"model.vision_tower.patch_embedder.input_proj.weight": (8, 8), "model.embed_vision.embedding.weight": (4, 8),
           "model.audio_tower.layers.0.norm.weight": (8,)},
        "spm", special=special, loads=False,
    ),
    Tiny(
        "gemma4-moe",
        gemma4_config("Gemma4ForCausalLM", KINDS[:4], hidden_size_per_layer_input=0, num_kv_shared_layers=0,
                      attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True,
                      num_experts=EXPERTS, top_k_experts=2, moe_intermediate_size=EXPERT_FF,
                      use_double_wide_mlp=False),
        gemma4_like("model.", KINDS[:4], 4, True), "spm", special=special,
    ),
)  # fmt: skip
