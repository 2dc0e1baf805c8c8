"""GLM-4V: a tower like Qwen2.5-VL's with learned positions, its patches merged by a convolution.

Sources: conversion/qwen3vl.py (Glm4VVisionModel) for names, values and metadata; tools/mtmd/models/glm4v.cpp for what
llama.cpp runs.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.config import integer
from ggufround.arch.spec import Rule
from ggufround.arch.vision.parts import COMMON, SIZES, activation, both, epsilon, projector, transformer
from ggufround.arch.vision.qwen_vl import AGREEING, QWEN25VL, frame, merger_is_for_the_text_model, merges_two_by_two

GLM4V = replace(
    QWEN25VL,
    classes=("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration"),
    rules=(
        frame(0),
        frame(1),
        Rule("patch_embed.proj.bias", "v.patch_embd.bias", "embd"),
        Rule("post_conv_layernorm.weight", "v.norm_embd.weight", "embd"),
        Rule("embeddings.position_embedding.weight", "v.position_embd.weight", "grid embd"),
        Rule("blocks.{i}.attn.qkv.weight", "v.blk.{i}.attn_qkv.weight", "3embd embd"),
        *transformer("blocks.{i}.", {"ln1": "norm1", "ln2": "norm2", "attn_out": "attn.proj"}, biased=False),
        Rule("blocks.{i}.mlp.gate_proj.weight", "v.blk.{i}.ffn_gate.weight", "text embd"),
        Rule("blocks.{i}.mlp.up_proj.weight", "v.blk.{i}.ffn_up.weight", "text embd"),
        Rule("blocks.{i}.mlp.down_proj.weight", "v.blk.{i}.ffn_down.weight", "embd text"),
        Rule("post_layernorm.weight", "v.post_ln.weight", "embd"),
        *both("downsample", "mm.patch_merger", "text embd 2 2"),
        Rule("merger.proj.weight", "mm.model.fc.weight", "text text"),
        *both("merger.post_projection_norm", "mm.post_norm", "text"),
        Rule("merger.gate_proj.weight", "mm.gate.weight", "ff text"),
        Rule("merger.up_proj.weight", "mm.up.weight", "ff text"),
        Rule("merger.down_proj.weight", "mm.down.weight", "text ff"),
    ),
    kvs=(*COMMON, projector("glm4v"), *activation(gelu="use_gelu", silu="use_silu"), epsilon("rms_norm_eps")),
    defaults={
        "depth": 24,
        "hidden_size": 1536,
        "intermediate_size": 13696,
        "num_heads": 12,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
    },
    sizes={**SIZES, "3embd": lambda config: 3 * integer(config, "hidden_size")},
    checks=(merges_two_by_two, merger_is_for_the_text_model, *AGREEING),
)

FAMILY = (GLM4V,)
