"""InternVL: InternViT with scaled residuals, its patches shuffled four into one.

Sources: conversion/internvl.py for names, values and metadata; tools/mtmd/models/internvl.cpp for what llama.cpp runs.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.config import n_embd, optional_number, wrong
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
    whole,
)
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, u32


def shuffle(config: Config) -> int:
    """Patches of a row that are put behind one another."""
    ratio = optional_number(whole(config), "downsample_ratio")
    if ratio is None or not 0 < ratio <= 1 or (image(config) // patch(config)) % int(1 / ratio):
        raise wrong("downsample_ratio", ratio, "one part of 1 that divides the patches of a row")
    return int(1 / ratio)


def tiles(key: str) -> KV:
    def read(config: Config) -> Field | None:
        value = whole(config).get(f"{key}_dynamic_patch", 0)
        return u32(value) if isinstance(value, int) and value > 0 else None

    return KV(f"vision.preproc_{key}_tiles", read)


def norms_are_full(config: Config) -> None:
    """clip.cpp knows the tower whose norms have no mean by its size, not by the file."""
    rms = config.get("norm_type") == "rms_norm"
    if rms != (n_embd(config) == 3200 and blocks(config) == 45):
        raise UnsupportedError(
            f"config.json: vision_config's norm_type is {config.get('norm_type')!r}; llama.cpp runs rms_norm in the "
            "tower of 45 blocks and 3200 columns, layer_norm in all others"
        )


def normed(name: str) -> tuple[Rule, ...]:
    """A norm, whose bias only the smaller tower has."""
    to = {"norm1": "ln1", "norm2": "ln2", "layernorm_before": "ln1", "layernorm_after": "ln2"}[name.rpartition(".")[2]]
    return (Rule(f"{name}.weight", f"v.blk.{{i}}.{to}.weight", "embd", bias=True),)


def parted(name: str, k: int) -> tuple[Rule, ...]:
    return (Rule("encoder.layers.{i}.attn.qkv.weight", "v.blk.{i}." + name, "3embd embd", part=(k, 3), bias=True),)


INTERNVL = Architecture(
    name="clip",
    part="vision",
    classes=("InternVLChatModel", "InternVisionModel"),
    prefixes=("model.", "vision_model.", "vision_tower."),
    rules=(
        Rule("embeddings.class_embedding", "v.class_embd", "1 1 embd"),
        *both("embeddings.patch_embedding", "v.patch_embd", "embd 3 patch patch"),
        Rule("embeddings.position_embedding", "v.position_embd.weight", "1 positions embd"),
        *normed("encoder.layers.{i}.norm1"),
        *normed("encoder.layers.{i}.norm2"),
        *parted("attn_q.weight", 0),
        *parted("attn_k.weight", 1),
        *parted("attn_v.weight", 2),
        Rule("encoder.layers.{i}.attn.q_norm.weight", "v.blk.{i}.attn_q_norm.weight", "embd", optional=True),
        Rule("encoder.layers.{i}.attn.k_norm.weight", "v.blk.{i}.attn_k_norm.weight", "embd", optional=True),
        *transformer("encoder.layers.{i}.", {"attn_out": "attn.proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}),
        Rule("encoder.layers.{i}.ls1", "v.blk.{i}.ls1.weight", "embd"),
        Rule("encoder.layers.{i}.ls2", "v.blk.{i}.ls2.weight", "embd"),
        *both("mlp1.0", "mm.model.mlp.0", "shuffled"),
        *both("mlp1.1", "mm.model.mlp.1", "text shuffled"),
        *both("mlp1.3", "mm.model.mlp.3", "text text"),
    ),
    kvs=(
        *COMMON,
        projector("internvl"),
        epsilon("layer_norm_eps"),
        *activation(silu="use_silu", gelu="use_gelu"),
        KV("vision.projector.scale_factor", lambda config: u32(shuffle(config))),
        tiles("min"),
        tiles("max"),
    ),
    tokenizers=(),
    defaults={
        "hidden_size": 3200,
        "intermediate_size": 12800,
        "num_hidden_layers": 48,
        "num_attention_heads": 25,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "norm_type": "rms_norm",
    },
    sizes={
        **SIZES,
        "3embd": lambda config: 3 * n_embd(config),
        "positions": lambda config: SIZES["grid"](config) + 1,
        "shuffled": lambda config: n_embd(config) * shuffle(config) ** 2,
    },
    blocks=blocks,
    checks=(norms_are_full, vision_fixed("qkv_bias", None, True, False), *FIXED_IMAGE),
)

# As transformers saves it, with matrices of their own for queries, keys and values.
INTERNVL_HF = replace(
    INTERNVL,
    classes=("InternVLForConditionalGeneration",),
    rules=(
        Rule("embeddings.cls_token", "v.class_embd", "1 1 embd"),
        *both("embeddings.patch_embeddings.projection", "v.patch_embd", "embd 3 patch patch"),
        Rule("embeddings.position_embeddings", "v.position_embd.weight", "1 positions embd"),
        *normed("encoder.layer.{i}.layernorm_before"),
        *normed("encoder.layer.{i}.layernorm_after"),
        *(
            Rule(f"encoder.layer.{{i}}.attention.{name}_proj.weight", f"v.blk.{{i}}.attn_{name}.weight", "embd embd",
                 bias=True)
            for name in "qkv"
        ),
        Rule("encoder.layer.{i}.attention.q_norm.weight", "v.blk.{i}.attn_q_norm.weight", "embd", optional=True),
        Rule("encoder.layer.{i}.attention.k_norm.weight", "v.blk.{i}.attn_k_norm.weight", "embd", optional=True),
        *transformer(
            "encoder.layer.{i}.",
            {"attn_out": "attention.projection_layer", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"},
        ),
        Rule("encoder.layer.{i}.lambda_1", "v.blk.{i}.ls1.weight", "embd"),
        Rule("encoder.layer.{i}.lambda_2", "v.blk.{i}.ls2.weight", "embd"),
        *both("multi_modal_projector.layer_norm", "mm.model.mlp.0", "shuffled"),
        *both("multi_modal_projector.linear_1", "mm.model.mlp.1", "text shuffled"),
        *both("multi_modal_projector.linear_2", "mm.model.mlp.3", "text text"),
    ),
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 448,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "norm_type": "layer_norm",
    },
)  # fmt: skip

FAMILY = (INTERNVL, INTERNVL_HF)
