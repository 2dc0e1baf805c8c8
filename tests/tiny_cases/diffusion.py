"""Tiny models of Dream and LLaDA: a Qwen 2 and a Llama but that every token sees every other.

llama.cpp's server, through which the other models are compared, completes no text with such models: that it loads them
is all that is tried.
"""

from __future__ import annotations

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, LAYERS, VOCAB, Tiny, config, llama_like, renamed, same_as

QKV = ("q_proj", "k_proj", "v_proj")
NAMES = (
    ("embed_tokens", "transformer.wte"),
    ("model.norm", "model.transformer.ln_f"),
    ("lm_head", "model.transformer.ff_out"),
    ("layers", "transformer.blocks"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ff_norm"),
    ("self_attn.o_proj", "attn_out"),
    ("self_attn.", ""),
    ("mlp.gate_proj", "ff_proj"),
    ("mlp.up_proj", "up_proj"),
    ("mlp.down_proj", "ff_out"),
)


CASES = (
    Tiny(
        "dream",
        config("DreamModel", "Dream", rope_theta=1e6),
        proof="loads",
        **same_as(Tiny("dream-twin", config("Qwen2ForCausalLM", "qwen2", rope_theta=1e6), llama_like(bias=QKV)), dict),
    ),
    Tiny(
        "llada",
        {"architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": EMBD, "mlp_hidden_size": FF,
         "n_heads": HEADS, "n_kv_heads": KV_HEADS, "n_layers": LAYERS, "max_sequence_length": 512, "vocab_size": VOCAB,
         "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms", "rms_norm_eps": 1e-5,
         "rope_theta": 500000.0, "weight_tying": False, "torch_dtype": "bfloat16"},
        proof="loads",
        **same_as(
            Tiny("llada-twin", config("LlamaForCausalLM", "llama", rope_theta=5e5), llama_like()),
            lambda tensors: renamed(tensors, *NAMES),
        ),
    ),
)  # fmt: skip
