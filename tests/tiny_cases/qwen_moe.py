"""Tiny mixtures of Qwen 2: routed experts and a gated one for all tokens."""

from __future__ import annotations

from tiny_parts import EMBD, LAYERS, Tiny, config, llama_like, mixture

SHARED = 96


def qwen2moe_like() -> dict[str, tuple[int, ...]]:
    shapes = mixture(llama_like(bias=("q_proj", "k_proj", "v_proj")), "mlp", "gate_proj", "up_proj", "down_proj")
    for i in range(LAYERS):
        block = f"model.layers.{i}.mlp."
        shapes[f"{block}shared_expert_gate.weight"] = (1, EMBD)
        shapes[f"{block}shared_expert.gate_proj.weight"] = (SHARED, EMBD)
        shapes[f"{block}shared_expert.up_proj.weight"] = (SHARED, EMBD)
        shapes[f"{block}shared_expert.down_proj.weight"] = (EMBD, SHARED)
    return shapes


CASES = (
    Tiny(
        "qwen2moe",
        config("Qwen2MoeForCausalLM", "qwen2_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=192,
               shared_expert_intermediate_size=SHARED, norm_topk_prob=False, decoder_sparse_step=1, rope_theta=1e6),
        qwen2moe_like(),
    ),
)  # fmt: skip
