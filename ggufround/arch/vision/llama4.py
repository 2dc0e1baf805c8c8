"""Llama 4's tower: patches as rows of a matrix, the class token last, two learned layers after a shuffle.

Sources: conversion/llama4.py for names, values and metadata; tools/mtmd/models/llama4.cpp for what llama.cpp runs.
"""

from __future__ import annotations

from ggufround.arch.config import integer, n_embd, optional_number, wrong
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.vision.parts import (
    COMMON,
    FIXED_IMAGE,
    SIZES,
    activation,
    blocks,
    both,
    epsilon,
    image,
    patch,
    projector,
    transformer,
    vision_fixed,
)
from ggufround.gguf_file import u32


def shuffle(config: Config) -> int:
    ratio = optional_number(config, "pixel_shuffle_ratio")
    if ratio is None or not 0 < ratio <= 1 or (image(config) // patch(config)) % int(1 / ratio):
        raise wrong("vision_config's pixel_shuffle_ratio", ratio, "one part of 1 that divides the patches of a row")
    return int(1 / ratio)


LLAMA4 = Architecture(
    name="clip",
    part="vision",
    classes=("Llama4ForConditionalGeneration",),
    prefixes=("model.", "vision_model."),
    rules=(
        Rule("patch_embedding.linear.weight", "v.patch_embd.weight", "embd pixels"),
        Rule("class_embedding", "v.class_embd", "embd"),
        Rule("positional_embedding_vlm", "v.position_embd.weight", "positions embd"),
        *both("layernorm_pre", "v.pre_ln", "embd"),
        *transformer(
            "layers.{i}.",
            {
                "ln1": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
                "attn_v": "self_attn.v_proj", "attn_out": "self_attn.o_proj", "ln2": "post_attention_layernorm",
                "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
            },
        ),
        *both("layernorm_post", "v.post_ln", "embd"),
        Rule("vision_adapter.mlp.fc1.weight", "mm.model.mlp.1.weight", "adapter shuffled"),
        Rule("vision_adapter.mlp.fc2.weight", "mm.model.mlp.2.weight", "adapted adapter"),
        Rule("multi_modal_projector.linear_1.weight", "mm.model.fc.weight", "text adapted"),
    ),
    kvs=(
        *COMMON,
        projector("llama4"),
        epsilon("norm_eps"),
        KV("vision.projector.scale_factor", lambda config: u32(shuffle(config))),
        *activation(gelu="use_gelu"),
    ),
    tokenizers=(),
    defaults={
        "hidden_size": 768,
        "intermediate_size": 5632,
        "num_hidden_layers": 34,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
    },
    sizes={
        **SIZES,
        "pixels": lambda config: 3 * patch(config) ** 2,
        "positions": lambda config: SIZES["grid"](config) + 1,
        "shuffled": lambda config: n_embd(config) * shuffle(config) ** 2,
        "adapter": lambda config: integer(config, "projector_input_dim"),
        "adapted": lambda config: integer(config, "projector_output_dim"),
    },
    blocks=blocks,
    checks=(vision_fixed("rope_theta", None, 10000, 10000.0), *FIXED_IMAGE),
)  # fmt: skip

FAMILY = (LLAMA4,)
