"""Pixtral's tower, of Pixtral and of Mistral Small 3.1: pictures of any size, rotated by row and column.

Sources: conversion/llava.py for names, values and metadata; tools/mtmd/models/pixtral.cpp for what llama.cpp runs. The
file holds one row of the text model's embedding, which llama.cpp puts at the end of each row of patches.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.config import integer, n_embd, optional_integer
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.transforms import interleave_rope
from ggufround.arch.vision.llava import projector_activation
from ggufround.arch.vision.parts import (
    COMMON,
    PATCH,
    SIZES,
    activation,
    blocks,
    epsilon,
    projector,
    section,
    transformer,
    vision_fixed,
    whole,
)
from ggufround.errors import InputError
from ggufround.gguf_file import Field, u32

BREAK = "[IMG_BREAK]"
BLOCK = {
    "ln1": "attention_norm", "attn_q": "attention.q_proj", "attn_k": "attention.k_proj", "attn_v": "attention.v_proj",
    "attn_out": "attention.o_proj", "ln2": "ffn_norm", "ffn_up": "feed_forward.up_proj",
    "ffn_gate": "feed_forward.gate_proj", "ffn_down": "feed_forward.down_proj",
}  # fmt: skip


def break_row(config: Config) -> list[tuple[int, int]]:
    """The row of the embedding that ends a row of patches."""
    found = config["token"](BREAK)
    if found is None:
        raise InputError(f"the tokenizer has no {BREAK}, which this model's pictures need")
    return [(int(found), 1)]


def merge_size(config: Config) -> int:
    return optional_integer(whole(config), "spatial_merge_size") or 1


def stated_merge(config: Config) -> Field | None:
    return u32(merge_size(config)) if "spatial_merge_size" in whole(config) else None


PIXTRAL = Architecture(
    name="clip",
    part="vision",
    classes=("LlavaForConditionalGeneration",),
    prefixes=("model.", "vision_tower.", "transformer.", "language_model."),
    rules=(
        Rule("patch_conv.weight", "v.patch_embd.weight", "embd 3 patch patch"),
        Rule("ln_pre.weight", "v.pre_ln.weight", "embd"),
        *(
            replace(rule, via=interleave_rope) if "attn_q" in rule.to or "attn_k" in rule.to else rule
            for rule in transformer("layers.{i}.", BLOCK, biased=False)
        ),
        Rule("multi_modal_projector.linear_1.weight", "mm.1.weight", "text embd", bias=True),
        Rule("multi_modal_projector.linear_2.weight", "mm.2.weight", "text text", bias=True),
        Rule(
            "embed_tokens.weight", "v.token_embd.img_break", "vocab text",
            runs=break_row, makes="text", borrows=True,
        ),
    ),
    kvs=(
        *COMMON,
        projector("pixtral"),
        epsilon("layer_norm_eps"),
        *activation(silu="use_silu", gelu="use_gelu"),
        KV("vision.spatial_merge_size", stated_merge),
    ),
    tokenizers=(),
    defaults={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 1024,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,  # built into transformers' class
    },
    sizes={**SIZES, "vocab": lambda config: integer(section(config, "text"), "vocab_size")},
    blocks=blocks,
    checks=(vision_fixed("rope_theta", None, 10000.0), projector_activation, PATCH),
)  # fmt: skip

# Neighbouring patches are normalised and merged before the projector.
MISTRAL3 = replace(
    PIXTRAL,
    classes=("Mistral3ForConditionalGeneration",),
    rules=(
        *PIXTRAL.rules,
        Rule("multi_modal_projector.norm.weight", "mm.input_norm.weight", "embd"),
        Rule("multi_modal_projector.patch_merger.merging_layer.weight", "mm.patch_merger.weight", "embd merged"),
    ),
    kvs=(*PIXTRAL.kvs[:-1], KV("vision.spatial_merge_size", lambda config: u32(merge_size(config)))),
    sizes={**PIXTRAL.sizes, "merged": lambda config: n_embd(config) * merge_size(config) ** 2},
)

FAMILY = (PIXTRAL, MISTRAL3)
