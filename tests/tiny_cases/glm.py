"""Tiny GLM-4, GLM-4.5 and GLM-4.7-Flash."""

from __future__ import annotations

from tiny_cases.deepseek import LATENT, Q_LORA, deepseek_like, mixture, next_token
from tiny_cases.vision import DEPTH, IMAGE_TOKEN, SEEING, WIDTH, below, composite, preprocessor
from tiny_cases.vision_only import glm4v_tower
from tiny_parts import EMBD, FF, Shapes, Tiny, attention, config, ends, feed_forward, norms

LAYERS = 3
BIASED = ("q_proj", "k_proj", "v_proj")
MOE = {
    "num_hidden_layers": LAYERS,
    "head_dim": 64,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "attention_bias": True,
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e6,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 0,
}


def glm4_like(head_dim: int = 64) -> Shapes:
    yield from ends()
    for i in range(2):
        block = f"model.layers.{i}."
        yield from norms(block, "input_layernorm", "post_attention_layernorm")
        yield from norms(block, "post_self_attn_layernorm", "post_mlp_layernorm")
        yield from attention(block, head_dim, BIASED)
        yield f"{block}mlp.gate_up_proj.weight", (2 * FF, EMBD)
        yield f"{block}mlp.down_proj.weight", (EMBD, FF)


def glm4_moe_like(layers: int, qk_norms: bool) -> Shapes:
    yield from ends()
    for i in range(layers):
        block = f"model.layers.{i}."
        yield from norms(block, "input_layernorm", "post_attention_layernorm")
        yield from attention(block, 64, BIASED, qk_norms)
        yield from mixture(block, shared=1, selection=True) if i else feed_forward(block)


UNREAD = (f"model.layers.{LAYERS}.",)  # transformers has no code for the block that predicts a token further
CASES = (
    Tiny(
        "glm",
        config("GlmForCausalLM", "glm", head_dim=32, attention_bias=True, partial_rotary_factor=0.5, pad_token_id=0,
               rope_theta=50000.0, rms_norm_eps=1.5625e-07),
        {name: shape for name, shape in glm4_like(32) if "post_self_attn" not in name and "post_mlp" not in name},
    ),
    Tiny(
        "glm4",
        config("Glm4ForCausalLM", "glm4", head_dim=64, attention_bias=True, partial_rotary_factor=0.5, pad_token_id=0,
               rope_theta=10000.0),
        dict(glm4_like()),
    ),
    Tiny(
        "glm4moe",
        config("Glm4MoeForCausalLM", "glm4_moe", use_qk_norm=True, **MOE),
        dict(glm4_moe_like(LAYERS + 1, True)) | dict(next_token(LAYERS)), unread=UNREAD,
    ),
    Tiny(  # as transformers saves it: its config still tells of the block that is gone
        "glm4moe-trunk",
        config("Glm4MoeForCausalLM", "glm4_moe", use_qk_norm=False, **MOE),
        dict(glm4_moe_like(LAYERS, False)),
    ),
    Tiny(
        "glm4moe-lite",
        config("Glm4MoeLiteForCausalLM", "glm4_moe_lite", **LATENT, norm_topk_prob=True, n_group=1, topk_group=1,
               topk_method="noaux_tc", routed_scaling_factor=1.8, num_nextn_predict_layers=1, pad_token_id=0,
               rope_theta=10000.0),
        deepseek_like(LAYERS + 1, Q_LORA, True) | dict(next_token(LAYERS)), unread=UNREAD,
    ),
    Tiny(
        "glm4v",
        composite(
            "Glm4vForConditionalGeneration", "glm4v",
            config("", "glm4v_text", attention_bias=True, pad_token_id=0, rope_parameters={
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                "mrope_section": [2, 3, 3]}),
            {"depth": DEPTH, "hidden_size": WIDTH, "intermediate_size": FF, "num_heads": 2, "image_size": 112,
             "patch_size": 14, "out_hidden_size": EMBD, "spatial_merge_size": 2, "temporal_patch_size": 2,
             "hidden_act": "silu", "rms_norm_eps": 1e-5, "model_type": "glm4v"},
            image_token_id=IMAGE_TOKEN, tie_word_embeddings=False,
        ),
        below("model.language_model.", dict(glm4_like(32))) | dict(glm4v_tower("model.visual.")),
        files=preprocessor(patch_size=14, merge_size=2, temporal_patch_size=2), **SEEING,
    ),
)  # fmt: skip
