"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: towers for pictures of any size, whose patches are merged four by four.

Sources: conversion/qwenvl.py and qwen3vl.py for names, values and metadata; tools/mtmd/models/qwen2vl.cpp and
qwen3vl.cpp for what llama.cpp runs. A picture counts as two equal frames, each of which meets a convolution of its own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import isqrt

from ggufround.arch.config import integer, n_embd, shown, wrong
from ggufround.arch.metadata import constant, count
from ggufround.arch.spec import F32, KV, Architecture, Config, Rule, Transform
from ggufround.arch.vision.parts import (
    COMMON,
    SIZES,
    activation,
    agrees,
    blocks,
    both,
    feed_forward_is_not_square,
    patch,
    projector,
    transformer,
    vision_fixed,
)
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, f32, u32

PREFIXES = ("model.", "thinker.", "visual.")
MERGED = 4  # patches that become one token


def one_frame(rows: F32, frame: int, side: int) -> F32:
    """The kernels of one of two frames, of rows [outputs * colours * 2 * side, side]."""
    return rows.reshape(-1, 2, side, side)[:, frame].reshape(-1, side)


def frame(number: int) -> Rule:
    """One of the two convolutions that a picture's two frames meet."""
    return Rule(
        "patch_embed.proj.weight",
        "v.patch_embd.weight" + (".1" if number else ""),
        "embd 3 2 patch patch",
        via=lambda config: Transform(partial(one_frame, frame=number, side=patch(config))),
        makes="embd 3 patch patch",
    )


def part(name: str, k: int) -> tuple[Rule, Rule]:
    """Queries, keys or values of the fused matrix."""
    return both("blocks.{i}.attn.qkv", "v.blk.{i}." + name, "3embd embd", part=(k, 3))


def embed_dim(config: Config) -> int:
    return integer(config, "embed_dim")


def merges_two_by_two(config: Config) -> None:
    for key in ("spatial_merge_size", "temporal_patch_size"):
        vision_fixed(key, None, 2)(config)


def is_wider(config: Config) -> None:
    """As `feed_forward_is_not_square`, by the ratio that this config states."""
    if integer(config, "mlp_ratio") == 1:
        raise UnsupportedError("config.json: vision_config's mlp_ratio is 1; llama.cpp then exchanges two matrices")


def window_pattern(config: Config) -> int:
    """Every how many blocks one attends to the whole picture, the last of each group."""
    stated = config.get("fullatt_block_indexes")
    listed = list(stated) if isinstance(stated, list | tuple) else []
    period = listed[0] + 1 if listed and isinstance(listed[0], int) else 0
    if period < 1 or listed != list(range(period - 1, blocks(config), period)):
        raise UnsupportedError(
            f"config.json: fullatt_block_indexes is {shown(stated)}; llama.cpp runs full attention in every so many "
            "blocks, from the first such on"
        )
    return period


def merger_is_for_the_text_model(config: Config) -> None:
    stated = config.get("out_hidden_size")
    if stated is not None and stated != SIZES["text"](config):
        raise wrong("vision_config's out_hidden_size", stated, f"the text model's width, {SIZES['text'](config)}")


AGREEING = (
    agrees("patch_size", patch),
    agrees("merge_size", lambda config: 2),
    agrees("temporal_patch_size", lambda config: 2),
)
EPSILON = KV("vision.attention.layer_norm_epsilon", constant(f32(1e-6)))  # transformers' class states no other
BLOCK = {"ln1": "norm1", "ln2": "norm2", "attn_out": "attn.proj"}
FUSED = (*part("attn_q", 0), *part("attn_k", 1), *part("attn_v", 2))

