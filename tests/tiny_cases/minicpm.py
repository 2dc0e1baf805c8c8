"""Tiny MiniCPM and MiniCPM 3."""

from __future__ import annotations

from tiny_cases.deepseek import LATENT
from tiny_parts import EMBD, HEADS, Shapes, Tiny, config, ends, feed_forward, llama_like, norms

KV_LORA, NOPE, ROPE, VALUE, Q_LORA = 64, 32, 16, EMBD // HEADS, 96


def factors(columns: int) -> dict[str, object]:
    half = range(columns // 2)
    return {
        "type": "longrope",
        "short_factor": [1 + k / 8 for k in half],
        "long_factor": [2 + k / 2 for k in half],
        "original_max_position_embeddings": 512,
    }


def minicpm3_like() -> Shapes:
    yield from ends(head=False)
    for i in range(2):
        prefix = f"model.layers.{i}."
        block = f"{prefix}self_attn."
        yield from norms(prefix, "input_layernorm", "post_attention_layernorm")
        yield f"{block}q_a_proj.weight", (Q_LORA, EMBD)
        yield f"{block}q_a_layernorm.weight", (Q_LORA,)
        yield f"{block}q_b_proj.weight", (HEADS * (NOPE + ROPE), Q_LORA)
        yield f"{block}kv_a_proj_with_mqa.weight", (KV_LORA + ROPE, EMBD)
        yield f"{block}kv_a_layernorm.weight", (KV_LORA,)
        yield f"{block}kv_b_proj.weight", (HEADS * (NOPE + VALUE), KV_LORA)
        yield f"{block}o_proj.weight", (EMBD, HEADS * VALUE)
        yield from feed_forward(prefix)


MULTIPLIED = {"scale_emb": 3, "scale_depth": 0.7, "dim_model_base": 32}
# The same model in terms of a class that transformers has.
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.7 / 2**0.5, "logits_scaling": EMBD / 32,
           "attention_multiplier": (EMBD // HEADS) ** -0.5}  # fmt: skip
MINICPM3 = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "tie_word_embeddings": True,
            **{key: LATENT[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "q_lora_rank")},
            "num_key_value_heads": HEADS, "v_head_dim": VALUE, "rms_norm_eps": 1e-6}  # fmt: skip

CASES = (
    Tiny(
        "minicpm",
        config("MiniCPMForCausalLM", "minicpm", **MULTIPLIED, rope_theta=10000.0, tie_word_embeddings=True),
        llama_like(head=False), "spm", loads=False,
        twin=config("GraniteForCausalLM", "granite", **GRANITE, rope_theta=10000.0, tie_word_embeddings=True),
    ),
    Tiny(
        "minicpm-longrope",
        config("MiniCPMForCausalLM", "minicpm", **MULTIPLIED, rope_theta=10000.0, rope_scaling=factors(32)),
        llama_like(), "spm", loads=False,
        twin=config("GraniteForCausalLM", "granite", **GRANITE, rope_theta=10000.0, rope_scaling=factors(32)),
    ),
    Tiny("minicpm3", config("MiniCPM3ForCausalLM", "minicpm3", **MINICPM3, rope_theta=10000.0),
         dict(minicpm3_like()), "spm"),
    Tiny("minicpm3-longrope",
         config("MiniCPM3ForCausalLM", "minicpm3", **MINICPM3, rope_theta=50000.0, rope_scaling=factors(ROPE)),
         dict(minicpm3_like()), "spm"),
)  # fmt: skip
