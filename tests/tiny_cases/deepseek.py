"""Tiny DeepSeek models: V1 with Llama's attention, V2 and V3 with a latent one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tiny_parts import EMBD, HEADS, VOCAB, Shapes, Tiny, attention, config, ends, feed_forward, norms

EXPERT_FF, LAYERS, LEADING = 64, 3, 1
NOPE, ROPE, VALUE, KV_LORA, Q_LORA = 32, 16, 24, 64, 96
INDEX_HEADS, INDEX_HEAD = 16, 64
LATENT = {
    "num_key_value_heads": HEADS,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": VALUE,
    "kv_lora_rank": KV_LORA,
    "q_lora_rank": Q_LORA,
    "num_hidden_layers": LAYERS,
    "first_k_dense_replace": LEADING,
    "moe_intermediate_size": EXPERT_FF,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "rms_norm_eps": 1e-6,  # transformers' norms of latents have this one whatever the config says
}
MOE = ("first_k_dense_replace", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "num_experts_per_tok")
YARN = {
    "type": "yarn", "factor": 4, "original_max_position_embeddings": 128, "beta_fast": 32, "beta_slow": 1,
    "mscale": 0.707, "mscale_all_dim": 0.707,
}  # fmt: skip


def latent_attention(prefix: str, q_lora: int = 0) -> Shapes:
    block, rows = f"{prefix}self_attn.", HEADS * (NOPE + ROPE)
    if q_lora:
        yield f"{block}q_a_proj.weight", (q_lora, EMBD)
        yield f"{block}q_a_layernorm.weight", (q_lora,)
        yield f"{block}q_b_proj.weight", (rows, q_lora)
    else:
        yield f"{block}q_proj.weight", (rows, EMBD)
    yield f"{block}kv_a_proj_with_mqa.weight", (KV_LORA + ROPE, EMBD)
    yield f"{block}kv_a_layernorm.weight", (KV_LORA,)
    yield f"{block}kv_b_proj.weight", (HEADS * (NOPE + VALUE), KV_LORA)
    yield f"{block}o_proj.weight", (EMBD, HEADS * VALUE)


def mlp(prefix: str, rows: int) -> Shapes:
    for name, shape in (("gate_proj", (rows, EMBD)), ("up_proj", (rows, EMBD)), ("down_proj", (EMBD, rows))):
        yield f"{prefix}{name}.weight", shape


def mixture(prefix: str, count: int = 8, shared: int = 2, selection: bool = False) -> Shapes:
    yield f"{prefix}mlp.gate.weight", (count, EMBD)
    if selection:
        yield f"{prefix}mlp.gate.e_score_correction_bias", (count,)
    for e in range(count):
        yield from mlp(f"{prefix}mlp.experts.{e}.", EXPERT_FF)
    if shared:
        yield from mlp(f"{prefix}mlp.shared_experts.", shared * EXPERT_FF)


def block(number: int, q_lora: int = 0, selection: bool = False) -> Shapes:
    prefix = f"model.layers.{number}."
    yield from norms(prefix, "input_layernorm", "post_attention_layernorm")
    yield from latent_attention(prefix, q_lora)
    yield from feed_forward(prefix) if number < LEADING else mixture(prefix, selection=selection)


def deepseek_like(layers: int = LAYERS, q_lora: int = 0, selection: bool = False) -> dict[str, tuple[int, ...]]:
    return dict(ends()) | {name: shape for i in range(layers) for name, shape in block(i, q_lora, selection)}


def next_token(number: int) -> Shapes:
    """What a block past the last has besides a block's tensors, to predict the token after the next."""
    prefix = f"model.layers.{number}."
    yield f"{prefix}eh_proj.weight", (EMBD, 2 * EMBD)
    yield from norms(prefix, "enorm", "hnorm", "shared_head.norm")
    yield f"{prefix}embed_tokens.weight", (VOCAB, EMBD)
    yield f"{prefix}shared_head.head.weight", (VOCAB, EMBD)


def youtu() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ends(head=False)
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")
        yield from latent_attention(prefix, Q_LORA)
        yield from feed_forward(prefix)


def dots1() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ends()
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")
        shapes = dict(attention(prefix, 32, norms=True))
        yield from (shapes | {f"{prefix}self_attn.{n}_proj.weight": (HEADS * 32, EMBD) for n in "kv"}).items()
        yield from feed_forward(prefix) if i < LEADING else mixture(prefix, selection=True)


