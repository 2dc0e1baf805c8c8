"""Tiny models of Mistral 3's text part and of Ministral 3."""

from __future__ import annotations

from tiny_parts import Tiny, config, llama_like

PICTURES = {
    "vision_tower.ln_pre.weight": (64,),
    "multi_modal_projector.norm.weight": (64,),
    "multi_modal_projector.linear_1.weight": (64, 64),
}
# Queries grow after every eight tokens, so that they do in the prompts of the tests.
YARN = {
    "rope_type": "yarn", "type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 8,
    "max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip

CASES = (
    Tiny(
        "mistral3",
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "text_config": config("", "mistral", architectures=None, head_dim=64, rope_theta=1e9, sliding_window=None)},
        llama_like(64, prefix="language_model.model.", head=False)
        | {"language_model.lm_head.weight": (320, 128)} | PICTURES,
        loads=False,
    ),
    Tiny(
        "ministral3-composite",
        {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
         "text_config": config("", "ministral3", architectures=None, head_dim=64, rope_parameters=YARN,
                               max_position_embeddings=64, tie_word_embeddings=True)},
        llama_like(64, prefix="language_model.model.", head=False) | PICTURES,
        loads=False,
    ),
    Tiny("ministral3", config("Ministral3ForCausalLM", "ministral3", head_dim=64, rope_parameters=YARN,
                              max_position_embeddings=64), llama_like(64)),
)  # fmt: skip
