"""Tiny models of the first OLMo, whose norms have no weights, and of OLMoE."""

from __future__ import annotations

from tiny_parts import EMBD, HEADS, LAYERS, Tiny, config, llama_like, mixture

OLMOE = config("OlmoeForCausalLM", "olmoe", num_key_value_heads=HEADS, num_experts=4, num_experts_per_tok=2)


def without_norms(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if "norm" not in name}


def olmoe_like() -> dict[str, tuple[int, ...]]:
    shapes = mixture(llama_like(), "mlp", "gate_proj", "up_proj", "down_proj")
    for i in range(LAYERS):
        block = f"model.layers.{i}.self_attn."
        shapes |= {f"{block}{name}_norm.weight": (EMBD,) for name in "qk"}
        shapes |= {f"{block}{name}_proj.weight": (EMBD, EMBD) for name in "kv"}
    return shapes


CASES = (
    Tiny(
        "olmo",
        config("OlmoForCausalLM", "olmo", rms_norm_eps=None, clip_qkv=1.5, num_key_value_heads=None, pad_token_id=1),
        without_norms(llama_like()) | {f"model.layers.{i}.self_attn.{name}_proj.weight": (EMBD, EMBD)
                                       for i in range(LAYERS) for name in "kv"},
        mistakes=("rope", "gate"),
    ),
    Tiny(
        "olmo-tied",
        config("OlmoForCausalLM", "olmo", rms_norm_eps=None, clip_qkv=None, tie_word_embeddings=True, pad_token_id=1),
        without_norms(llama_like(head=False)),
        mistakes=("rope", "gate"),
    ),
    Tiny("olmoe", OLMOE, olmoe_like()),
)  # fmt: skip
