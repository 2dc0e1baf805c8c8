"""OLMo: the first with norms that have no weights, OLMo 2 and 3 with norms after attention and feed-forward instead of
before, and over all of q and k, and OLMoE with experts.

Sources: conversion/olmo.py for names, values and metadata; src/models/olmo*.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed, heads_fill_embedding
from ggufround.arch.config import N_FF, integer, n_head, n_head_kv, n_layer, wrong
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, INTERLEAVED, NORMS
from ggufround.arch.metadata import COMMON, constant, count_if_stated, real_if_stated
from ggufround.arch.qwen import EXPERTS, STACKED
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, f32

OWN_ENDS = (*ENDS[:2], replace(ENDS[2], optional=False))  # llama.cpp reads no tied OLMo 2
WHOLE_NORMS = (
    Rule("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "q"),
    Rule("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "kv"),
)


def windows(config: Config) -> Field | None:
    """Which layers have a window; OLMo 3's default is all but every fourth, OLMo 2 has none."""
    if "sliding_window" not in config:
        return None
    stated = config.get("layer_types")
    if stated is None:
        return array(Kind.BOOL, [(i + 1) % 4 != 0 for i in range(n_layer(config))])
    if not isinstance(stated, list) or len(stated) != n_layer(config):
        raise wrong("layer_types", stated, f"a list of {n_layer(config)} names")
    return array(Kind.BOOL, [kind == "sliding_attention" for kind in stated])


def a_key_head_for_every_query_head(config: Config) -> None:
    """src/models/olmoe.cpp reads norms of keys as wide as the embedding."""
    if n_head_kv(config) != n_head(config):
        raise UnsupportedError(
            f"config.json: {n_head_kv(config)} key-value heads for {n_head(config)} heads; llama.cpp runs this "
            "architecture only with as many"
        )


# Heads are interleaved, queries, keys and values may be clamped, and every norm is a centred one without weights.
OLMO = Architecture(
    name="olmo",
    classes=("OlmoForCausalLM", "OLMoForCausalLM"),
    rules=(ENDS[0], ENDS[2], *INTERLEAVED, *FEED_FORWARD),
    kvs=(
        *COMMON,
        KV("attention.layer_norm_epsilon", constant(f32(1e-5))),
        KV("attention.clamp_kqv", real_if_stated("clip_qkv")),
    ),
    tokenizers=("bpe",),
    defaults={"max_position_embeddings": 2048, "rope_theta": 10000.0, "num_key_value_heads": n_head},
    checks=(activation("silu", "swish"), heads_fill_embedding),
)

OLMO2 = Architecture(
    name="olmo2",
    classes=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    rules=(
        *OWN_ENDS,
        *ATTENTION,
        *WHOLE_NORMS,
        Rule("layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", "embd"),
        Rule("layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", "embd"),
        *FEED_FORWARD,
    ),
    kvs=(
        *COMMON,
        KV("attention.sliding_window", count_if_stated("sliding_window")),
        KV("attention.sliding_window_pattern", windows),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
    },
    checks=(activation("silu", "swish"),),
)

# OLMo 2's norms of q and k, with the other norms before attention and before the experts.
OLMOE = Architecture(
    name="olmoe",
    classes=("OlmoeForCausalLM",),
    rules=(*OWN_ENDS, *NORMS, *ATTENTION, *WHOLE_NORMS, *EXPERTS, *STACKED),
    kvs=COMMON,
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    checks=(
        activation("silu", "swish"),
        fixed("norm_topk_prob", None, False),
        fixed("clip_qkv", None),
        heads_fill_embedding,
        a_key_head_for_every_query_head,
    ),
    sizes={"expert_ff": lambda config: integer(config, *N_FF), "2expert_ff": lambda config: 2 * integer(config, *N_FF)},
)

FAMILY = (OLMO, OLMO2, OLMOE)
