"""SigLIP towers: Gemma 3, and SmolVLM with Idefics 3, whose projectors pool patches.

Sources: conversion/gemma.py (Gemma3VisionModel) and conversion/smolvlm.py for names, values and metadata;
tools/mtmd/models/siglip.cpp for what llama.cpp runs.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from ggufround.arch.config import n_embd, optional_integer, wrong
from ggufround.arch.metadata import constant
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.arch.transforms import norm_plus_one
from ggufround.arch.vision.llava import BLOCK, PREFIXES
from ggufround.arch.vision.parts import (
    COMMON,
    COMPUTED,
    FIXED_IMAGE,
    SIZES,
    activation,
    blocks,
    both,
    epsilon,
    feed_forward_is_not_square,
    image,
    model_number,
    patch,
    processor_number,
    projector,
    transformer,
    whole,
)
from ggufround.errors import InputError, UnsupportedError
from ggufround.gguf_file import Field, boolean, u32

EMBEDDING = (
    *both("embeddings.patch_embedding", "v.patch_embd", "embd 3 patch patch", float32=True),
    Rule("embeddings.position_embedding.weight", "v.position_embd.weight", "grid embd"),
)
TOWER = (*EMBEDDING, *transformer("encoder.layers.{i}.", BLOCK), *both("post_layernorm", "v.post_ln", "embd"))


def image_tokens(config: Config) -> int:
    """Tokens that Gemma 3 makes of an image."""
    stated = optional_integer(whole(config), "mm_tokens_per_image")
    return (256 if stated is None else stated) or 256


def pooled(config: Config) -> Field | None:
    """Patches in a row that are pooled into one token; 4 is what clip.cpp takes where the file is silent."""
    stated = processor_number(config, "image_seq_length")
    factor = image(config) // patch(config) // isqrt(stated if stated else 256)
    return u32(factor) if factor not in (0, 4) else None


def pools_evenly(config: Config) -> None:
    """clip.cpp pools by the factor in the file; it must give as many tokens as the model was trained with."""
    tokens = image_tokens(config)
    stated = processor_number(config, "image_seq_length")
    side = isqrt(tokens)
    if side * side != tokens or (image(config) // patch(config)) % side:
        raise wrong("mm_tokens_per_image", tokens, "a square whose root divides the patches of a row")
    if (stated or 256) != tokens:
        raise InputError(
            f"processor_config.json: image_seq_length is {stated or 'absent (256)'}, config.json's "
            f"mm_tokens_per_image {tokens}; they must agree"
        )


GEMMA3 = Architecture(
    name="clip",
    part="vision",
    classes=("Gemma3ForConditionalGeneration",),
    prefixes=PREFIXES,
    rules=(
        *TOWER,
        Rule("multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight", "embd text"),
        Rule("multi_modal_projector.mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", "embd", via=norm_plus_one),
    ),
    kvs=(
        *COMMON,
        projector("gemma3"),
        epsilon("layer_norm_eps"),
        KV("use_gelu", constant(boolean(True))),
        KV("vision.projector.scale_factor", pooled),
    ),
    tokenizers=(),
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    sizes=SIZES,
    blocks=blocks,
    checks=(feed_forward_is_not_square, *FIXED_IMAGE, pools_evenly),
    drops=(*COMPUTED, Drop("*vision_model.head.*", "the tower's pooling head: not used")),
)


def scale_factor(config: Config) -> int:
    return int(model_number(config, "scale_factor", 2))


def longest_edge(config: Config) -> Field:
    return u32(processor_number(config, "size", ("longest_edge",)) or image(config))


def tiles_are_images(config: Config) -> None:
    """Tiles are cut to the size that the tower was trained for."""
    stated = processor_number(config, "max_image_size", ("longest_edge",))
    if stated is not None and stated != image(config):
        raise InputError(
            f"preprocessor_config.json: max_image_size is {stated}, but the weights are made for {image(config)}; is "
            "it another model's file?"
        )


def shuffles_evenly(config: Config) -> None:
    side = image(config) // patch(config)
    if scale_factor(config) < 1 or side % scale_factor(config):
        raise UnsupportedError(
            f"config.json: a scale_factor of {scale_factor(config)} does not divide the {side} patches of a row"
        )


# No norm in the projector: neighbouring patches are put behind one another and meet one matrix.
IDEFICS3 = replace(
    GEMMA3,
    classes=("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration"),
    rules=(*TOWER, Rule("connector.modality_projection.proj.weight", "mm.model.fc.weight", "text shuffled")),
    kvs=(
        *COMMON,
        projector("idefics3"),
        epsilon("layer_norm_eps"),
        KV("vision.projector.scale_factor", lambda config: u32(scale_factor(config))),
        *activation(gelu_pytorch_tanh="use_gelu", gelu="use_gelu"),
        KV("vision.preproc_image_size", longest_edge),
    ),
    defaults={
        "hidden_size": 1152,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    sizes={**SIZES, "shuffled": lambda config: n_embd(config) * scale_factor(config) ** 2},
    checks=(feed_forward_is_not_square, tiles_are_images, shuffles_evenly),
)

FAMILY = (GEMMA3, IDEFICS3)
