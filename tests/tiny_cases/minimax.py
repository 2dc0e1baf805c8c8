"""A tiny model of MiniMax-M2."""

from __future__ import annotations

from tiny_parts import HEADS, KV_HEADS, LAYERS, Tiny, config, llama_like, mixture

HEAD = 64


def minimax() -> dict[str, tuple[int, ...]]:
    shapes = mixture(llama_like(HEAD, qk_norms=True), "block_sparse_moe", "w1", "w3", "w2")
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (HEADS * HEAD,)
        shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (KV_HEADS * HEAD,)
        shapes[f"model.layers.{i}.block_sparse_moe.e_score_correction_bias"] = (4,)
    return shapes


CASES = (
    Tiny(
        "minimax-m2",
        config("MiniMaxM2ForCausalLM", "minimax_m2", rope_theta=5e6, head_dim=HEAD, rotary_dim=HEAD // 2,
               num_local_experts=4, num_experts_per_tok=2, scoring_func="sigmoid", use_qk_norm=True,
               qk_norm_type="per_layer", use_routing_bias=True, shared_intermediate_size=0,
               attn_type_list=[1] * LAYERS),
        minimax(),
    ),
)  # fmt: skip
