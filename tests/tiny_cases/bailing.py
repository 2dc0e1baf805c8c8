"""Tiny Ling models, the first and the second."""

from __future__ import annotations

import numpy as np

from tiny_cases.deepseek import EXPERT_FF, gated, mixture, next_token
from tiny_parts import EMBD, HEADS, KV_HEADS, VOCAB, Shapes, Tiny, config, feed_forward, norms

LAYERS, HEAD = 3, EMBD // HEADS
COMMON = {
    "num_hidden_layers": LAYERS,
    "moe_intermediate_size": EXPERT_FF,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 2,
    "norm_topk_prob": True,
    "rope_theta": 10000.0,
    "head_dim": HEAD,
}


def bailing_like(layers: int, second: bool) -> Shapes:
    yield "model.word_embeddings.weight", (VOCAB, EMBD)
    yield "model.norm.weight", (EMBD,)
    yield "lm_head.weight", (VOCAB, EMBD)
    for i in range(layers):
        prefix = f"model.layers.{i}."
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")
        yield f"{prefix}attention.query_key_value.weight", ((HEADS + 2 * KV_HEADS) * HEAD, EMBD)
        yield f"{prefix}attention.dense.weight", (EMBD, EMBD)
        if second:
            yield f"{prefix}attention.query_layernorm.weight", (HEAD,)
            yield f"{prefix}attention.key_layernorm.weight", (HEAD,)
        if second and i == 0:
            yield from feed_forward(prefix)
        else:
            yield from mixture(prefix)
            if second:
                yield f"{prefix}mlp.gate.expert_bias", (8,)
    if second:
        yield from (
            (n, s) for n, s in next_token(LAYERS) if n.endswith(("eh_proj.weight", "enorm.weight", "hnorm.weight"))
        )
        yield from norms(f"model.layers.{LAYERS}.", "final_layernorm")


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Scores that differ as much as those of other cases, and an embedding like theirs."""
    values = np.random.default_rng(len(name)).standard_normal(shape, dtype=np.float32)
    if name.endswith("word_embeddings.weight"):
        return values / 4
    return values * 1.5 / EMBD**0.5 if "query_key_value" in name else None


def split(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of Qwen's and GLM's checkpoints."""
    names = {
        "word_embeddings": "embed_tokens",
        "attention.dense": "self_attn.o_proj",
        "attention.query_layernorm": "self_attn.q_norm",
        "attention.key_layernorm": "self_attn.k_norm",
        "gate.expert_bias": "gate.e_score_correction_bias",
    }
    found = {}
    for name, value in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)  # noqa: PLW2901
        if "query_key_value" not in name:
            found[name] = value
            continue
        rows = (HEADS * HEAD, (HEADS + KV_HEADS) * HEAD)
        for part, piece in zip("qkv", np.split(value, rows), strict=True):
            found[name.replace("attention.query_key_value", f"self_attn.{part}_proj")] = piece
    return found


def trunk(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in split(tensors).items() if f"layers.{LAYERS}." not in name}


CASES = (
    Tiny(
        "bailing",
        config("BailingMoeForCausalLM", "bailing_moe", **COMMON, first_k_dense_replace=0, norm_head=False),
        dict(bailing_like(LAYERS, second=False)), special=weight, loads=False,
        twin=config("Qwen2MoeForCausalLM", "qwen2_moe", **COMMON, shared_expert_intermediate_size=2 * EXPERT_FF,
                    qkv_bias=False),
        as_twin=lambda tensors: gated(split(tensors)),
    ),
    Tiny(
        "bailing2",
        config("BailingMoeV2ForCausalLM", "bailing_moe_v2", **COMMON, first_k_dense_replace=1, score_function="sigmoid",
               n_group=4, topk_group=2, routed_scaling_factor=2.5, partial_rotary_factor=0.5,
               moe_shared_expert_intermediate_size=EXPERT_FF, num_nextn_predict_layers=1),
        dict(bailing_like(LAYERS + 1, second=True)), special=weight, loads=False,
        twin=config("Glm4MoeForCausalLM", "glm4_moe", **COMMON, first_k_dense_replace=1, n_group=4, topk_group=2,
                    n_routed_experts=8, n_shared_experts=2, routed_scaling_factor=2.5, partial_rotary_factor=0.5,
                    use_qk_norm=True, pad_token_id=0),
        as_twin=trunk,
    ),
)  # fmt: skip
