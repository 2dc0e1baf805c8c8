"""Tiny models of Gemma 1 and 3n."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import tiny_parts
from tiny_parts import EMBD, VOCAB, Tiny, config, llama_like, norms

# llama.cpp has these numbers of Gemma 3n built in, and that layers from 20 on have no keys and values of their own.
PER_LAYER, RANK, ALTERNATIVES, LAYERS = 256, 64, 4, 25
FF = 1024  # of so many, whether all or all but one count in a deviation makes no difference (llama.cpp: all but one)
SEEN = VOCAB - 16  # tokens that the table of each layer has a row for


def gemma3n_like(prefix: str) -> dict[str, tuple[int, ...]]:
    shapes = llama_like(64, LAYERS, head=False, qk_norms=True, prefix=prefix)
    shapes = {name: tuple(FF if n == tiny_parts.FF else n for n in shape) for name, shape in shapes.items()}
    shapes[f"{prefix}embed_tokens_per_layer.weight"] = (SEEN, LAYERS * PER_LAYER)
    shapes[f"{prefix}per_layer_model_projection.weight"] = (LAYERS * PER_LAYER, EMBD)
    shapes[f"{prefix}per_layer_projection_norm.weight"] = (PER_LAYER,)
    for k in range(ALTERNATIVES - 1):
        shapes[f"{prefix}altup_projections.{k}.weight"] = (EMBD, EMBD)
        shapes[f"{prefix}altup_unembed_projections.{k}.weight"] = (EMBD, EMBD)
    for i in range(LAYERS):
        block = f"{prefix}layers.{i}."
        shapes |= dict(
            norms(
                block,
                "pre_feedforward_layernorm",
                "post_feedforward_layernorm",
                "post_per_layer_input_norm",
                "laurel.post_laurel_norm",
                "altup.router_norm",
            )
        )
        shapes[f"{block}per_layer_input_gate.weight"] = (PER_LAYER, EMBD)
        shapes[f"{block}per_layer_projection.weight"] = (EMBD, PER_LAYER)
        shapes[f"{block}laurel.linear_left.weight"] = (RANK, EMBD)
        shapes[f"{block}laurel.linear_right.weight"] = (EMBD, RANK)
        shapes[f"{block}altup.correct_output_scale"] = (EMBD,)
        shapes[f"{block}altup.correction_coefs.weight"] = (ALTERNATIVES, ALTERNATIVES)
        shapes[f"{block}altup.prediction_coefs.weight"] = (ALTERNATIVES**2, ALTERNATIVES)
        shapes[f"{block}altup.modality_router.weight"] = (ALTERNATIVES, EMBD)
    return shapes  # fmt: skip


def special(name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Scores are not divided by the root of the heads' size: that is in the norms of queries and keys."""
    if not name.endswith(("q_norm.weight", "k_norm.weight")):
        return None
    return np.random.default_rng(len(name)).uniform(0.3, 0.7, shape).astype(np.float32)


GEMMA3N = {
    "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 64, "sliding_window": 8,
    "num_hidden_layers": LAYERS, "num_kv_shared_layers": LAYERS - 20, "tie_word_embeddings": None,
    "intermediate_size": [FF] * LAYERS, "final_logit_softcapping": 30.0, "altup_active_idx": 0,
    "altup_coef_clip": 120.0, "altup_correct_scale": True, "altup_num_inputs": ALTERNATIVES, "laurel_rank": RANK,
    "hidden_size_per_layer_input": PER_LAYER, "vocab_size_per_layer_input": SEEN, "rope_theta": 1e6,
    "rope_local_base_freq": 1e4, "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (LAYERS - 10),
    "layer_types": ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(LAYERS)],
}  # fmt: skip
PICTURES_AND_SOUND = {
    "model.vision_tower.timm_model.conv_stem.conv.weight": (4, 3),
    "model.audio_tower.conformer.0.norm.weight": (8,),
    "model.embed_vision.embedding.weight": (4, 8),
    "model.embed_audio.soft_embedding_norm.weight": (8,),
}

CASES = (
    Tiny("gemma", config("GemmaForCausalLM", "gemma", hidden_act="gelu", head_dim=64, tie_word_embeddings=True,
                         rope_theta=10000.0), llama_like(64, head=False), "spm", zero_norms=True),
    Tiny("gemma3n", config("Gemma3nForCausalLM", "gemma3n_text", **GEMMA3N), gemma3n_like("model."), "spm",
         special=special),
    Tiny(
        "gemma3n-composite",
        {"architectures": ["Gemma3nForConditionalGeneration"], "model_type": "gemma3n",
         "text_config": config("", "gemma3n_text", architectures=None, **GEMMA3N | {
             "activation_sparsity_pattern": None, "layer_types": None, "intermediate_size": FF})},
        gemma3n_like("model.language_model.") | PICTURES_AND_SOUND,
        "spm", special=special, loads=False,
    ),
)  # fmt: skip
