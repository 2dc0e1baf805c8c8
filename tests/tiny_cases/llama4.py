"""Tiny models of Llama 4."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tiny_parts import EMBD, FF, Tiny, attention, config, ends, feed_forward, norms

EXPERTS, EXPERT_FF, LAYERS = 4, 96, 4
SCALED = {
    "rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip


def llama4_like(prefix: str, step: int, head: bool = True) -> dict[str, tuple[int, ...]]:
    shapes = dict(ends(f"{prefix}model.", head=False))
    if head:
        shapes[f"{prefix}lm_head.weight"] = shapes[f"{prefix}model.embed_tokens.weight"]
    for i in range(LAYERS):
        block = f"{prefix}model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes |= dict(attention(block, 64))
        width = EXPERT_FF if (i + 1) % step == 0 else FF
        inside = f"{block}feed_forward." + ("shared_expert." if width == EXPERT_FF else "")
        for name, shape in feed_forward("", width=width):
            shapes[inside + name.removeprefix("mlp.")] = shape
        if width == EXPERT_FF:
            shapes[f"{block}feed_forward.router.weight"] = (EXPERTS, EMBD)
            shapes[f"{block}feed_forward.experts.gate_up_proj"] = (EXPERTS, EMBD, 2 * EXPERT_FF)
            shapes[f"{block}feed_forward.experts.down_proj"] = (EXPERTS, EXPERT_FF, EMBD)
    return shapes


def special(name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Stacks that are the other way round."""
    if "experts." not in name:
        return None
    return np.random.default_rng(len(name)).standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5)


LLAMA4 = {
    "num_hidden_layers": LAYERS, "head_dim": 64, "intermediate_size": EXPERT_FF, "intermediate_size_mlp": FF,
    "num_local_experts": EXPERTS, "attention_chunk_size": 8192, "attn_scale": 0.1, "floor_scale": 8192,
    "attn_temperature_tuning": True, "use_qk_norm": True, "rope_theta": 500000.0, "pad_token_id": 0,
}  # fmt: skip

CASES = (
    Tiny(
        "llama4",
        config("Llama4ForCausalLM", "llama4_text", num_experts_per_tok=2, interleave_moe_layer_step=2,
               no_rope_layers=[], **LLAMA4),
        llama4_like("", 2), special=special,
    ),
    Tiny(
        "llama4-composite",
        {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
         "text_config": config("", "llama4_text", architectures=None, num_experts_per_tok=1,
                               interleave_moe_layer_step=1, no_rope_layers=[1, 1, 1, 0], rope_scaling=SCALED,
                               **LLAMA4)},
        llama4_like("language_model.", 1)
        | {"vision_model.layernorm_pre.weight": (64,), "multi_modal_projector.linear_1.weight": (EMBD, 64)},
        special=special, loads=False,
    ),
)  # fmt: skip