def first_deepseek() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ends()
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")
        yield from attention(prefix, EMBD // HEADS)
        yield from feed_forward(prefix) if i < LEADING else mixture(prefix)


def gated(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Qwen 2's mixtures multiply the shared expert by a gate: where that is a half, by twice its last matrix."""
    named = {}
    for name, value in tensors.items():
        to = name.replace("shared_experts", "shared_expert")
        named[to] = value * 2 if to.endswith("shared_expert.down_proj.weight") else value
        if name.endswith("mlp.gate.weight"):
            named[name.replace("gate.weight", "shared_expert_gate.weight")] = np.zeros((1, EMBD), np.float32)
    return named


def indexer(number: int) -> Shapes:
    prefix = f"model.layers.{number}.self_attn.indexer."
    yield f"{prefix}wq_b.weight", (INDEX_HEADS * INDEX_HEAD, Q_LORA)
    yield f"{prefix}wk.weight", (INDEX_HEAD, EMBD)
    yield f"{prefix}k_norm.weight", (INDEX_HEAD,)
    yield f"{prefix}k_norm.bias", (INDEX_HEAD,)
    yield f"{prefix}weights_proj.weight", (INDEX_HEADS, EMBD)


def sparse_like() -> dict[str, tuple[int, ...]]:
    shapes = deepseek_like(LAYERS + 1, Q_LORA, True) | dict(next_token(LAYERS))
    return shapes | {name: shape for i in range(LAYERS + 1) for name, shape in indexer(i)}


V3 = config(
    "DeepseekV3ForCausalLM", "deepseek_v3", **LATENT, scoring_func="sigmoid", norm_topk_prob=True, n_group=1,
    topk_group=1, routed_scaling_factor=2.5, rope_theta=10000.0,
)  # fmt: skip


def text_part(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    start = "language_model."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


CASES = (
    Tiny(
        "kimi-vl",
        {"architectures": ["KimiVLForConditionalGeneration"], "model_type": "kimi_vl", 
         "text_config": {key: value for key, value in V3.items() if key != "architectures"}},
        {f"language_model.{name}": shape for name, shape in deepseek_like(q_lora=Q_LORA, selection=True).items()}
        | {"vision_tower.patch_embed.proj.weight": (64, 64), "multi_modal_projector.linear_1.weight": (64, 64)},
        loads=False, twin=V3, as_twin=text_part,
    ),
    Tiny(
        "glm5",
        config("GlmMoeDsaForCausalLM", "glm_moe_dsa", **LATENT, scoring_func="sigmoid", norm_topk_prob=True,
               n_group=1, topk_group=1, routed_scaling_factor=2.5, num_nextn_predict_layers=1, rope_theta=10000.0,
               index_topk=4, index_head_dim=INDEX_HEAD, index_n_heads=INDEX_HEADS, pad_token_id=0,
               indexer_types=["full", "full", "shared"]),
        {name: shape for name, shape in sparse_like().items() if "layers.2.self_attn.indexer" not in name},
        unread=(f"model.layers.{LAYERS}.",),
    ),
    Tiny(
        "deepseek3.2",
        config("DeepseekV32ForCausalLM", "deepseek_v32", **LATENT, scoring_func="sigmoid", norm_topk_prob=True,
               n_group=4, topk_group=2, routed_scaling_factor=2.5, num_nextn_predict_layers=1, rope_theta=10000.0,
               index_topk=4, index_head_dim=INDEX_HEAD, index_n_heads=INDEX_HEADS),
        sparse_like(), unread=(f"model.layers.{LAYERS}.",),
    ),
    Tiny(
        "youtu",
        config("YoutuForCausalLM", "youtu", **{key: value for key, value in LATENT.items() if key not in MOE},
               rope_theta=10000.0, tie_word_embeddings=True),
        dict(youtu()),
    ),
    Tiny(
        "dots1",
        config("Dots1ForCausalLM", "dots1", num_key_value_heads=HEADS, head_dim=32, num_hidden_layers=LAYERS,
               first_k_dense_replace=LEADING, moe_intermediate_size=EXPERT_FF, n_routed_experts=8, n_shared_experts=2,
               num_experts_per_tok=3, norm_topk_prob=True, routed_scaling_factor=2.5, scoring_func="sigmoid",
               n_group=1, topk_group=1, rope_theta=10000.0, sliding_window=None),
        dict(dots1()),
    ),
    Tiny(
        "deepseek2-lite",
        config("DeepseekV2ForCausalLM", "deepseek_v2", **LATENT, scoring_func="softmax", topk_method="greedy",
               norm_topk_prob=False, n_group=1, topk_group=1, routed_scaling_factor=1.0, moe_layer_freq=1)
        | {"q_lora_rank": None},
        deepseek_like(),
    ),
    Tiny(
        "deepseek2",
        config("DeepseekV2ForCausalLM", "deepseek_v2", **LATENT, topk_method="greedy",
               routed_scaling_factor=3.0, rope_scaling=YARN),
        deepseek_like(q_lora=Q_LORA),
    ),
    Tiny(
        "deepseek3",
        config("DeepseekV3ForCausalLM", "deepseek_v3", **LATENT, scoring_func="sigmoid",
               topk_method="noaux_tc", norm_topk_prob=True, n_group=4, topk_group=2, routed_scaling_factor=2.5,
               num_nextn_predict_layers=1, rope_theta=10000,
               rope_scaling=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}),
        deepseek_like(LAYERS + 1, Q_LORA, True) | dict(next_token(LAYERS)), unread=(f"model.layers.{LAYERS}.",),
    ),
    Tiny(
        "deepseek",
        config("DeepseekForCausalLM", "deepseek", num_hidden_layers=LAYERS,
               first_k_dense_replace=LEADING, moe_intermediate_size=EXPERT_FF, n_routed_experts=8, n_shared_experts=2,
               num_experts_per_tok=3, norm_topk_prob=False, scoring_func="softmax", moe_layer_freq=1,
               rope_theta=10000.0),
        dict(first_deepseek()), loads=False,
        twin=config("Qwen2MoeForCausalLM", "qwen2_moe", num_hidden_layers=LAYERS, mlp_only_layers=[0],
                    moe_intermediate_size=EXPERT_FF, num_experts=8, shared_expert_intermediate_size=2 * EXPERT_FF,
                    num_experts_per_tok=3, norm_topk_prob=False, qkv_bias=False, rope_theta=10000.0),
        as_twin=gated,
    ),
)  # fmt: skip
