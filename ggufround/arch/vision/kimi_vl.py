"""Kimi-VL: MoonViT, whose learned positions are a square that is resized to the picture.

Sources: conversion/kimivl.py for names, values and metadata; tools/mtmd/models/kimivl.cpp for what llama.cpp runs.
"""

from __future__ import annotations

from ggufround.arch.config import integer, n_embd, optional_number
from ggufround.arch.metadata import constant
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.vision.parts import (
    COMMON,
    PATCH,
    SIZES,
    blocks,
    both,
    projector,
    transformer,
    vision_fixed,
)
from ggufround.gguf_file import Field, boolean, f32, u32

SIDE = 64 * 14  # pixels; the picture may have any size


def eps(config: Config) -> Field:
    stated = optional_number(config, "layer_norm_eps")
    return f32(1e-5 if stated is None else stated)


def split(name: str, k: int) -> tuple[Rule, Rule]:
    return both("encoder.blocks.{i}.wqkv", "v.blk.{i}." + name, "3embd embd", part=(k, 3))


KIMI_VL = Architecture(
    name="clip",
    part="vision",
    classes=("KimiVLForConditionalGeneration",),
    prefixes=("model.", "vision_tower."),
    rules=(
        *both("patch_embed.proj", "v.patch_embd", "embd 3 patch patch"),
        Rule("patch_embed.pos_emb.weight", "v.position_embd.weight", "height width embd", makes="places embd"),
        *split("attn_q", 0),
        *split("attn_k", 1),
        *split("attn_v", 2),
        *transformer(
            "encoder.blocks.{i}.",
            {"ln1": "norm0", "ln2": "norm1", "attn_out": "wo", "ffn_up": "mlp.fc0", "ffn_down": "mlp.fc1"},
        ),
        *both("encoder.final_layernorm", "v.post_ln", "embd"),
        *both("multi_modal_projector.pre_norm", "mm.input_norm", "embd"),
        *both("multi_modal_projector.linear_1", "mm.1", "merged merged"),
        *both("multi_modal_projector.linear_2", "mm.2", "text merged"),
    ),
    kvs=(
        *(KV(kv.key, constant(u32(SIDE)) if kv.key == "vision.image_size" else kv.read) for kv in COMMON),
        projector("kimivl"),
        KV("use_gelu", constant(boolean(True))),
        KV("vision.projector.scale_factor", constant(u32(2))),
        KV("vision.attention.layer_norm_epsilon", eps),
    ),
    tokenizers=(),
    defaults={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "patch_size": 14,
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
    },
    sizes={
        **SIZES,
        "3embd": lambda config: 3 * n_embd(config),
        "merged": lambda config: 4 * n_embd(config),
        "height": lambda config: integer(config, "init_pos_emb_height"),
        "width": lambda config: integer(config, "init_pos_emb_width"),
        "places": lambda config: integer(config, "init_pos_emb_height") * integer(config, "init_pos_emb_width"),
    },
    blocks=blocks,
    checks=(vision_fixed("merge_kernel_size", None, [2, 2], (2, 2)), PATCH),
)

FAMILY = (KIMI_VL,)
