"""SmallThinker, whose router looks at what attention gets, and Arctic, whose experts stand beside a dense part.

Sources: conversion/smallthinker.py and arctic.py for names, values and metadata; the files of the same names in
src/models for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed, heads_fill_embedding
from ggufround.arch.config import head_dim, n_head, n_layer, optional_integer, shown
from ggufround.arch.llama import ATTENTION, ENDS, EXPERTS, INTERLEAVED, NORMS
from ggufround.arch.metadata import COMMON, count, without
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, u32

NONE = "transformers has no class for it"
WINDOW = 4096  # that src/models/smallthinker.cpp gives every model that has one
SOFTMAX, SIGMOID = 1, 2  # what llama.cpp calls them


def windowed(config: Config) -> bool:
    layout = config.get("sliding_window_layout")
    return isinstance(layout, list) and any(layout) and bool(optional_integer(config, "sliding_window_size"))


def every_fourth_is_whole(config: Config) -> None:
    """Where there are windows, llama.cpp leaves them and the rotation out of layers 0, 4, 8, ...; where there are none,
    it rotates in every layer."""
    mixed = windowed(config)
    layers = [int(i % 4 != 0 or not mixed) for i in range(n_layer(config))]
    wanted = {"rope_layout": layers} | ({"sliding_window_layout": layers} if mixed else {})
    for key, layout in wanted.items():
        if config.get(key, layout) != layout:
            raise UnsupportedError(f"config.json: {key} is {shown(config[key])}; llama.cpp runs {shown(layout)}")
    if mixed and optional_integer(config, "sliding_window_size") != WINDOW:
        raise UnsupportedError(f"config.json: a sliding_window_size other than {WINDOW}, which llama.cpp runs")


def window(config: Config) -> Field | None:
    return u32(optional_integer(config, "sliding_window_size") or 0) if windowed(config) else None


SMALLTHINKER = Architecture(
    name="smallthinker",
    classes=("SmallThinkerForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        Rule("layers.{i}.block_sparse_moe.primary_router.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd"),
        *(
            Rule(
                f"layers.{{i}}.block_sparse_moe.experts.{{e}}.{name}.weight",
                f"blk.{{i}}.ffn_{name}_exps.weight",
                "embd expert_ff" if name == "down" else "expert_ff embd",
            )
            for name in ("gate", "up", "down")
        ),
    ),
    kvs=(
        *without(COMMON, "feed_forward_length", "expert_count", "expert_used_count"),
        KV("expert_count", count("num_local_experts")),
        KV("expert_used_count", count("moe_num_active_primary_experts")),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("feed_forward_length", count("moe_intermediate_size")),
        KV(
            "expert_gating_func",
            lambda config: u32(SOFTMAX if config.get("moe_primary_router_apply_softmax") else SIGMOID),
        ),
        KV("attention.sliding_window", window),
    ),
    tokenizers=("bpe",),
    defaults={
        "num_local_experts": lambda config: config.get("moe_num_primary_experts"),
        "moe_intermediate_size": lambda config: config.get("moe_ffn_hidden_size"),
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    checks=(
        activation("relu"),
        fixed("moe_enable_secondary_experts", None, False),
        every_fourth_is_whole,
    ),
    untunable=NONE,
)

ARCTIC = Architecture(
    name="arctic",
    classes=("ArcticForCausalLM",),
    rules=(
        *ENDS,
        NORMS[0],
        Rule("layers.{i}.residual_layernorm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        replace(NORMS[1], to="blk.{i}.ffn_norm_exps.weight"),
        *(replace(rule, bias=False) for rule in INTERLEAVED),
        Rule("layers.{i}.residual_mlp.w1.weight", "blk.{i}.ffn_gate.weight", "embd embd"),
        Rule("layers.{i}.residual_mlp.w3.weight", "blk.{i}.ffn_up.weight", "embd embd"),
        Rule("layers.{i}.residual_mlp.w2.weight", "blk.{i}.ffn_down.weight", "embd embd"),
        *EXPERTS,
    ),
    kvs=(
        *COMMON,
        KV("vocab_size", count("vocab_size")),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
    ),
    tokenizers=("spm",),
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_key_value_heads": n_head,
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
    },
    checks=(
        activation("silu", "swish"),
        fixed("parallel_attn_mlp_res", True),
        fixed("moe_layer_frequency", None, 1),
        fixed("attention_bias", None, False),
        heads_fill_embedding,
    ),
    untunable=NONE,
)

FAMILY = (SMALLTHINKER, ARCTIC)