QWEN2VL = Architecture(
    name="clip",
    part="vision",
    classes=("Qwen2VLForConditionalGeneration", "Qwen2VLModel"),
    prefixes=PREFIXES,
    rules=(
        frame(0),
        frame(1),
        *FUSED,
        *transformer("blocks.{i}.", {**BLOCK, "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}),
        *both("merger.ln_q", "v.post_ln", "embd"),
        *both("merger.mlp.0", "mm.0", "merged merged"),
        *both("merger.mlp.2", "mm.2", "text merged"),
    ),
    kvs=(
        *(
            # The converter takes the config's hidden_size, which is the text model's, for the feed-forward's width.
            KV(kv.key, {"vision.embedding_length": count("embed_dim"),
                        "vision.feed_forward_length": count("hidden_size")}.get(kv.key, kv.read))
            for kv in COMMON
        ),
        projector("qwen2vl_merger"),
        EPSILON,
        *activation(quick_gelu=None),
    ),
    tokenizers=(),
    defaults={
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "image_size": 560,
        "hidden_act": "quick_gelu",
    },
    sizes={
        **SIZES,
        "embd": embed_dim,
        "3embd": lambda config: 3 * embed_dim(config),
        "ff": lambda config: embed_dim(config) * integer(config, "mlp_ratio"),
        "merged": lambda config: MERGED * embed_dim(config),
    },
    blocks=blocks,
    checks=(merges_two_by_two, is_wider, *AGREEING),
)  # fmt: skip

WIDE_SIZES = {
    **SIZES,
    "3embd": lambda config: 3 * n_embd(config),
    "merged": lambda config: MERGED * n_embd(config),
}

# Norms without a mean, a gated feed-forward part, and windows in most blocks.
QWEN25VL = replace(
    QWEN2VL,
    classes=("Qwen2_5_VLForConditionalGeneration",),
    rules=(
        frame(0),
        frame(1),
        *FUSED,
        *transformer("blocks.{i}.", {"ln1": "norm1", "ln2": "norm2"}, biased=False),
        *transformer(
            "blocks.{i}.",
            {
                "attn_out": "attn.proj",
                "ffn_up": "mlp.up_proj",
                "ffn_gate": "mlp.gate_proj",
                "ffn_down": "mlp.down_proj",
            },
        ),
        Rule("merger.ln_q.weight", "v.post_ln.weight", "embd"),
        *both("merger.mlp.0", "mm.0", "merged merged"),
        *both("merger.mlp.2", "mm.2", "text merged"),
    ),
    kvs=(
        *COMMON,
        projector("qwen2.5vl_merger"),
        *activation(silu="use_silu"),
        KV("vision.n_wa_pattern", lambda config: u32(window_pattern(config))),
        EPSILON,
    ),
    defaults={
        "depth": 32,
        "hidden_size": 3584,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "image_size": 560,
        "hidden_act": "silu",
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    sizes=WIDE_SIZES,
    checks=(
        merges_two_by_two,
        feed_forward_is_not_square,
        vision_fixed("window_size", None, 112),
        merger_is_for_the_text_model,
        *AGREEING,
    ),
)


def trained_side(config: Config) -> int:
    """Pixels of a side of the square picture that has as many patches as there are position embeddings."""
    positions = integer(config, "num_position_embeddings")
    if isqrt(positions) ** 2 != positions:
        raise wrong("vision_config's num_position_embeddings", positions, "a square")
    return isqrt(positions) * patch(config)


def deep(config: Config) -> list[int]:
    """The blocks whose output joins the text model's first layers, too."""
    stated = config.get("deepstack_visual_indexes")
    listed = list(stated) if isinstance(stated, list | tuple) else [-1]
    if not all(isinstance(i, int) and 0 <= i < blocks(config) for i in listed) or listed != sorted(set(listed)):
        raise wrong("vision_config's deepstack_visual_indexes", stated, "rising numbers of its blocks")
    return listed


def is_deep(config: Config) -> Field | None:
    flags = [i in deep(config) for i in range(blocks(config))]
    return array(Kind.BOOL, flags)


def deep_rules() -> tuple[Rule, ...]:
    rules = (
        *both("deepstack_merger_list.{i}.norm", "v.deepstack.{i}.norm", "merged"),
        *both("deepstack_merger_list.{i}.linear_fc1", "v.deepstack.{i}.fc1", "merged merged"),
        *both("deepstack_merger_list.{i}.linear_fc2", "v.deepstack.{i}.fc2", "text merged"),
    )
    return tuple(
        replace(rule, where=lambda config, i: i in deep(config), renumber=lambda config, i: deep(config).index(i))
        for rule in rules
    )


# Learned positions, patches with a bias, attention that stays fused, and outputs of a few blocks that go to the text
# model beside the last one's.
QWEN3VL = replace(
    QWEN25VL,
    classes=("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
    rules=(
        frame(0),
        frame(1),
        Rule("patch_embed.proj.bias", "v.patch_embd.bias", "embd"),
        Rule("pos_embed.weight", "v.position_embd.weight", "positions embd"),
        *both("blocks.{i}.attn.qkv", "v.blk.{i}.attn_qkv", "3embd embd"),
        *transformer("blocks.{i}.", {**BLOCK, "ffn_up": "mlp.linear_fc1", "ffn_down": "mlp.linear_fc2"}),
        *both("merger.norm", "v.post_ln", "embd"),
        *both("merger.linear_fc1", "mm.0", "merged merged"),
        *both("merger.linear_fc2", "mm.2", "text merged"),
        *deep_rules(),
    ),
    kvs=(
        *(KV(kv.key, (lambda config: u32(trained_side(config))) if kv.key == "vision.image_size" else kv.read)
          for kv in COMMON),
        projector("qwen3vl_merger"),
        *activation(gelu_pytorch_tanh="use_gelu", gelu="use_gelu"),
        KV("vision.spatial_merge_size", count("spatial_merge_size")),
        EPSILON,
        KV("vision.is_deepstack_layers", is_deep),
    ),
    defaults={
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
        "hidden_act": "gelu_pytorch_tanh",
    },
    sizes={**WIDE_SIZES, "positions": lambda config: integer(config, "num_position_embeddings")},
    checks=(merges_two_by_two, merger_is_for_the_text_model, *AGREEING),
)  # fmt: skip

FAMILY = (QWEN2VL, QWEN25VL, QWEN3VL)
