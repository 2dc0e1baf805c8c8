"""Tiny models of Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi-3, OLMo 2 and their kin."""

from __future__ import annotations

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, LAYERS, Tiny, config, ends, llama_like, mixture, norms

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
CARD = """---
license: apache-2.0
language:
- en
- no
base_model: someone/Tiny-Base-1B
tags: [tiny, random]
---
# A tiny model
"""

LLAMA_CASES = (
    Tiny("llama", config("LlamaForCausalLM", "llama", rope_theta=10000.0), llama_like(), "spm", shards=2),
    Tiny("llama-sparse-config", config("LlamaForCausalLM", "llama", num_key_value_heads=HEADS, rms_norm_eps=None),
         llama_like() | {f"model.layers.{i}.self_attn.{name}.weight": (EMBD, EMBD)
                         for i in range(LAYERS) for name in ("k_proj", "v_proj")}),
    Tiny(
        "llama3",
        config("LlamaForCausalLM", "llama", rope_theta=5e5, rope_scaling=LLAMA3_SCALING, head_dim=64,
               tie_word_embeddings=True),
        llama_like(64, head=False),
        files={"README.md": CARD, "generation_config.json": '{"temperature": 0.6, "top_p": 0.9, "do_sample": true}'},
    ),
    Tiny(
        "llama-linear",
        config("LlamaForCausalLM", "llama", rope_scaling={"type": "linear", "factor": 2.0}, attention_bias=True,
               mlp_bias=True),
        llama_like(bias=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")),
    ),
    Tiny(
        "llama-yarn",
        config("LlamaForCausalLM", "llama", rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
            "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.1}),
        llama_like(),
    ),
)  # fmt: skip


def stacked(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Qwen's experts as transformers 5 holds them: one stack of gate over up, one of down."""
    kept = {name: shape for name, shape in shapes.items() if ".experts." not in name}
    for i in range(LAYERS):
        kept[f"model.layers.{i}.mlp.experts.gate_up_proj"] = (4, 2 * FF, EMBD)
        kept[f"model.layers.{i}.mlp.experts.down_proj"] = (4, EMBD, FF)
    return kept


def gemma_like(
    head_dim: int, layers: int, qk_norms: bool = False, prefix: str = "model."
) -> dict[str, tuple[int, ...]]:
    shapes = llama_like(head_dim, layers, head=False, qk_norms=qk_norms, prefix=prefix)
    for i in range(layers):
        shapes |= dict(norms(f"{prefix}layers.{i}.", "pre_feedforward_layernorm", "post_feedforward_layernorm"))
    return shapes


def phi3_like() -> dict[str, tuple[int, ...]]:
    shapes = dict(ends())
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes[f"{block}self_attn.qkv_proj.weight"] = (EMBD + 2 * KV_HEADS * (EMBD // HEADS), EMBD)
        shapes[f"{block}self_attn.o_proj.weight"] = (EMBD, EMBD)
        shapes[f"{block}mlp.gate_up_proj.weight"] = (2 * FF, EMBD)
        shapes[f"{block}mlp.down_proj.weight"] = (EMBD, FF)
    return shapes


def olmo2_like(layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {name: shape for name, shape in llama_like(layers=layers).items() if "input_layernorm" not in name}
    for i in range(layers):
        shapes |= dict(norms(f"model.layers.{i}.", "post_feedforward_layernorm"))
        shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (EMBD,)
        shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (KV_HEADS * (EMBD // HEADS),)
    return shapes


GEMMA = {
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 32,
    "tie_word_embeddings": True,
}
GEMMA3 = {**GEMMA, "num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1 + k / 8 for k in range(12)],
    "long_factor": [2 + k / 2 for k in range(12)],
}
QWEN3MOE = config(
    "Qwen3MoeForCausalLM", "qwen3_moe", head_dim=64, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=FF, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], rope_theta=1e6,
)  # fmt: skip
QWEN_EXPERTS = mixture(llama_like(64, qk_norms=True), "mlp", "gate_proj", "up_proj", "down_proj")

FURTHER_CASES = (
    Tiny("mistral", config("MistralForCausalLM", "mistral", sliding_window=256, rope_theta=1e6), llama_like(), "spm"),
    Tiny("mistral-head-dim", config("MistralForCausalLM", "mistral", sliding_window=None, head_dim=64), llama_like(64)),
    Tiny(
        "mixtral",
        config("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2, rope_theta=1e6),
        mixture(llama_like(), "block_sparse_moe", "w1", "w3", "w2"),
        "spm",
    ),
    Tiny(
        "smollm3",
        config("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=5, tie_word_embeddings=True, rope_theta=2e6,
               no_rope_layer_interval=4, use_sliding_window=False, pad_token_id=0),
        llama_like(layers=5, head=False),
    ),
    Tiny(
        "granite",
        config("GraniteForCausalLM", "granite", attention_multiplier=0.25, embedding_multiplier=3.0,
               residual_multiplier=0.5, logits_scaling=4.0, tie_word_embeddings=True),
        llama_like(head=False),
    ),
    Tiny("qwen2", config("Qwen2ForCausalLM", "qwen2", rope_theta=1e6), llama_like(bias=("q_proj", "k_proj", "v_proj"))),
    Tiny(
        "qwen2-bare",
        config("Qwen2Model", "qwen2", rope_scaling={"rope_type": "yarn", "factor": 4.0,
                                                    "original_max_position_embeddings": 128}),
        llama_like(bias=("q_proj", "k_proj", "v_proj"), head=False, prefix=""),
        loads=False,
    ),
    Tiny(
        "qwen3",
        config("Qwen3ForCausalLM", "qwen3", head_dim=64, tie_word_embeddings=True, rope_theta=1e6),
        llama_like(64, head=False, qk_norms=True),
    ),
    Tiny("qwen3moe", QWEN3MOE, QWEN_EXPERTS),
    Tiny("qwen3moe-stacked", QWEN3MOE, stacked(QWEN_EXPERTS)),
    Tiny(
        "gemma2",
        config("Gemma2ForCausalLM", "gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0, **GEMMA),
        gemma_like(64, LAYERS), "spm", zero_norms=True,
    ),
    Tiny("gemma3", config("Gemma3ForCausalLM", "gemma3_text", **GEMMA3), gemma_like(64, 7, True), "spm",
         zero_norms=True),
    Tiny(
        "gemma3-composite",
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
         "text_config": config("", "gemma3_text", architectures=None, rms_norm_eps=None, max_position_embeddings=None,
                               **GEMMA3 | {"rope_theta": None, "rope_local_base_freq": None, "sliding_window": None,
                                           "sliding_window_pattern": None,
                                           "rope_scaling": {"rope_type": "linear", "factor": 8.0}})},
        gemma_like(64, 7, True, "language_model.model.")
        | {"vision_tower.vision_model.post_layernorm.weight": (64,),
           "multi_modal_projector.mm_soft_emb_norm.weight": (64,)},
        "spm", zero_norms=True, loads=False,
    ),
    Tiny("phi3", config("Phi3ForCausalLM", "phi3", sliding_window=256, pad_token_id=0), phi3_like(), "spm"),
    Tiny(
        "phi3-longrope",
        config("Phi3ForCausalLM", "phi3", rope_scaling=LONGROPE, partial_rotary_factor=0.75,
               original_max_position_embeddings=256, pad_token_id=0),
        phi3_like(),
    ),
    Tiny("olmo2", config("Olmo2ForCausalLM", "olmo2", rope_theta=5e5, pad_token_id=0), olmo2_like(LAYERS)),
    Tiny(
        "olmo3",
        config("Olmo3ForCausalLM", "olmo3", num_hidden_layers=4, rope_theta=5e5, sliding_window=32, pad_token_id=0),
        olmo2_like(4),
    ),
)  # fmt: skip

CASES = (*LLAMA_CASES, *FURTHER_CASES)
