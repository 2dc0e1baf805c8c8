"""Tiny ERNIE 4.5, plain and with experts."""

from __future__ import annotations

import numpy as np

from tiny_cases.deepseek import mixture
from tiny_parts import EMBD, HEADS, Shapes, Tiny, attention, config, ends, llama_like, norms

LAYERS, FF = 3, 256  # the converter takes the shared expert to be of FF over the key-value heads


def ernie_moe_like() -> Shapes:
    yield from ends(head=False)
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        yield from norms(block, "input_layernorm", "post_attention_layernorm")
        yield from attention(block, EMBD // HEADS)
        if i:
            yield from mixture(block)
            yield f"{block}mlp.moe_statics.e_score_correction_bias", (1, 8)
        else:
            for name, shape in (("gate_proj", (FF, EMBD)), ("up_proj", (FF, EMBD)), ("down_proj", (EMBD, FF))):
                yield f"{block}mlp.{name}.weight", shape


def small_bias(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Shares of eight experts sum to one: a larger bias would choose the same experts for every token."""
    if "e_score_correction_bias" not in name:
        return None
    return np.linspace(-0.05, 0.05, shape[1], dtype=np.float32).reshape(shape)


CASES = (
    Tiny(
        "ernie4.5",
        config("Ernie4_5ForCausalLM", "ernie4_5", head_dim=64, tie_word_embeddings=True, use_bias=False,
               rope_theta=5e5),
        llama_like(64, head=False), "spm",
    ),
    Tiny(
        "ernie4.5-moe",
        config("Ernie4_5_MoeForCausalLM", "ernie4_5_moe", num_hidden_layers=LAYERS, intermediate_size=FF,
               tie_word_embeddings=True, use_bias=False, moe_num_experts=8, moe_k=3, moe_intermediate_size=64,
               moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=LAYERS - 1, moe_layer_interval=1,
               rope_theta=5e5),
        dict(ernie_moe_like()), "spm", special=small_bias,
    ),
)  # fmt: skip
