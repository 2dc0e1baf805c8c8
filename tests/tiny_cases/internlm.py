"""Tiny models of InternLM 2 (which transformers knows as a Llama in another arrangement) and InternLM 3."""

from __future__ import annotations

import numpy as np

from tiny_parts import EMBD, HEADS, KV_HEADS, LAYERS, Tiny, config, llama_like, renamed, same_as

HEAD = EMBD // HEADS
ALL_BIASES = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")
NAMES = (
    ("embed_tokens", "tok_embeddings"),
    ("lm_head", "output"),
    ("input_layernorm", "attention_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.o_proj", "attention.wo"),
    ("mlp.gate_proj", "feed_forward.w1"),
    ("mlp.up_proj", "feed_forward.w3"),
    ("mlp.down_proj", "feed_forward.w2"),
)


def internlm2(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each key-value head its queries, its key and its value, one below the other."""
    names = {name for name in tensors if any(f".{part}_proj." in name for part in "qkv")}
    made = renamed({name: tensor for name, tensor in tensors.items() if name not in names}, *NAMES)
    for i in range(LAYERS):
        for kind in ("weight", "bias"):
            parts = [tensors.get(f"model.layers.{i}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            if parts[0] is not None:
                columns = parts[0].shape[1:]
                grouped = [part.reshape(KV_HEADS, -1, HEAD, *columns) for part in parts if part is not None]
                made[f"model.layers.{i}.attention.wqkv.{kind}"] = np.concatenate(grouped, 1).reshape(-1, *columns)
    return made


CASES = (
    Tiny(
        "internlm2",
        config("InternLM2ForCausalLM", "internlm2", bias=False, rope_theta=1e6, rope_scaling={"type": "dynamic",
               "factor": 2.0}),
        tokenizer="spm",
        **same_as(Tiny("internlm2-twin", config("LlamaForCausalLM", "llama", rope_theta=1e6), llama_like()), internlm2),
    ),
    Tiny(
        "internlm3",
        config("InternLM3ForCausalLM", "internlm3", head_dim=HEAD, rope_theta=5e7, bias=False, qkv_bias=False,
               rope_scaling={"rope_type": "dynamic", "factor": 6.0}),
        llama_like(), "spm",
    ),
    Tiny(
        "internlm3-biases",
        config("InternLM3ForCausalLM", "internlm3", head_dim=HEAD, attention_bias=True, mlp_bias=True,
               rope_theta=5e7),
        llama_like(bias=ALL_BIASES), "spm",
    ),
)  # fmt: skip
