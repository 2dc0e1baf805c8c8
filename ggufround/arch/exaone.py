"""EXAONE 3 and 4: Llama's rotation factors with heads in transformers' order.

Sources: conversion/exaone.py for names, values and metadata; src/models/exaone.cpp and exaone4.cpp for what llama.cpp
reads.
"""

from __future__ import annotations

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed, heads_fill_embedding
from ggufround.arch.config import head_dim, n_head, n_layer, shown, wrong
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, count, count_if_stated, real, replaced
from ggufround.arch.qwen import HEAD_NORMS
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

WINDOWED_LAYERS = 64  # of the 32B model, the only one that src/models/exaone4.cpp gives windows


def sliding(config: Config) -> list[bool]:
    """Which layers have a window: as stated, or by a pattern like "LLLG" or 4 (every fourth has none)."""
    layers, stated = n_layer(config), config.get("layer_types")
    if isinstance(stated, list) and len(stated) == layers:
        return [kind == "sliding_attention" for kind in stated]
    if stated is not None:
        raise wrong("layer_types", stated, f"a list of {layers} names")
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return [(i + 1) % pattern != 0 for i in range(layers)]
    if isinstance(pattern, str) and pattern:
        return [pattern[i % len(pattern)] == "L" for i in range(layers)]
    raise wrong("sliding_window_pattern", pattern, "a number of layers or letters such as LLLG")


def windows(config: Config) -> Field | None:
    return array(Kind.BOOL, sliding(config)) if "sliding_window" in config else None


def windows_by_depth(config: Config) -> None:
    """llama.cpp has windows, and layers without rotation, in models of 64 layers only, and there always."""
    stated = config.get("sliding_window")
    if (stated is not None) != (n_layer(config) == WINDOWED_LAYERS):
        raise UnsupportedError(
            f"config.json: sliding_window is {shown(stated)} with {n_layer(config)} layers; llama.cpp runs this "
            f"architecture with windows where it has {WINDOWED_LAYERS} layers, without them where it has another number"
        )


EXAONE = Architecture(
    name="exaone",
    classes=("ExaoneForCausalLM",),
    rules=tuple(
        Rule(f"{source}.weight", f"{to}.weight", shape, optional=to == "output")
        for source, to, shape in (
            ("wte", "token_embd", "vocab embd"),
            ("ln_f", "output_norm", "embd"),
            ("lm_head", "output", "vocab embd"),
            ("h.{i}.ln_1", "blk.{i}.attn_norm", "embd"),
            ("h.{i}.ln_2", "blk.{i}.ffn_norm", "embd"),
            ("h.{i}.attn.attention.q_proj", "blk.{i}.attn_q", "q embd"),
            ("h.{i}.attn.attention.k_proj", "blk.{i}.attn_k", "kv embd"),
            ("h.{i}.attn.attention.v_proj", "blk.{i}.attn_v", "kv embd"),
            ("h.{i}.attn.attention.out_proj", "blk.{i}.attn_output", "embd q"),
            ("h.{i}.mlp.c_fc_0", "blk.{i}.ffn_gate", "ff embd"),
            ("h.{i}.mlp.c_fc_1", "blk.{i}.ffn_up", "ff embd"),
            ("h.{i}.mlp.c_proj", "blk.{i}.ffn_down", "embd ff"),
        )
    ),
    # llama.cpp wants the epsilon as that of an RMS norm, under which name no config of the family states it
    kvs=(
        *replaced(COMMON, KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps", "layer_norm_epsilon"))),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
    },
    computed=(rope.llama3_factors,),
    checks=(
        fixed("activation_function", None, "silu"),
        fixed("partial_rotary_factor", None, 1),
        heads_fill_embedding,
    ),
    rope_types=("default", "linear", "dynamic", "yarn", "llama3"),
    prefixes=("transformer.",),
    untunable="transformers has no class for it",
)

# Norms after attention and feed-forward and of each head; the largest model has windows in three layers of four, and
# the fourth rotates nothing.
EXAONE4 = Architecture(
    name="exaone4",
    classes=("Exaone4ForCausalLM",),
    rules=(
        *ENDS,
        *ATTENTION,
        *HEAD_NORMS,
        Rule("layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", "embd"),
        Rule("layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", "embd"),
        *FEED_FORWARD,
    ),
    kvs=(
        *COMMON,
        KV("vocab_size", count("vocab_size")),
        KV("attention.sliding_window", count_if_stated("sliding_window")),
        KV("attention.sliding_window_pattern", windows),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
    computed=(rope.llama3_factors,),
    checks=(activation("silu", "swish"), heads_fill_embedding, windows_by_depth),
    rope_types=EXAONE.rope_types,
)

FAMILY = (EXAONE, EXAONE4)
