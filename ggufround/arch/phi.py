"""Phi-1 and 2, Phi-3 and 4 (q, k and v in one matrix, gate and up in one, and both stay so), and Phi-3.5-MoE.

Sources: conversion/phi.py for names, values and metadata; src/models/{phi2,phi3,phimoe}.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import GELU, activation, fixed
from ggufround.arch.config import (
    N_EMBD,
    N_EXPERT,
    N_EXPERT_USED,
    N_FF,
    N_HEAD,
    N_HEAD_KV,
    n_head,
    n_layer,
    optional_integer,
    optional_number,
)
from ggufround.arch.llama import ATTENTION, ENDS, EXPERTS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import constant, count, real, replaced
from ggufround.arch.spec import KV, Architecture, Config, Rule, with_biases
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, boolean, f32, u32

PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        Rule("layers.{i}.self_attn.qkv_proj.weight", "blk.{i}.attn_qkv.weight", "qkv embd", bias=True),
        ATTENTION[3],
        Rule("layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight", "2ff embd"),
        FEED_FORWARD[2],
    ),
    kvs=(
        KV("rope.scaling.attn_factor", rope.longrope_attention_factor),
        KV("context_length", count("n_positions", "max_position_embeddings")),
        KV("rope.scaling.original_context_length", rope.original_context_length),
        KV("embedding_length", count(*N_EMBD)),
        KV("feed_forward_length", count(*N_FF)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", count(*N_HEAD_KV)),
        KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        KV("rope.dimension_count", lambda config: u32(rope.rotated(config))),
        KV("rope.freq_base", rope.freq_base),
        # 0 tells Phi-4 from the others
        KV("attention.sliding_window", lambda config: u32(optional_integer(config, "sliding_window") or 0)),
    ),
    tokenizers=("phi3", "bpe"),
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
    },
    computed=(rope.longrope_factors,),
    checks=(activation("silu", "swish"),),
    rope_types=("default", "longrope"),
)

# Attention and feed-forward part are side by side behind one norm; everything has a bias, the output matrix too.
PHI2 = Architecture(
    name="phi2",
    classes=("PhiForCausalLM",),
    rules=(
        ENDS[0],
        *ATTENTION[:3],
        *with_biases(
            Rule("final_layernorm.weight", "output_norm.weight", "embd"),
            replace(ENDS[2], optional=False),
            NORMS[0],
            Rule("layers.{i}.self_attn.dense.weight", "blk.{i}.attn_output.weight", "embd q"),
            Rule("layers.{i}.mlp.fc1.weight", "blk.{i}.ffn_up.weight", "ff embd"),
            Rule("layers.{i}.mlp.fc2.weight", "blk.{i}.ffn_down.weight", "embd ff"),
        ),
    ),
    kvs=(
        KV("context_length", count("n_positions", "max_position_embeddings")),
        KV("embedding_length", count(*N_EMBD)),
        KV("feed_forward_length", count(*N_FF)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", count(*N_HEAD_KV)),
        KV("attention.layer_norm_epsilon", real("layer_norm_epsilon", "layer_norm_eps")),
        KV("rope.dimension_count", lambda config: u32(rope.rotated(config))),
        KV("tokenizer.ggml.add_bos_token", constant(boolean(False))),
        KV("rope.freq_base", rope.freq_base_if_other),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "partial_rotary_factor": 0.5,
    },
    checks=(fixed("hidden_act", *GELU), fixed("qk_layernorm", None, False)),
    rope_types=("default",),
)


def scale_of_long_contexts(config: Config) -> Field | None:
    """What rotated queries and keys are multiplied with; the converter computes Phi-3's factor instead."""
    stated = optional_number(rope.parameters(config), "long_mscale")
    return rope.longrope_attention_factor(config) if stated is None else f32(stated)


def one_scale(config: Config) -> None:
    short, long = (optional_number(rope.parameters(config), f"{kind}_mscale") for kind in ("short", "long"))
    if short != long:
        raise UnsupportedError(
            f"config.json: short_mscale is {short} and long_mscale {long}; llama.cpp runs all contexts with one"
        )


# Phi-3.5-MoE: q, k and v apart, experts, and biases wherever llama.cpp expects them. llama.cpp takes its layer norms
# for RMS norms and lets the two experts' weights add up to 1 (they are nearly 1 each): src/models/phi3.cpp.
PHIMOE = replace(
    PHI3,
    name="phimoe",
    classes=("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    rules=(
        ENDS[0],
        *ATTENTION[:3],
        *with_biases(ENDS[1], replace(ENDS[2], optional=False), *NORMS, ATTENTION[3]),
        *EXPERTS,
    ),
    kvs=(
        *replaced(PHI3.kvs, KV("rope.scaling.attn_factor", scale_of_long_contexts)),
        KV("expert_used_count", count(*N_EXPERT_USED)),
        KV("expert_count", count(*N_EXPERT)),
    ),
    defaults={**PHI3.defaults, "rope_theta": 1000000.0, "num_key_value_heads": 8, "num_experts_per_tok": 2},
    checks=(*PHI3.checks, one_scale),
)

FAMILY = (PHI3, PHI2, PHIMOE)
